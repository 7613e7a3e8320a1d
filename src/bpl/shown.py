"""What messages say: values of strangers, in a bounded number of characters and of steps to get there, and errors.

A grid or a description may hold a string of megabytes, or ten lists that hold each other ten times over, whose `repr`
would fill the memory.
"""

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 60
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 8


def shown(value: Any) -> str:
    """A value as a message shows it: its `repr`, cut short where it is long.

    Args:
        value: anything.

    Returns:
        One line.
    """
    try:
        return _SHORT.repr(value).replace("\n", " ")
    except ValueError:  # a whole number of thousands of digits, which Python refuses to write out
        return f"a {type(value).__name__} too long to show"


def check_whole(what: str, value: Any, least: int) -> None:
    """Raise an error for what is no whole number, or too small.

    Args:
        what: the value's name, for the message.
        value: anything.
        least: the smallest that is allowed.

    Raises:
        ValueError: not a whole number (a truth value is none), or below the smallest.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{what} is {shown(value)}: it must be a whole number of at least {least}")


def one_line(error: BaseException) -> str:
    """Why something failed, in one line for a log, a table or a terminal.

    Args:
        error: what was raised.

    Returns:
        The first line of its message; its type where it has none.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def flat(error: BaseException, most: int = 200) -> str:
    """The whole message of an error that may be of many lines, as one, for the end of a sentence.

    Args:
        error: what was raised.
        most: characters to keep.

    Returns:
        Its message, cut off there; its type where it has none.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """The type of an error that may be anything, and why it was raised, in one line.

    Args:
        error: what was raised.
    """
    return f"{type(error).__name__}: {one_line(error)}"
