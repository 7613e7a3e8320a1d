"""Where things lie: the checkout, its records, its scratch folder. Environment variables win."""

import os
from collections.abc import Callable
from pathlib import Path


def project_root() -> Path:
    """The checkout this library is imported from, else the current folder (library installed elsewhere)."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "_toc.yml").exists() else Path.cwd()


def results_folder() -> Path:
    """Committed records: ``$BPL_RESULTS``, else ``data/results`` of the checkout."""
    return Path(os.environ.get("BPL_RESULTS") or project_root() / "data" / "results").expanduser()


def work_folder() -> Path:
    """Checkpoints and other things that may be lost: ``$BPL_WORK``, else ``_build/runs`` of the checkout."""
    return Path(os.environ.get("BPL_WORK") or project_root() / "_build" / "runs").expanduser()


def is_there(place: str, is_it: Callable[[Path], bool]) -> bool:
    """Whether something lies at a place that a user named, ``~`` being the home folder.

    Args:
        place: the path.
        is_it: what it has to be, such as ``Path.is_dir``.
    """
    try:
        return is_it(Path(os.path.expanduser(place)))
    except OSError:  # a name that is longer than names may be
        return False
