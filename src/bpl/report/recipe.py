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


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
