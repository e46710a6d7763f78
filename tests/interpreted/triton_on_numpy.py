"""Import before any kernel: makes Triton 3.6's interpreter work with NumPy 2.4."""

from triton.runtime import interpreter

original = interpreter._patch_lang_tensor


def patched(tensor, scope):
    original(tensor, scope)
    # The interpreter calls int() on an array of shape (1,), which NumPy 2.4 refuses.
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patched
