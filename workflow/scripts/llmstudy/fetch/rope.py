"""Rotary position embeddings of GGUF files in the terms of transformers, whose loader drops all but their base.

A file gives a base, a scaling (``linear``, ``yarn``; linear if it names none), and divisors of single frequencies as
tensors (``rope_freqs.weight``; ``rope_factors_short.weight`` and ``…_long.weight``). The angles are those of llama.cpp:
with ω_j = base^(-2j/n) / divisor_j, linear scaling divides ω_j by its factor, YaRN (Peng et al. 2023,
arXiv:2309.00071) mixes the two and multiplies sine and cosine by 1 + 0.1 ln(factor).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from llmstudy.errors import StudyError

DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (DIVISORS, SHORT, LONG)
# Keys below <architecture>.rope that are read here, and those that change no angle.
READ = ("dimension_count", "freq_base", "freq_base_swa", "scale_linear", "scaling.type", "scaling.factor",
        "scaling.attn_factor", "scaling.original_context_length", "scaling.yarn_ext_factor",
        "scaling.yarn_attn_factor", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow")  # fmt: skip
HARMLESS = ("scaling.finetuned",)
BASE = 10000.0  # where the file names none
LAYERS = ("full_attention", "sliding_attention")  # of models that rotate by two bases (Gemma 3)
# The scaling of Llama 3.1 to 3.3, which llama.cpp stores as divisors; their factor is the largest divisor.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def restore(reader, model, where: str) -> None:
    """Write the rotary embedding of a GGUF file into ``model.config``, so that it survives ``save_pretrained``.

    Parameters that transformers names after the file's scaling come first; what it has no name for (divisors that are
    not those of Llama 3, a scaled attention factor) is written as ``longrope``, which takes a divisor for each
    frequency. Either is taken only if the embedding that transformers builds from it has the file's frequencies.

    Args:
        reader: ``gguf.GGUFReader`` of the file.
        model: the transformers model that was loaded from it.
        where: the file, for messages.

    Raises:
        StudyError: a key or scaling that is not known here or can be read in two ways, or that the model's class does
            not compute.
    """
    architecture = reader.get_field("general.architecture").contents()
    prefix = f"{architecture}.rope."
    keys = {
        name.removeprefix(prefix): field.contents() for name, field in reader.fields.items() if name.startswith(prefix)
    }
    tensors = {tensor.name: tensor.data.ravel().astype(float) for tensor in reader.tensors if tensor.name in TENSORS}
    holders = (name.rpartition(".")[0] for name, _ in model.named_buffers() if name.endswith("inv_freq"))
    if (holder := next(holders, None)) is None:
        if tensors or any(name.startswith("scal") for name in keys):
            raise StudyError(f"{where}: scales rotary positions, which {type(model).__name__} has not; refused")
        return
    config, embedding = model.config, type(model.get_submodule(holder))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wanted = _wanted(keys, tensors, head, config.max_position_embeddings, where)
    base, local, two = _base(keys), keys.get("freq_base_swa", BASE), set(LAYERS) <= set(config.rope_parameters)
    if not two and keys.get("freq_base_swa", base) != base:
        raise StudyError(f"{where}: rope.freq_base_swa is not known to {type(model).__name__} of transformers; refused")
    expected = {"": wanted}
    if two:
        expected = {f"{LAYERS[0]}_": wanted, f"{LAYERS[1]}_": (_powers(local, head // 2), 1.0)}

    def built(parameters: dict[str, Any]):
        if "original_max_position_embeddings" in parameters and hasattr(config, "original_max_position_embeddings"):
            # transformers prefers it to that of the parameters
            config.original_max_position_embeddings = parameters["original_max_position_embeddings"]
        second = {"rope_type": "default", "rope_theta": local}
        config.rope_parameters = dict(zip(LAYERS, (parameters, second), strict=True)) if two else parameters
        return embedding(config)

    shared: dict[str, Any] = {"rope_theta": base}
    if "partial_rotary_factor" in config.rope_parameters or 2 * len(wanted[0]) != head:
        shared["partial_rotary_factor"] = 2 * len(wanted[0]) / head
    # A class that ignores the share of the dimensions that rotate would fail, or worse, when it rotates them all.
    plain = getattr(built(shared | {"rope_type": "default"}), f"{next(iter(expected))}inv_freq")
    for parameters in _candidates(keys, tensors, wanted) if len(plain) == len(wanted[0]) else ():
        rebuilt = built(shared | parameters)
        if all(_computes(rebuilt, prefix, *one) for prefix, one in expected.items()):
            return
    raise StudyError(
        f"{where}: {type(model).__name__} of transformers cannot compute the rotary positions of this file "
        f"({', '.join(f'{name} {value}' for name, value in keys.items())}); use the safetensors of this model"
    )


def _wanted(keys: dict[str, Any], tensors: dict, head: int, context: int, where: str) -> tuple[Any, float]:
    """Return the file's frequencies (radians a token, for the short context) and the factor of sine and cosine."""
    import numpy

    if unknown := sorted(set(keys) - {*READ, *HARMLESS}):
        raise StudyError(f"{where}: rope.{unknown[0]} is not known here; use the safetensors of this model")
    kind, factor = keys.get("scaling.type", "linear"), _factor(keys)
    long = kind == "longrope" and SHORT in tensors and factor == 1
    if kind not in ("none", "linear", "yarn") and not long:
        raise StudyError(f"{where}: rope.scaling.type {kind!r} cannot be read; use the safetensors of this model")
    if kind == "none":
        factor = 1.0
    pairs = numpy.arange(keys.get("dimension_count", head) // 2)
    divisors = tensors.get(SHORT, tensors.get(DIVISORS, numpy.ones(len(pairs))))
    if len(divisors) != len(pairs):
        raise StudyError(f"{where}: {len(divisors)} divisors of {len(pairs)} rotary frequencies; refused")
    base = _base(keys)
    frequencies = _powers(base, len(pairs)) / divisors
    attention = keys.get("scaling.attn_factor", 1.0)
    if kind != "yarn":
        return frequencies / factor, attention
    if (extrapolated := keys.get("scaling.yarn_ext_factor", 1.0)) not in (1.0, -1.0):  # -1 is "not set" to llama.cpp
        raise StudyError(f"{where}: rope.scaling.yarn_ext_factor {extrapolated} is not known here; refused")
    mean = 1 + 0.1 * math.log(max(1.0, factor))
    if not math.isclose(given := keys.get("scaling.yarn_attn_factor", mean), mean, rel_tol=1e-5):
        raise StudyError(
            f"{where}: rope.scaling.yarn_attn_factor {given} is the factor itself to some programs, and multiplies "
            f"{mean:.4f} in others; use the safetensors of this model"
        )
    original = keys.get("scaling.original_context_length", context)
    ends = []
    for turns, rounded in ((_beta(keys, "fast"), math.floor), (_beta(keys, "slow"), math.ceil)):
        ends.append(rounded(len(pairs) * math.log(original / (turns * 2 * math.pi)) / math.log(base)))
    low, high = max(ends[0], 0), min(ends[1], 2 * len(pairs) - 1)
    kept = 1 - numpy.clip((pairs - low) / max(0.001, high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / factor), attention * mean


def _candidates(keys: dict[str, Any], tensors: dict, wanted: tuple) -> Iterator[dict[str, Any]]:
    """Yield rope parameters of transformers that may compute what is wanted, the plainest first."""
    frequencies, attention = wanted
    factor = _factor(keys)
    original = keys.get("scaling.original_context_length")
    length = {"original_max_position_embeddings": original} if original else {}
    if SHORT in tensors:
        long = tensors.get(LONG, tensors[SHORT])
        divisors = {"short_factor": tensors[SHORT].tolist(), "long_factor": long.tolist()}
        yield {"rope_type": "longrope", "attention_factor": attention} | divisors | length
        return
    if keys.get("scaling.type") == "yarn":
        yarn = {"attention_factor": attention, "beta_fast": _beta(keys, "fast"), "beta_slow": _beta(keys, "slow")}
        yield {"rope_type": "yarn", "factor": factor} | yarn | length
    else:
        yield {"rope_type": "default"}
        yield {"rope_type": "linear", "factor": factor}
    if DIVISORS in tensors:
        yield {"rope_type": "llama3", "factor": float(tensors[DIVISORS].max())} | LLAMA3
    factors = (_powers(_base(keys), len(frequencies)) / frequencies).tolist()
    every = {"short_factor": factors, "long_factor": factors, "attention_factor": attention, "factor": 1.0}
    yield {"rope_type": "longrope"} | every | length


def _powers(base: float, count: int):
    import numpy

    return base ** (-numpy.arange(count) / count)


def _base(keys: dict[str, Any]) -> float:
    return keys.get("freq_base", BASE)


def _factor(keys: dict[str, Any]) -> float:
    return keys.get("scaling.factor") or keys.get("scale_linear") or 1.0


def _beta(keys: dict[str, Any], end: str) -> float:
    return keys.get(f"scaling.yarn_beta_{end}", {"fast": 32.0, "slow": 1.0}[end])


def _computes(embedding, prefix: str, frequencies, attention: float) -> bool:
    """Return whether an embedding of transformers has these frequencies and this factor, to the precision of fp32."""
    import numpy

    found = getattr(embedding, f"{prefix}inv_freq").numpy()
    scaling = getattr(embedding, f"{prefix}attention_scaling")
    return (
        len(found) == len(frequencies)
        and numpy.allclose(found, frequencies, rtol=1e-5, atol=0)
        and math.isclose(scaling, attention, rel_tol=1e-6)
    )
