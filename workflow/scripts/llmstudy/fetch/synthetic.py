"""Random weights in a true architecture: for speed and memory alone, never for quality."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.fetch.layout import INDEX
from llmstudy.fetch.shapes import SHAPES
from llmstudy.files import disk_full_named, publish, write_json
from llmstudy.progress import progress

SHARD_BYTES = 4 * 10**9
# drawn in blocks: the fp32 draw of a whole 70B projection would add to the measured memory
BLOCK = 1 << 24


def llama_config(shape: str | dict[str, Any]):
    """Return the ``LlamaConfig`` of a named shape or of a dictionary of its keys; raise StudyError for an unknown shape
    or key, and for values that no model can have."""
    from transformers import LlamaConfig

    if isinstance(shape, str):
        if shape not in SHAPES:
            raise StudyError(
                f"shape: {shape!r} is unknown; allowed are {', '.join(SHAPES)} or a mapping of LlamaConfig keys"
            )
        shape = SHAPES[shape]
    if unknown := sorted(set(shape) - set(LlamaConfig().to_dict())):
        raise StudyError(f"shape: {unknown[0]!r} is not a key of LlamaConfig")
    try:
        config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    except Exception as error:  # the config's validators raise types of their own, one a version
        raise StudyError(f"shape: LlamaConfig refuses it ({' '.join(str(error).split())})") from error
    if config.num_attention_heads % config.num_key_value_heads:
        raise StudyError(
            f"shape: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads"
        )
    return config


def random_tensor(name: str, shape: tuple[int, ...], dtype, device, seed: int, deviation: float):
    """Return one parameter, the same whenever and in whatever order it is made on the same kind of device.

    Norm weights are 1 and biases 0; all others are drawn from N(0, ``deviation``²) in fp32 by a generator seeded with
    ``seed`` and the parameter's name, and rounded to ``dtype``. A CPU and a GPU give different numbers.
    """
    import torch

    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype, device=device)
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=dtype, device=device)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    tensor = torch.empty(shape, dtype=dtype, device=device)
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), BLOCK):
        block = flat[start : start + BLOCK]
        block.copy_(torch.empty(block.shape, device=device).normal_(0.0, deviation, generator=generator))
    return tensor


def parameter_shapes(config) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each parameter of the model, tied ones once, without allocating any."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write_weights(config, seed: int, folder: Path) -> list[str]:
    """Stream the bf16 weights to numbered safetensors files of about 4 GB, one shard in memory at a time, and return
    the names of the files, the index among them."""
    import torch
    from safetensors.torch import save_file

    shards = list(_shards(parameter_shapes(config), torch.bfloat16.itemsize))
    weight_map, total = {}, 0
    for number, shard in enumerate(progress(shards, "write synthetic weights", unit="files"), start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        partial = folder / f".{file.name}.part"
        tensors = {
            name: random_tensor(name, shape, torch.bfloat16, "cpu", seed, config.initializer_range)
            for name, shape in shard.items()
        }
        try:
            with disk_full_named(file):
                save_file(tensors, partial, metadata={"format": "pt"})
                publish(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        weight_map |= dict.fromkeys(shard, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return [INDEX, *sorted(set(weight_map.values()))]


def _shards(shapes: dict[str, tuple[int, ...]], itemsize: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the parameters in order in groups of at most ``SHARD_BYTES`` bytes, or of one parameter if it is larger."""
    shard: dict[str, tuple[int, ...]] = {}
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shard and used + size > SHARD_BYTES:
            yield shard
            shard, used = {}, 0
        shard[name] = shape
        used += size
    yield shard
