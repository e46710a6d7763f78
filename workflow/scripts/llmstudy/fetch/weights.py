"""The fetched weights of a model, opened for a measuring job: config, tokenizer and single tensors, without network."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.fetch import layout, manifest

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
        return self.real or (self.folder / layout.INDEX).exists()

    @cached_property
    def _files(self) -> dict[str, str]:
        return layout.tensor_files(self.folder)


def open_weights(folder: Path) -> Weights:
    """Return the weights that ``fetch_weights`` put into ``folder``; raise StudyError if the fetch did not finish, or a
    file is missing or has another size than then."""
    folder = Path(folder)
    content = manifest.read(folder)
    weights_folder = folder / content["weights_folder"]
    manifest.check(content["files"], weights_folder)
    return Weights(content["name"], weights_folder, content["real"], content["seed"], content["context"])
