"""Errors that a user can act on."""

# CPU allocators raise a plain RuntimeError; these are the words they use.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")


class StudyError(Exception):
    """One line that names the key or file, the value, and what is allowed or what to do.

    Raised for bad input; a rule's script prints the line without a traceback.
    """


class NetworkTrouble(StudyError):
    """A StudyError that may mend itself: the network, a server that is overloaded, a download that was cut short."""


class Unsupported(Exception):
    """A configuration cannot run here (device, kernel, model); becomes a record with status ``unsupported``."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on the device or on the host."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
        return True
    if isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in _OUT_OF_MEMORY):
        return True
    # A capture that memory ended fails a second time when it is closed.
    return error.__context__ is not None and is_out_of_memory(error.__context__)
