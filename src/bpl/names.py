"""Names that strangers give: of class folders, of files in archives, of classes in a network's description."""

import unicodedata

_NOT_IN_NAMES = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, ends of lines and paragraphs
_TURNS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # make a name read as another one


def is_plain(name: str) -> bool:
    """Whether a name is one line of text.

    A line break in a class name would forge lines of split files and of tables, an escape character would command the
    terminal that shows it, and bytes that are no text can be written into none of them.

    Args:
        name: any string.
    """
    return bool(name) and not any(unicodedata.category(letter) in _NOT_IN_NAMES or letter in _TURNS for letter in name)
