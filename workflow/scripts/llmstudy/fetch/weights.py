"""The fetched weights of a model, opened for a measuring job: config, tokenizer and single tensors, without network."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmstudy.errors import StudyError, Unsupported
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
        tied: whether the head is the embedding, as the files say; None takes what config.json says.
        attention: implementations of attention that the model's class supports; empty if unknown.
        quantization: the method that the weights were published with; empty where they are numbers of 16 bits or more.
        digest: the same for the same weights alone, for records to say what they were measured on.
    """

    name: str
    folder: Path
    real: bool
    seed: int | None
    context: int
    tied: bool | None = None
    attention: tuple[str, ...] = ()
    quantization: str = ""
    digest: str = ""

    def config(self):
        """Return the transformers config of the architecture, the same for every precision."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        if self.tied is not None:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = self.tied
        return config

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

        A head that is tied to the embedding is read from it, even if it is stored as well, and the embedding from the
        head if only that is stored. ``name`` and ``shape`` are those of the model; older files leave out its first
        part. Raise Unsupported if the files, in which the library finds it, hold it under another name or in parts, or
        if it holds codes, which are no weights without their scales; StudyError if it has another shape.
        """
        if name == HEAD and self._config.tie_word_embeddings:
            name = EMBEDDING
        if not self._has_files:
            from llmstudy.fetch.synthetic import random_tensor

            return random_tensor(name, tuple(shape), dtype, device, self.seed, self._config.initializer_range)
        from safetensors import safe_open

        tied = [HEAD] if name == EMBEDDING and self._config.tie_word_embeddings else []
        stored = next((one for one in (name, name.partition(".")[2], *tied) if one in self._files), None)
        if stored is None:
            raise Unsupported(
                f"{name}: the files of {self.name} hold it under another name or in parts; only the library joins them"
            )
        with safe_open(self.folder / self._files[stored].file, framework="pt", device=str(device)) as tensors:
            tensor = tensors.get_tensor(stored)
        if tuple(tensor.shape) != tuple(shape):
            raise StudyError(f"{self.folder}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(shape)}")
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise Unsupported(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}: codes, and no weights")
        return tensor.to(dtype)

    @cached_property
    def _config(self):
        return self.config()

    @cached_property
    def _has_files(self) -> bool:
        return self.real or (self.folder / layout.INDEX).exists()

    @cached_property
    def _files(self) -> dict[str, layout.Stored]:
        return layout.tensors(self.folder)


def open_weights(folder: Path) -> Weights:
    """Return the weights that ``fetch_weights`` put into ``folder``; raise StudyError if the fetch did not finish, or a
    file is missing or was changed since."""
    folder = Path(folder)
    content = manifest.read(folder)
    weights_folder = folder / content["weights_folder"]
    manifest.check(content["files"], weights_folder)
    return Weights(
        name=content["name"],
        folder=weights_folder,
        real=content["real"],
        seed=content["seed"],
        context=content["context"],
        tied=content["architecture"].get("tie_word_embeddings"),
        attention=tuple(content.get("attention", ())),
        quantization=(content.get("quantization") or {}).get("method", ""),
        digest=manifest.digest(content),
    )
