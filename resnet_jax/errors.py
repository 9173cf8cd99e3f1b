"""The one exception for faults that the person at the keyboard can mend."""


class UserError(ValueError):
    """A wrong input. Its message is one line that names the thing at fault and the mend.

    The command-line programs print the message without a traceback and exit with a status other than 0; library
    users catch it as a ``ValueError``.
    """


def one_line(error: BaseException) -> str:
    """The first line of an exception's message, for quoting inside a ``UserError``."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
