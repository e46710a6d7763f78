"""Choosing an attention kernel and proving which one ran.

PyTorch falls back silently when a kernel cannot serve a shape, a dtype or a device. A measurement therefore asks the
profiler which operator ran; another one than was asked for is ``unsupported``, never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from llmstudy.errors import StudyError, Unsupported


@dataclass(frozen=True)
class Attention:
    """implementation: transformers' name; backend: member of ``torch.nn.attention.SDPBackend`` to force, or None;
    operators: the beginning of each kernel's name that is what was asked for, empty for plain matrix products."""

    implementation: str
    backend: str | None
    operators: tuple[str, ...]


CHOICES = {
    "eager": Attention("eager", None, ()),
    # PyTorch's own choice; the record says which kernel it took.
    "sdpa": Attention("sdpa", None, ("_scaled_dot_product",)),
    "sdpa-math": Attention("sdpa", "MATH", ("_scaled_dot_product_attention_math",)),
    "sdpa-flash": Attention("sdpa", "FLASH_ATTENTION", ("_scaled_dot_product_flash_attention",)),
    "sdpa-efficient": Attention("sdpa", "EFFICIENT_ATTENTION", ("_scaled_dot_product_efficient_attention",)),
    "sdpa-cudnn": Attention("sdpa", "CUDNN_ATTENTION", ("_scaled_dot_product_cudnn_attention",)),
    "flash_attention_2": Attention("flash_attention_2", None, ("flash_attn",)),
    "flash_attention_3": Attention("flash_attention_3", None, ("flash_attn_3",)),
}

# Operators that name a kernel, most specific first: sdpa's dispatcher shows beside the kernel that it chose.
_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_attention_math",
)
# Packages whose operators are all one kernel: flash_attn::_flash_attn_forward, flash_attn_3::fwd.
_PACKAGES = ("flash_attn", "flash_attn_3")

# What PyTorch says on a CPU and on a GPU when the forced backend cannot serve a call.
_NO_KERNEL = ("No viable backend for scaled_dot_product_attention", "No available kernel")


def get(name: str) -> Attention:
    """The choice called ``name``; raises StudyError if there is none."""
    if name not in CHOICES:
        raise StudyError(f"attention {name!r}: not known; allowed: {', '.join(CHOICES)}")
    return CHOICES[name]


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Within this context PyTorch may use no other SDPA backend than the one that ``name`` asks for.

    Raises Unsupported where that backend has no kernel for the device, dtype or shape.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = get(name).backend
    with sdpa_kernel(getattr(SDPBackend, backend)) if backend else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_KERNEL):
                raise
            raise Unsupported(
                f"attention {name!r}: PyTorch has no such kernel for this device, dtype or shape"
            ) from error


def kernels_that_ran(run: Callable[[], object]) -> set[str]:
    """The attention operators that ``run`` launched, from the profiler; ``{"matmul-softmax"}`` if it used none."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = [event.key.split("::") for event in profile.key_averages()]
    found = {kernel for kernel in _KERNELS for name in names if name[-1].startswith(kernel)}
    found |= {package for package in _PACKAGES for name in names if package in name[:-1]}
    if "_scaled_dot_product_flash_attention_for_cpu" in found:
        found.discard("_scaled_dot_product_flash_attention")
    return found or {"matmul-softmax"}


def is_one_of(kernel: str, asked: tuple[str, ...]) -> bool:
    """Whether a kernel is what was asked for; of a package's only the whole name, for one begins with the other's."""
    return kernel in asked if kernel in _PACKAGES else kernel.startswith(asked)


def prove(name: str, run: Callable[[], object]) -> list[str]:
    """The kernels that ``run`` used, sorted; raises Unsupported if any is not what ``name`` promises."""
    attention = get(name)
    ran = sorted(kernels_that_ran(run))
    if attention.operators:
        wrong = [kernel for kernel in ran if not is_one_of(kernel, attention.operators)]
    else:
        wrong = [kernel for kernel in ran if kernel != "matmul-softmax"]
    if wrong:
        raise Unsupported(f"attention {name!r}: {', '.join(wrong)} ran instead")
    return ran
