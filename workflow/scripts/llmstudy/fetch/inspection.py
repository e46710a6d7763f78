"""The inspection of a checkpoint: what its files hold against what its architecture expects, from headers alone.

The library says what it expects: the model is built on the meta device and loaded from tensors that have a dtype and a
shape and no data, so that what it renames, joins, ties or ignores counts here as it does in a job.
"""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.fetch import layout
from llmstudy.fetch.layout import Stored

# Keys of config.json for the manifest; transformers knows what a file leaves out.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings")  # fmt: skip
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
          "F8_E5M2": "float8_e5m2"}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# The package beside transformers that loads a published quantization, where it needs one.
PACKAGES = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "gptq": "gptqmodel",
            "awq": "gptqmodel", "torchao": "torchao", "hqq": "hqq", "aqlm": "aqlm", "vptq": "vptq",
            "spqr": "spqr_quant", "auto-round": "auto-round", "fbgemm_fp8": "fbgemm-gpu", "quark": "amd-quark",
            "eetq": "kernels", "mxfp4": "kernels"}  # fmt: skip
BITS_KEYS = ("bits", "w_bit", "num_bits", "nbits")
# Of a layer, buffers that every library version computes: it ignores them in files of older versions.
COMPUTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")
BLOCK = 1 << 24


def inspect(folder: Path, real: bool) -> dict[str, Any]:
    """Return what a fetched checkpoint is, for the manifest.

    ``model_type``; ``architecture`` (sizes under the keys of config.json, defaults filled in; whether the head is tied
    is what the files say); ``rope``, ``sliding_window``; ``attention`` (implementations that the class supports);
    ``parameters``; ``dtypes`` (dtype → stored parameters); ``quantization`` (None, or ``method``, ``bits``,
    ``package``); ``tied_in_file`` (``head``: whether the head is stored, ``equal``: whether it is the embedding);
    ``tokenizer``; ``notes`` (sentences on differences that change no number).

    Args:
        folder: folder of config.json and, if there are any, of weights and tokenizer.
        real: whether the weights are trained; random ones need no files and have no tokenizer.

    Raises:
        StudyError: the checkpoint cannot be measured rightly. One line names the first fault, what to do, and how many
            there are.
    """
    config = read_config(folder)
    stored = layout.tensors(folder) if real or (folder / layout.INDEX).exists() else {}
    notes: list[str] = []
    quantization = _quantization(config)
    with _quiet():
        model = _load_without_data(folder, config, stored, quantization, notes)
    tied_in_file = _tied_in_file(folder, model, stored)
    architecture = sizes(config)
    if architecture.get("tie_word_embeddings") and tied_in_file["equal"] is False:
        architecture["tie_word_embeddings"] = False
        notes.append(
            "config.json ties the head to the embedding, but the files store another head: every precision has the "
            "stored one, as in the library; engines that tie it run another model"
        )
    text = config.get_text_config()
    return {
        "model_type": config.model_type,
        "architecture": architecture,
        "rope": getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None),
        "sliding_window": getattr(text, "sliding_window", None),
        "attention": _attention(type(model)),
        "parameters": model.num_parameters(),
        "dtypes": _dtypes(stored, model),
        "quantization": quantization,
        "tied_in_file": tied_in_file,
        "tokenizer": _tokenizer(folder, config, _rows(model), notes) if real else None,
        "notes": notes,
    }


def summary(content: dict[str, Any]) -> str:
    """Return what a manifest says of a model in one line, for the plan and the report."""
    quantization, tokenizer = content["quantization"], content["tokenizer"]
    bits = quantization and quantization["bits"]
    parts = [
        content["model_type"],
        f"{content['parameters'] / 1e6:,.1f} M parameters",
        " and ".join(content["dtypes"]),
        f"quantized: {quantization['method']}{f', {bits} bits' * bool(bits)}" if quantization else "not quantized",
        "head tied to the embedding" if content["architecture"].get("tie_word_embeddings") else "head of its own",
        tokenizer and f"tokenizer of {tokenizer['size']}, BOS {'added' if tokenizer['adds_bos'] else 'not added'}",
        f"context {content['context']}",
        f"attention {', '.join(content['attention'])}",
    ]
    return "; ".join([", ".join(filter(None, parts)), *content["notes"]])


def read_config(folder: Path):
    """Return the transformers config of a folder; raise StudyError if the library cannot read it, or the model is not a
    causal one that the library knows."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # validators raise types of their own, one a version
        raise StudyError(f"{path}: transformers cannot read this architecture ({_first_line(error)})") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise StudyError(
            f"{path}: model_type {config.model_type!r} is not a causal language model of transformers; only those are "
            "measured"
        )
    names = getattr(config, "architectures", None) or []
    # published configs differ in capitals: LLaMAForCausalLM
    known = {str(name).lower() for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    if names and known.isdisjoint(map(str.lower, names)):
        raise StudyError(
            f"{path}: architectures says {names[0]}, which is not a causal language model of transformers; only those "
            "are measured"
        )
    return config


def sizes(config) -> dict[str, int | bool]:
    """Return the sizes of a transformers config under the keys of config.json, with those that it leaves out: LLaMA 1
    has no ``num_key_value_heads``, which is as many as query heads."""
    text = config.get_text_config()
    found = {key: getattr(text, key, None) for key in SIZES}
    heads, hidden = found["num_attention_heads"], found["hidden_size"]
    if heads and hidden:
        shared = getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False)
        usual = 1 if shared else getattr(text, "num_kv_heads", None) or heads  # Falcon's names
        found["num_key_value_heads"] = found["num_key_value_heads"] or usual
        found["head_dim"] = found["head_dim"] or hidden // heads
    return {key: value for key, value in found.items() if value is not None}


def _load_without_data(folder: Path, config, stored: dict[str, Stored], quantization: dict | None, notes: list[str]):
    """Return the model on the meta device, loaded from the headers; raise StudyError where they do not fit it.

    Of a quantized checkpoint each module must have some tensor: only its library knows which.
    """
    import copy

    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    plain = copy.deepcopy(config)
    if quantization:
        del plain.quantization_config
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(config, "auto_map", None):
        notes.append(
            f"config.json names code of its own (auto_map), which is not run: the library's {kind.__name__} is"
        )
    try:
        with torch.device("meta"):
            model = kind(plain)
    except Exception as error:  # sizes that no model can have
        raise StudyError(
            f"{folder / 'config.json'}: transformers cannot build this model ({_first_line(error)})"
        ) from error
    if not stored:
        return model
    ignored = _ignored(model, stored)
    if ignored:
        notes.append(f"{_count(ignored, 'tensor')} that the library computes or does not use ({ignored[0]})")
    codes = [name for name, one in stored.items() if one.dtype not in FLOATS and len(one.shape) > 1]
    codes = [name for name in codes if name not in ignored]
    if codes and not quantization:
        raise StudyError(
            f"{folder / stored[codes[0]].file}: {codes[0]} has dtype {DTYPES.get(stored[codes[0]].dtype, 'unknown')}, "
            f"as {_count(codes, 'tensor')} of quantized weights, but config.json has no quantization_config that says "
            "how to read them; bring the config.json of the quantized model, or the 16-bit weights"
        )
    if quantization and not codes:
        raise StudyError(
            f"{folder / 'config.json'}: quantization_config says {quantization['method']}, but no tensor is quantized; "
            "remove the key if these are the 16-bit weights"
        )
    state = {
        name: torch.empty(one.shape, dtype=getattr(torch, DTYPES.get(one.dtype, "uint8")), device="meta")
        for name, one in stored.items()
    }
    options = {"dtype": torch.bfloat16, "device_map": {"": "meta"}, "ignore_mismatched_sizes": True}
    try:
        loaded, info = kind.from_pretrained(None, config=plain, state_dict=state, output_loading_info=True, **options)
    except RuntimeError as error:  # experts that are joined, and do not fit together
        absent = _hole(stored)
        where = f"{absent} is missing" if absent else _first_line(error)
        raise StudyError(f"{folder}: the tensors cannot be joined to those of {kind.__name__} ({where})") from error
    _check(folder, kind.__name__, stored, info, bool(quantization))
    return loaded


def _check(folder: Path, kind: str, stored: dict[str, Stored], info: dict[str, Any], quantized: bool) -> None:
    """Raise StudyError for the first of the tensors that the library misses, has no use for, or expects in another
    shape."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted((name, tuple(file), tuple(model)) for name, file, model in info["mismatched_keys"])
    if quantized:
        parents = {name.rpartition(".")[0] for name in stored}
        parents |= {parent[:end] for parent in parents for end in _dots(parent)}
        missing = [name for name in missing if name.rpartition(".")[0] not in parents]
        unexpected, mismatched = [], []
    total = len(missing) + len(unexpected) + len(mismatched)
    rest = f"; {total} faults in all" if total > 1 else ""
    if missing:
        raise StudyError(f"{folder}: {missing[0]} is missing, which {kind} needs{rest}; fetch or save the model again")
    if mismatched:
        name, file, model = mismatched[0]
        raise StudyError(
            f"{folder}: {name} has shape {file}, and config.json asks for {model}{rest}; the config is that of another "
            "model, or the file is"
        )
    if unexpected:
        raise StudyError(
            f"{folder}: {unexpected[0]} is no tensor of {kind} as config.json describes it{rest}; the config is that "
            "of another model, or the file holds more than the model"
        )


def _dots(name: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\.", name)]


def _hole(stored: dict[str, Stored]) -> str | None:
    """Return the first name that numbered names (layers, experts) leave out."""
    numbers = defaultdict(set)
    for name in stored:
        numbers[re.sub(r"\d+", "{}", name)].add(tuple(map(int, re.findall(r"\d+", name))))
    for pattern, seen in sorted(numbers.items()):
        for one in itertools.product(*(sorted(set(column)) for column in zip(*seen, strict=True))):
            if one not in seen:
                return pattern.format(*one)
    return None


def _ignored(model, stored: dict[str, Stored]) -> list[str]:
    """Return the stored tensors that the library passes over by its own rules."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), *COMPUTED]
    ours = model.state_dict().keys()
    return [name for name in sorted(stored) if name not in ours and any(re.search(one, name) for one in patterns)]


def _quantization(config) -> dict[str, Any] | None:
    """Return method, bits and package of the quantization that a config describes, or None."""
    described = getattr(config, "quantization_config", None)
    if not described:
        return None
    described = described if isinstance(described, dict) else described.to_dict()
    if described.get("load_in_4bit") or described.get("load_in_8bit"):
        method, bits = "bitsandbytes", 4 if described.get("load_in_4bit") else 8
    else:
        method = str(described.get("quant_method") or "of no quant_method")
        named = re.search(r"(?:fp|int)(\d+)", method)
        bits = _bits(described) or (int(named[1]) if named else None)
    return {"method": method, "bits": bits, "package": PACKAGES.get(method)}


def _bits(described: Any) -> int | float | None:
    """Return the first number of bits in a nested description, that of the weights before that of activations."""
    if not isinstance(described, dict):
        return None
    if found := next((described[key] for key in BITS_KEYS if isinstance(described.get(key), int | float)), None):
        return found
    parts = sorted(described, key=lambda key: key != "weights")
    return next(filter(None, (_bits(described[key]) for key in parts)), None)


def _dtypes(stored: dict[str, Stored], model) -> dict[str, int]:
    """Return the stored parameters by dtype, the most frequent first."""
    ignored = set(_ignored(model, stored))
    counts: Counter = Counter()
    for name, one in stored.items():
        if name not in ignored:
            counts[DTYPES.get(one.dtype, one.dtype)] += math.prod(one.shape)
    return dict(counts.most_common())


def _attention(kind: type) -> list[str]:
    """Return the implementations of attention that a class supports, by transformers' names."""
    flash = ["flash_attention_2", "flash_attention_3"] * bool(kind._supports_flash_attn)
    return ["eager", *["sdpa"] * bool(kind._supports_sdpa), *flash]


def _rows(model) -> int:
    return model.get_input_embeddings().weight.shape[0]


def stored_name(name: str, prefix: str, stored: dict[str, Any]) -> str | None:
    """Return the name in the files of a model's parameter: older files leave out the prefix of the base model."""
    other = name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else f"{prefix}.{name}"
    return next((one for one in (name, other) if one in stored), None)


def _tied_in_file(folder: Path, model, stored: dict[str, Stored]) -> dict[str, bool | None]:
    """Return whether the head is stored, and whether its bytes are those of the embedding (None unless both are)."""
    paths = {id(module): path for path, module in model.named_modules()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [stored_name(f"{paths[id(end)]}.weight", model.base_model_prefix, stored) if end else None for end in ends]
    embedding, head = (stored.get(name) for name in names)
    if not head or not embedding:
        # The library renames some heads; it has one of its own if it found all tensors and ties none.
        return {"head": bool(head) or bool(stored and not model.all_tied_weights_keys), "equal": None}
    same = head[1:3] == embedding[1:3]
    return {"head": True, "equal": same and all(one == other for one, other in _blocks(folder, head, embedding))}


def _blocks(folder: Path, one: Stored, other: Stored) -> Iterator[tuple[bytes, bytes]]:
    with open(folder / one.file, "rb") as first, open(folder / other.file, "rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        for start in range(one.start, one.end, BLOCK):
            size = min(BLOCK, one.end - start)
            yield first.read(size), second.read(size)


def _tokenizer(folder: Path, config, rows: int, notes: list[str]) -> dict[str, Any]:
    """Return the size and the special tokens of the tokenizer; raise StudyError if it cannot be read, or if words of it
    lie beyond the ``rows`` of the embedding."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
        begins = tokenizer("a")["input_ids"][:1]
    except Exception as error:  # files that are damaged, or a package that reads them and is not installed
        raise StudyError(f"{folder}: transformers cannot read the tokenizer ({_first_line(error)})") from error
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    words = [(number, token) for number, token in beyond if number not in tokenizer.added_tokens_decoder]
    if words:
        raise StudyError(
            f"{folder}: the tokenizer's token {words[0][0]} ({words[0][1]!r}) and {len(words) - 1} more lie beyond the "
            f"embedding's {rows} rows; the tokenizer is that of another model"
        )
    if beyond:
        notes.append(
            f"{_count(beyond, 'added token')} of the tokenizer beyond the embedding's {rows} rows ({beyond[0][1]}): a "
            "text that holds one cannot be measured"
        )
    bos, configured = tokenizer.bos_token_id, getattr(config.get_text_config(), "bos_token_id", None)
    if bos is not None and configured is not None and bos != configured:
        notes.append(f"config.json has {configured} as BOS, the tokenizer {bos}")
    return {
        "size": max(vocabulary.values()) + 1,
        "bos": bos,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "adds_bos": bos is not None and begins == [bos],
        "fast": tokenizer.is_fast,
    }


def _count(items: list, noun: str) -> str:
    return f"{len(items)} {noun}{'s' * (len(items) != 1)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's tables of missing tensors out of the log: this module says it in a line."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
