"""Choose an attention kernel, and prove which kernel ran.

PyTorch falls back silently when a kernel cannot serve a shape, a dtype or a device. A measurement therefore reads from
the profiler which operator ran; if it is not the configured one, the result is ``unsupported``, never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from llmstudy.errors import StudyError, Unsupported


@dataclass(frozen=True)
class Attention:
    """A value of the config key ``attention``.

    Attributes:
        implementation: transformers' ``attn_implementation``.
        backend: member of ``torch.nn.attention.SDPBackend`` to force, or None.
        operators: beginnings of the names of the kernels that it may run; empty for plain matrix products.
    """

    implementation: str
    backend: str | None
    operators: tuple[str, ...]


CHOICES = {
    "eager": Attention("eager", None, ()),
    # PyTorch chooses; the record has the kernel that it took.
    "sdpa": Attention("sdpa", None, ("_scaled_dot_product",)),
    "sdpa-math": Attention("sdpa", "MATH", ("_scaled_dot_product_attention_math",)),
    "sdpa-flash": Attention("sdpa", "FLASH_ATTENTION", ("_scaled_dot_product_flash_attention",)),
    "sdpa-efficient": Attention("sdpa", "EFFICIENT_ATTENTION", ("_scaled_dot_product_efficient_attention",)),
    "sdpa-cudnn": Attention("sdpa", "CUDNN_ATTENTION", ("_scaled_dot_product_cudnn_attention",)),
    "flash_attention_2": Attention("flash_attention_2", None, ("flash_attn",)),
    "flash_attention_3": Attention("flash_attention_3", None, ("flash_attn_3",)),
}

# Operators that name a kernel, most specific first: the profiler shows SDPA's dispatcher beside the chosen kernel.
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

# PyTorch's errors on a CPU and on a GPU when the forced backend cannot serve a call; the last is cuDNN's.
_NO_KERNEL = ("No viable backend for scaled_dot_product_attention", "No available kernel", "execution plans")


def get(name: str) -> Attention:
    """Return the choice called ``name``; raise ``StudyError`` if there is none."""
    if name not in CHOICES:
        raise StudyError(f"attention {name!r}: not known; allowed: {', '.join(CHOICES)}")
    return CHOICES[name]


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Allow PyTorch no other SDPA backend than that of ``name`` within this context.

    Raises:
        Unsupported: the backend has no kernel for the device, dtype or shape.
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
    """Return the attention operators that ``run`` launched, from the profiler; ``{"matmul-softmax"}`` if none."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    names = [event.key.split("::") for event in profile.key_averages()]
    kernels = {kernel for kernel in _KERNELS for name in names if name[-1].startswith(kernel)}
    kernels |= {package for package in _PACKAGES for name in names if package in name[:-1]}
    if "_scaled_dot_product_flash_attention_for_cpu" in kernels:
        kernels.discard("_scaled_dot_product_flash_attention")
    return kernels or {"matmul-softmax"}


def prove(name: str, run: Callable[[], object]) -> list[str]:
    """Return the kernels that ``run`` launched, sorted; raise ``Unsupported`` if ``name`` does not allow one."""
    allowed = get(name).operators or ("matmul-softmax",)
    ran = sorted(kernels_that_ran(run))
    # A package by its whole name: flash_attn_3 begins with flash_attn.
    wrong = [kernel for kernel in ran if not (kernel in allowed if kernel in _PACKAGES else kernel.startswith(allowed))]
    if wrong:
        raise Unsupported(f"attention {name!r}: {', '.join(wrong)} ran instead")
    return ran
