"""Records: one JSON file a finished run, the only source of the book's numbers.

A record is written whole or not at all, and read with its schema checked: a corrupt file, or one of another schema
version, is an error that names the file.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpl.config import RunConfig, readable_name
from bpl.data import CARDS
from bpl.data.catalog import name_of_folder
from bpl.machine.atomic import write_atomic
from bpl.paths import results_folder
from bpl.shown import shown

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
_TABLES = ("config", "data", "accuracy", "curves", "cost", "equivalence", "widths", "environment")
_NUMBERS = (  # that tables are made of
    ("accuracy", "test"),
    ("cost", "macs"),
    ("cost", "params"),
    ("cost", "dense_macs"),
    ("cost", "dense_params"),
    ("cost", "training_macs"),
    ("cost", "latency", "median_ms"),
    ("cost", "dense_latency", "median_ms"),
    ("equivalence", "relative_error"),
    ("seconds",),
)
_DIVISORS = ("dense_macs", "dense_params")


class RecordError(ValueError):
    """A record that cannot be used; the message names the file and the reason in one sentence."""


@dataclass(frozen=True)
class Record:
    """What a finished run leaves.

    Attributes:
        name: name of the run, also of its file.
        config: all fields of its `RunConfig`.
        data: source ("real" or "synthetic"), digest of the images, digest of the split, sizes of its parts, classes.
        accuracy: top-1 in percent: test and validation at the last epoch, test averaged over classes (not in records
            from before it was measured), test at the best validation epoch, and the best test epoch (only to stand
            beside numbers that were picked that way).
        curves: per epoch: training loss, learning rate, validation and test top-1, and what the method adds.
        cost: MACs and parameters of the dense and of the shipped network, latency of both, MACs spent in training.
        equivalence: how far the shipped network's logits are from the trained one's.
        widths: filters of each convolution of the shipped network.
        environment: versions, machine, device, digest of the library's source; `trained_by`, those of all versions of
            the library that trained it, where a run went on with another one.
        seconds: wall time of the training.
        state: always "finished".
        schema: version of this layout.
    """

    name: str
    config: dict[str, Any]
    data: dict[str, Any]
    accuracy: dict[str, float | None]
    curves: dict[str, list[float]]
    cost: dict[str, Any]
    equivalence: dict[str, float]
    widths: dict[str, int]
    environment: dict[str, Any]
    seconds: float
    state: str = "finished"
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The record as the text of its file; a list of numbers stands on one line."""
        lines = []
        for key, value in dataclasses.asdict(self).items():
            if isinstance(value, dict):
                inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
                lines.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}" if inner else f"  {json.dumps(key)}: {{}}")
            else:
                lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def record_path(config: RunConfig, source: str, folder: Path | None = None) -> Path:
    """Where the record of a run lies: ``<folder>/<dataset>/<name>.json``.

    Args:
        config: the run.
        source: "real" or "synthetic"; drawn scenes that stand in for a data set have a folder of their own.
        folder: the results folder; None for the checkout's.
    """
    dataset = config.dataset if config.dataset in CARDS else name_of_folder(config.dataset)
    return (folder or results_folder()) / dataset_folder(dataset, source) / f"{config.run_name(source)}.json"


def dataset_folder(name: str, source: str) -> str:
    """Name of the folder of a data set's records: one of its own where drawn scenes stand in for its images.

    Args:
        name: the data set's name.
        source: "real" or "synthetic".
    """
    return f"{name}-drawn" if source == "synthetic" and name != "synthetic" else name


def save_record(record: Record, path: Path) -> Path:
    """Write a record, whole or not at all.

    Args:
        record: the finished run.
        path: its file; the folder is made.

    Returns:
        The path.

    Raises:
        OSError: the file could not be written; an older one is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, record.to_json().encode())
    return path


def load_record(path: Path) -> Record:
    """Read one record.

    Args:
        path: its file.

    Returns:
        The record.

    Raises:
        RecordError: unreadable, not JSON, of another schema version, unfinished, with missing or unknown keys, without
            a number that tables need, or not of the run that its file is named after.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"record {path} cannot be read: {error}") from error
    record = parse_record(content, str(path))
    if record.name != path.stem:
        raise RecordError(f"record {path} is of the run {shown(record.name)}: its file must be named so")
    return record


def parse_record(content: bytes, where: str) -> Record:
    """Read one record from the content of its file.

    Args:
        content: the file's bytes.
        where: names the file in an error's message.

    Returns:
        The record.

    Raises:
        RecordError: not JSON, of another schema version, unfinished, with missing or unknown keys, or without a number
            that tables need.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"record {where} cannot be read: {error}") from error
    if not isinstance(values, dict) or "schema" not in values:
        raise RecordError(f"record {where} is no record: it has no 'schema'")
    if values["schema"] != SCHEMA:
        raise RecordError(f"record {where} has schema version {shown(values['schema'])}: this library reads {SCHEMA}")
    fields = {f.name for f in dataclasses.fields(Record)}
    if missing := sorted(fields - values.keys()):
        raise RecordError(f"record {where} lacks {', '.join(missing)}")
    if unknown := sorted(values.keys() - fields):
        raise RecordError(f"record {where} has unknown keys: {shown(unknown)}")
    if values["state"] != "finished":
        raise RecordError(f"record {where} is in state {shown(values['state'])}: only finished runs count")
    for key in _TABLES:
        if not isinstance(values[key], dict):
            raise RecordError(f"record {where} has {key} {shown(values[key])}: it must be a mapping")
    _check_values(values, where)
    return Record(**values)


def _check_values(values: dict[str, Any], where: str) -> None:
    """Refuse what no table could be made of, before it counts as a finished run."""

    def refuse(name: str, value: Any, must: str) -> None:
        raise RecordError(f"record {where} has {name} {shown(value)}: it must be {must}")

    if not isinstance(values["name"], str):
        refuse("name", values["name"], "a text")
    config = values["config"]
    for key in ("dataset", "method", "arch", "split"):
        if not isinstance(text := config.get(key), str):
            refuse(f"config.{key}", text, "a text")
    for key in ("ratio", "seed"):
        if not _is_finite(number := config.get(key)):
            refuse(f"config.{key}", number, "a finite number")
    begins = readable_name(config["method"], config["arch"], config["ratio"], config["seed"])
    if not values["name"].startswith(f"{begins}-"):
        refuse("name", values["name"], f"that of the run of its config, {begins}-...")
    for key in ("source", "name", "digest", "split_digest"):
        if not isinstance(text := values["data"].get(key), str):
            refuse(f"data.{key}", text, "a text")
    if values["data"]["source"] not in ("real", "synthetic"):
        refuse("data.source", values["data"]["source"], "real or synthetic")
    for keys in _NUMBERS:
        value: Any = values
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise RecordError(f"record {where} lacks a number of its table row: {'.'.join(keys)}")
        if not _is_finite(value):
            refuse(".".join(keys), value, "a finite number")
    for key in _DIVISORS:
        if values["cost"][key] <= 0:
            refuse(f"cost.{key}", values["cost"][key], "greater than 0")
    for rule, value in values["accuracy"].items():
        most = math.inf if rule.endswith("_epoch") else 100
        if value is not None and not (_is_finite(value) and 0 <= value <= most):
            refuse(f"accuracy.{rule}", value, "a finite number" if most == math.inf else "a percentage")
    if values["seconds"] < 0:
        refuse("seconds", values["seconds"], "at least 0")
    for name, curve in values["curves"].items():
        if not isinstance(curve, list):
            refuse(f"curves.{name}", curve, "a list")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all that float can hold
        return False


def check_images(record: Record, path: Path, digest: str, images: int) -> None:
    """Refuse a record that was made from other images than those at hand.

    A folder's path does not tell them apart: a relative one means another folder elsewhere, and images are exchanged.
    A published data set is what its name and its number of images say, whatever its files' format and the version of
    their decoder.

    Args:
        record: the record of a run.
        path: its file.
        digest: of the images at hand (`bpl.data.ImageSet`).
        images: how many are at hand.

    Raises:
        RecordError: the record is of other images.
    """
    of = record.data.get("digest")
    if of == digest:
        return
    if record.config.get("dataset") in CARDS:
        parts = [record.data.get(part) for part in ("train", "validation", "test")]
        if record.config.get("split") == "aitlas" or sum(size for size in parts if isinstance(size, int)) == images:
            return  # a published split leaves images out
        said, here = f"{'+'.join(shown(size) for size in parts)} images", f"{images} images"
    else:
        said, here = f"digest {shown(of[:12] if isinstance(of, str) else of)}", shown(digest[:12])
    raise RecordError(
        f"record {path} was made from other images ({said}) than those at hand ({here}): "
        "bpl run with --repeat makes it anew and replaces it, another --out and --work keep it"
    )


def iterate_records(folder: Path | None = None) -> Iterator[tuple[Path, Record]]:
    """All records below a results folder, in the order of their paths."""
    for path in sorted((folder or results_folder()).glob("*/*.json")):
        if not (path.name.startswith(".") or path.parent.name.startswith(".")):  # what systems leave beside files
            yield path, load_record(path)


def load_records(folder: str | Path | None = None, **where: Any) -> "pandas.DataFrame":
    """The records as a table, one row a run.

    Args:
        folder: the results folder; None for the checkout's.
        **where: columns that must have this value, or one of these values, such as ``dataset="ucm"``,
            ``method=["bpl", "scratch"]``, ``source="real"``.

    Returns:
        A data frame with the config's fields, ``source``, the accuracies (percent), ``macs``, ``params``,
        ``macs_reduction`` and ``params_reduction`` (percent), ``latency_ms``, ``training_macs``, ``seconds`` and
        ``path`` (relative to the folder).

    Raises:
        RecordError: a file that is no good record, or a folder that does not exist.
        ValueError: a column that does not exist.
    """
    import pandas

    if folder is not None and not Path(folder).is_dir():
        raise RecordError(f"results folder {folder} does not exist")
    folder = Path(folder or results_folder())
    rows = [_row(path.relative_to(folder), record) for path, record in iterate_records(folder)]
    table = pandas.DataFrame(rows, columns=list(dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)])))
    for column, wanted in where.items():
        if column not in table:
            raise ValueError(f"unknown column {column!r}: allowed are {', '.join(table)}")
        values = wanted_values(wanted)
        table = table[table[column].isin(values) | (table[column].isna() & (None in values))]
    return table.reset_index(drop=True)


def wanted_values(wanted: Any) -> list[Any]:
    """The values that a field may have, of which one or several are given.

    Args:
        wanted: a value, or values in whatever holds them (a list, a range, a set, an array).
    """
    several = isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes)
    return list(wanted) if several else [wanted]


# The columns of a table, in their order; records may hold more ways of choosing the epoch.
_COLUMNS = [
    *(f.name for f in dataclasses.fields(RunConfig)),
    "source",
    "test",
    "mean_per_class",
    "validation",
    "test_at_best_validation",
    "best_validation_epoch",
    "best_test",
    "best_test_epoch",
    "macs",
    "params",
    "macs_reduction",
    "params_reduction",
    "latency_ms",
    "training_macs",
    "seconds",
    "path",
]
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not dataclasses.MISSING}


def full_config(record: Record) -> dict[str, Any]:
    """A record's config with every field: knobs that are younger than the record have their defaults.

    Unlike a `RunConfig`, it can be had of a record whose data set is a folder that is not here.
    """
    return _DEFAULTS | record.config


def _row(path: Path, record: Record) -> dict[str, Any]:
    cost = record.cost
    return {
        **full_config(record),
        "source": record.data["source"],
        **record.accuracy,
        "macs": cost["macs"],
        "params": cost["params"],
        "macs_reduction": 100 * (1 - cost["macs"] / cost["dense_macs"]),
        "params_reduction": 100 * (1 - cost["params"] / cost["dense_params"]),
        "latency_ms": cost["latency"]["median_ms"],
        "training_macs": cost["training_macs"],
        "seconds": record.seconds,
        "path": path.as_posix(),
    }


def _digest_of_source() -> str:
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


_SOURCE = _digest_of_source()  # now, not when a record is written hours later: files may have been edited meanwhile


def source_digest() -> str:
    """SHA-256 (first 16 hex digits) over the library's Python files as imported: which code made a record."""
    return _SOURCE
