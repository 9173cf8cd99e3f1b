"""The one exception for faults that the user can fix."""


class UserError(ValueError):
    """A fault that the user can fix. Its message is one line that names the fault and the fix.

    The command-line programs print the message without a traceback and exit with a status other than 0; library
    users catch it as a ``ValueError``.
    """


def one_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if that says nothing, for quoting in a ``UserError``."""
    lines = str(error).strip().splitlines()
    if not lines or isinstance(error, LookupError):  # A KeyError's message is the bare key.
        return " ".join([type(error).__name__, *lines[:1]])
    return lines[0]
