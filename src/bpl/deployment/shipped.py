"""Where the network of a run lies, however the run is named."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from bpl.export import ModelFileError
from bpl.paths import results_folder, work_folder
from bpl.records import load_record

DEMO = "demo"  # the name of the trained network that comes with the library
DEMO_FOLDER = Path(__file__).parents[1] / "demo"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Shipped:
    """The network that a run left.

    Attributes:
        weights: its safetensors file, which may not exist; the description lies beside it.
        record: the run's record file, not read yet; None where none is at hand.
    """

    weights: Path
    record: Path | None


def find_shipped(what: str | Path, *, work: Path | None = None, results: Path | None = None) -> Shipped:
    """Find the network that a run left.

    Args:
        what: a run's name, its record file, its folder, either file of a model, or ``demo``.
        work: folder of the runs' networks; None for ``_build/runs``.
        results: folder of the records; None for ``data/results``.

    Returns:
        The files and, where there is one for a run of this name, the record.

    Raises:
        ModelFileError: nothing has that name, or a run has and its network is not at hand.
        RecordError: a record file was named, and it cannot be used.
    """
    work, path = work or work_folder(), Path(what)
    if str(what) == DEMO:
        run = json.loads((DEMO_FOLDER / "card.json").read_text())["run"]
        return _with_record(DEMO_FOLDER / _WEIGHTS, run, results)
    if path.suffix == ".json" and _is_record(path):
        return Shipped(_network_of(load_record(path).name, work), path)
    if path.suffix in (".safetensors", ".json"):
        return _in_folder_of_a_run(path.with_suffix(".safetensors"), results)
    if path.is_dir():
        return _in_folder_of_a_run(path / _WEIGHTS, results)
    if path.name != str(what) or path.is_file():  # no run is called so
        raise ModelFileError(f"{path} is no network, no record and no folder of a run")
    if (work / path.name).is_dir() or _record_of(path.name, results) is not None:
        return _in_folder_of_a_run(_network_of(path.name, work), results)
    runs = sorted(run.name for run in work.iterdir()) if work.is_dir() else []
    near = difflib.get_close_matches(path.name, runs, n=3)
    alike = f"; runs with such a name: {', '.join(near)}" if near else ""
    raise ModelFileError(f"there is no run, file or folder {str(what)!r}{alike}")


def _is_record(path: Path) -> bool:
    """Whether a JSON file is a record and not a model's description; whatever else is wrong, its reader says."""
    try:
        return "schema" in json.loads(path.read_text())
    except (OSError, ValueError, RecursionError, TypeError):
        return False


def _network_of(name: str, work: Path) -> Path:
    """The weights of a run that is known."""
    weights = work / name / _WEIGHTS
    if not weights.is_file():
        raise ModelFileError(
            f"the network of run {name} is not at {weights}: the run has not ended, or it was made on another machine; "
            "bpl run --repeat makes it anew, and --work names another folder of networks"
        )
    return weights


def _record_of(run: str, results: Path | None) -> Path | None:
    """The record of the run of this name, where there is one."""
    folders = sorted(folder for folder in (results or results_folder()).glob("*") if folder.is_dir())
    return next((folder / f"{run}.json" for folder in folders if (folder / f"{run}.json").is_file()), None)


def _in_folder_of_a_run(weights: Path, results: Path | None) -> Shipped:
    """A model's files, with the record of the run that their folder is named by."""
    return _with_record(weights, weights.absolute().parent.name if weights.name == _WEIGHTS else "", results)


def _with_record(weights: Path, run: str, results: Path | None) -> Shipped:
    return Shipped(weights, _record_of(run, results))
