"""The weights of a model: which files of a folder or repository are used, and their tensors, without network.

Only safetensors, tokenizer and config are: pickled weights can run code when they are loaded.
"""

import fnmatch
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.fetch import manifest

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "merges.txt", "chat_template.jinja", "chat_template.json")  # fmt: skip
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Weights:
    """The weights of one model; cheap to make and to pickle, since torch is imported by the methods alone.

    Attributes:
        name: the model's name in the study.
        folder: folder of config.json and, if there are any, of the safetensors and tokenizer files.
        real: False if the weights are random.
        seed: of random weights, else None.
        context: the longest sequence in tokens.
    """

    name: str
    folder: Path
    real: bool
    seed: int | None
    context: int

    def config(self):
        """Return the transformers config of the architecture."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def tokenizer(self):
        """The tokenizer, its ``model_max_length`` being ``context``; None for random weights, which have no text."""
        if not self.real:
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False, model_max_length=self.context
        )

    def tensor(self, name: str, shape: tuple[int, ...], dtype, device):
        """Return a parameter in ``dtype`` on ``device``, from its file or, for random weights without files, drawn.

        A head that is tied to the embeddings is read from them, even if it is stored as well. ``name`` and ``shape``
        are those of the model; raise StudyError if the files hold no such tensor, or one of another shape.
        """
        if name == HEAD and self._config.tie_word_embeddings:
            name = EMBEDDING
        if not self._has_files:
            from llmstudy.fetch.synthetic import random_tensor

            return random_tensor(name, tuple(shape), dtype, device, self.seed, self._config.initializer_range)
        from safetensors import safe_open

        if name not in self._files:
            raise StudyError(f"{self.folder}: no tensor {name!r} in the safetensors files of model {self.name}")
        with safe_open(self.folder / self._files[name], framework="pt", device=str(device)) as tensors:
            tensor = tensors.get_tensor(name)
        if tuple(tensor.shape) != tuple(shape):
            raise StudyError(f"{self.folder}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(shape)}")
        return tensor.to(dtype)

    @cached_property
    def _config(self):
        return self.config()

    @cached_property
    def _has_files(self) -> bool:
        return self.real or (self.folder / INDEX).exists()

    @cached_property
    def _files(self) -> dict[str, str]:
        return tensor_files(self.folder)


def open_weights(folder: Path) -> Weights:
    """Return the weights that ``fetch_weights`` put into ``folder``; raise StudyError if the fetch did not finish, or a
    file is missing or has another size than then."""
    folder = Path(folder)
    content = manifest.read(folder)
    weights_folder = folder / content["weights_folder"]
    manifest.check(content["files"], weights_folder)
    return Weights(content["name"], weights_folder, content["real"], content["seed"], content["context"])


def choose_files(names: Iterable[str], where: str) -> list[str]:
    """Return the names of the files to use, sorted; those in sub-folders are other formats of the same weights.

    ``names`` are paths relative to the folder or repository ``where``. Raise StudyError if there are no safetensors
    (with a line for pickled weights), no ``config.json`` or no tokenizer.
    """
    names = set(names)
    if WEIGHTS in names:
        weights = [WEIGHTS]
    elif INDEX in names:
        weights = [INDEX, *fnmatch.filter(names, SHARDS)]
    elif pickled := sorted(name for name in names if name.endswith(PICKLED)):
        raise StudyError(
            f"{where}: holds pickled weights only ({', '.join(pickled[:3])}), which can run code when they are loaded; "
            "use a revision or a conversion with safetensors"
        )
    else:
        raise StudyError(f"{where}: holds neither {WEIGHTS} nor {INDEX}; only safetensors and GGUF weights are read")
    if "config.json" not in names:
        raise StudyError(f"{where}: no config.json, so the architecture of the weights is unknown")
    if names.isdisjoint(TOKENIZERS):
        raise StudyError(f"{where}: no tokenizer; needed beside the weights: one of {', '.join(TOKENIZERS)}")
    return sorted([*weights, "config.json", *names.intersection(TOKENIZERS), *names.intersection(OPTIONAL)])


def tensor_files(folder: Path) -> dict[str, str]:
    """Return the safetensors file in ``folder`` that holds each tensor, from the index or the file's header; raise
    StudyError if a file is missing, cut short or not safetensors."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        names = [WEIGHTS]
    else:
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise StudyError(f"{index}: not an index of safetensors files ({error}); fetch it again") from error
    files = {}
    for name in names:
        path = folder / name
        if path.parent != folder:
            raise StudyError(f"{index}: names {name!r}, which is outside its folder; refused")
        try:
            with safe_open(path, framework="numpy") as tensors:
                files |= dict.fromkeys(tensors.keys(), name)
        except FileNotFoundError as error:
            raise StudyError(f"{path}: missing; fetch the weights again") from error
        except (SafetensorError, OSError) as error:
            raise StudyError(f"{path}: cut short or not safetensors ({error}); fetch the weights again") from error
    return files


def count_parameters(folder: Path) -> int:
    """Return the number of stored parameters, from the headers alone; a tied tensor that is stored once counts once."""
    from safetensors import safe_open

    total = 0
    for name in sorted(set(tensor_files(folder).values())):
        with safe_open(folder / name, framework="numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return total
