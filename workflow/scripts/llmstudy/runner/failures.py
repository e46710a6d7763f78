"""From an exception to the status and the reason of a record."""

from __future__ import annotations

import math
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError, Unsupported, is_out_of_memory

CHECKOUT = Path(__file__).resolve().parents[4]


def is_without_compiler(error: BaseException) -> bool:
    """Return whether Triton found no C compiler, or that failed, as it does without Python.h."""
    if isinstance(error, subprocess.CalledProcessError) and not isinstance(error.cmd, str):
        return any(str(part).endswith(".c") for part in error.cmd)
    return "Failed to find C compiler" in str(error)


def classify(error: BaseException) -> tuple[str, str]:
    """Return (status, reason in one line) of an exception."""
    message = " ".join(str(error).split())[:400]
    if is_without_compiler(error):
        return "unsupported", (
            "Triton compiles what starts its kernels with a C compiler and Python's headers: install both (on Debian "
            "gcc and python3-dev), or set CC"
        )
    if is_out_of_memory(error):
        return "oom", message or "out of memory"
    if isinstance(error, Unsupported):
        return "unsupported", message
    if isinstance(error, FloatingPointError):
        return "overflow", message
    if isinstance(error, StudyError):
        return "error", message
    return "error", f"{type(error).__name__}: {message}"


def require_finite(value: Any, name: str = "results") -> None:
    """Raise FloatingPointError that names the first number in nested lists and dictionaries that is not finite: no
    record can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise FloatingPointError(f"{name} is {value}")
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        require_finite(part, f"{name}.{key}")


def traceback_tail(error: BaseException, lines: int = 15) -> list[str]:
    """Return the last lines of the traceback, with paths relative to the checkout or the environment: a record is
    published, and folders name users."""
    text = "".join(traceback.format_exception(error))
    for folder in (CHECKOUT, sys.prefix, sys.base_prefix):
        text = text.replace(f"{folder}/", "")
    return text.rstrip().splitlines()[-lines:]
