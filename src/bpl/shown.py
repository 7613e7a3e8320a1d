"""Values of strangers in messages: a bounded number of characters, and of steps to get there.

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
