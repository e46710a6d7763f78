"""Errors that a user can act on."""


class StudyError(Exception):
    """One line that names the key or file, the value, and what is allowed or what to do.

    Raised for bad input; a rule's script prints the line without a traceback.
    """


class NetworkTrouble(StudyError):
    """A StudyError that may mend itself: the network, a server that is overloaded, a download that was cut short."""


class Unsupported(Exception):
    """A configuration cannot run here (device, kernel, model); becomes a record with status ``unsupported``."""
