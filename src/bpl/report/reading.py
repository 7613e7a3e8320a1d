"""Rows of what is recorded, each with the scatter of all runs of its images and network.

One difference thereby has one interval, whichever page, table or list shows it.
"""

import dataclasses
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from bpl.config import RunConfig
from bpl.paths import results_folder
from bpl.records import Record, dataset_folder, full_config, iterate_records, load_record, record_path, wanted_values
from bpl.report.rows import COMMON, ReportError, Row, group, images_of, variant_of
from bpl.report.statistics import Scatter, scatter_of


def collect(folder: Path | None = None, **where: Any) -> list[Row]:
    """The recorded rows of one table.

    Args:
        folder: the results folder; None for the checkout's.
        **where: config fields, or ``source``, that must have this value or one of these values.

    Returns:
        Rows in the order of a table: the dense network, then by ratio, the control first; with the scatter of all runs
        of their images and network in the folder.

    Raises:
        RecordError: a file that is no good record.
        ReportError: an unknown field, or records that must not stand in one table.
    """
    known = {field.name for field in dataclasses.fields(RunConfig)} | {"source"}
    if unknown := sorted(where.keys() - known):
        raise ReportError(f"unknown field {unknown[0]!r}: allowed are {', '.join(sorted(known))}")

    def wanted(record: Record) -> bool:
        values = full_config(record) | {"source": record.data["source"]}
        return all(values[key] in wanted_values(value) for key, value in where.items())

    return _with_scatter(group(record for _, record in iterate_records(folder) if wanted(record)), folder)


def recorded(configs: Iterable[RunConfig], source: str = "real", folder: Path | None = None) -> list[Row]:
    """The rows of a campaign, as far as it is recorded: of exactly these runs, whatever else lies in the folder.

    Args:
        configs: the runs, such as `bpl.sweep.load_grid` reads them; of one data set and network.
        source: "real" or "synthetic".
        folder: the results folder; None for the checkout's.

    Returns:
        Rows in the order of a table (`group`), with the scatter of all runs of their images and network in the folder.

    Raises:
        RecordError: a file that is no good record.
    """
    paths = dict.fromkeys(record_path(config, source, folder) for config in configs)  # a run may be spelt twice
    return _with_scatter(group(load_record(path) for path in paths if path.exists()), folder)


def lacking(configs: Iterable[RunConfig], source: str = "real", folder: Path | None = None) -> list[RunConfig]:
    """Which runs of a campaign have no record yet.

    Args:
        configs: the runs, such as `bpl.sweep.load_grid` reads them.
        source: "real" or "synthetic".
        folder: the results folder; None for the checkout's.

    Returns:
        Those without a record, in the given order.
    """
    return [config for config in configs if not record_path(config, source, folder).exists()]


def _with_scatter(rows: list[Row], folder: Path | None) -> list[Row]:
    if not rows:
        return rows
    scatter = _scatter_beside(rows[0], folder or results_folder())
    return [dataclasses.replace(row, scatter=scatter) for row in rows]


def _scatter_beside(row: Row, folder: Path) -> Scatter | None:
    """The scatter of all runs in a folder that have a row's images and network."""
    first = row.records[0]
    place, arms = _place_of(first), {}
    for path in sorted((folder / dataset_folder(first.data["name"], row.source)).glob("*.json")):
        run = _run_of(path, path.stat().st_mtime_ns, place)
        if run is not None:
            variant, seed, top1 = run
            arms.setdefault(variant, {})[seed] = top1
    return scatter_of(list(arms.values()))


def _place_of(record: Record) -> tuple[Any, ...]:
    """Data set, split, network, and which and how many images."""
    config = full_config(record)
    return (*(config[name] for name in COMMON), record.data["source"], *images_of(record))


@cache
def _run_of(path: Path, changed: int, place: tuple[Any, ...]) -> tuple[Any, int, float] | None:
    """What tells a record's row apart, its seed and top-1; None of a run of other images or another network.

    Args:
        path: the record's file.
        changed: when it was, so that a page reads it once and sees what it has become all the same.
        place: of the rows (`_place_of`).
    """
    record = load_record(path)
    if _place_of(record) != place:
        return None
    return variant_of(record), record.config["seed"], record.accuracy["test"]
