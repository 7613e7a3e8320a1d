"""How the recipe was chosen: the search on the validation part, as a table."""

import json
from pathlib import Path

from bpl.report.display import Markdown
from bpl.report.tables import numbered_table

_COLUMNS = {
    "split": "Split", "stem": "Stem", "epochs": "Epochs", "batch_size": "Batch", "learning_rate": "Rate",
    "weight_decay": "Weight decay", "stored_size": "Crops from", "label_smoothing": "Smoothing", "cutmix": "CutMix",
    "mixup": "Mixup",
}  # fmt: skip
_RESULT = "validation_last_10_epochs"


def recipe_table(path: Path, caption: str, name: str) -> Markdown:
    """The runs of a search, one line each, the best of each split last.

    Args:
        path: the file of the search, with a list of runs: their settings and the mean top-1 in percent on the
            validation part over the last ten epochs.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table.
    """
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    runs.sort(key=lambda run: (run["split"], run[_RESULT]))
    lines = [[*(_cell(run[key]) for key in _COLUMNS), f"{run[_RESULT]:.2f}"] for run in runs]
    return Markdown(numbered_table([*_COLUMNS.values(), "Validation, %"], lines, caption, name))


def averaging_table(path: Path, caption: str, name: str) -> Markdown:
    """What was tried after the search: other stems, and weights that are averaged over the steps.

    Args:
        path: the file of the search, with a list of later runs: top-1 in percent on the validation part after the last
            epoch, and with averaged weights, by decay.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table.
    """
    runs = json.loads(path.read_text(encoding="utf-8"))["later"]["runs"]
    decays = list(runs[0]["validation_averaged"])
    lines = []
    for run in runs:
        values = [run["validation_last"], *(run["validation_averaged"][decay] for decay in decays)]
        lines.append([run["stem"], str(run["epochs"]), *(f"{value:.2f}" for value in values)])
    titles = ["Stem", "Epochs", "Validation, %", *(f"Averaged, decay {decay}" for decay in decays)]
    return Markdown(numbered_table(titles, lines, caption, name))


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
