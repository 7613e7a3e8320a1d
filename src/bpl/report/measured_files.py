"""Files of measurements that the book shows, as `bpl bench` and the scripts in benchmarks/ write them."""

import json
from pathlib import Path
from typing import Any

from bpl.report.rows import ReportError

SCHEMA = 1
Values = dict[str, Any]


def load_parts(path: Path, parts: dict[str, type], command: str) -> Values:
    """Read a file of measurements.

    Args:
        path: the file.
        parts: what must be in it -> of which type.
        command: what writes such a file, for messages.

    Returns:
        The parts.

    Raises:
        ReportError: unreadable, of another version, or incomplete; the message names the file and the reason.
    """
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ReportError(f"measurements {path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ReportError(f"{path} is no measurement of version {SCHEMA}: `{command}` makes one")
    for name, kind in parts.items():
        if not isinstance(values.get(name), kind):
            raise ReportError(f"measurements {path} lack {name!r}, or it is no {kind.__name__}")
    return {name: values[name] for name in parts}
