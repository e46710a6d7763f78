"""Runs under TRITON_INTERPRET=1 in a process of its own: the kernels as NumPy, program after program."""

import sys
from pathlib import Path

from triton.runtime import interpreter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

original = interpreter._patch_lang_tensor


def patched(tensor, scope):
    original(tensor, scope)
    # Triton 3.6 calls int() on an array of shape (1,), which NumPy 2.4 refuses.
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patched
