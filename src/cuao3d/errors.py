"""Errors that tell users what went wrong and what to do about it.

The command line prints them in one line and exits with code 2. Any other exception is a defect: it shows its traceback
and exits with code 1.
"""


class UserError(Exception):
    """A mistake in what the user gave; the message names the file or option and the cure."""


class InputError(UserError, ValueError):
    """A value, file or folder does not hold what is expected."""


class PoseError(InputError):
    """The pose of a frame is missing, lost, or not a rigid motion."""


class TeacherError(InputError):
    """A teacher does not return what it promises; it would not for any other image."""


class CollapsedError(InputError):
    """Freely learned weights fell to zero or below: from there on the loss falls without bound."""


class UnseenError(InputError):
    """No view saw anything of a scene, so nothing lifted from its views can answer."""


class NotFoundError(UserError, FileNotFoundError):
    """A file, folder, scene or set of weights does not exist."""


class DiskFullError(UserError, OSError):
    """A disk is full or read-only, or a quota is used up: no other file could be written either."""


class KilledError(UserError):
    """A worker process was killed from outside, as where memory ran out."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM asked the program to end, as Ctrl-C does."""


class NotInstalledError(UserError, ImportError):
    """An optional package is not installed."""
