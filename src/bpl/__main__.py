"""``python -m bpl``: the program where it is not installed, as on a rented machine (``PYTHONPATH=src``)."""

from bpl.cli import main

if __name__ == "__main__":  # not where a process of a sweep reads this file again
    main()
