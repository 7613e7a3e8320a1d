"""The command line, ``bpl``."""

from bpl.cli.program import main

__all__ = ["main"]
