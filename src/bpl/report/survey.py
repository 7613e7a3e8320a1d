"""The measurements behind the latency page, as `bpl bench` writes them: read, checked, and looked up."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bpl.report.measured_files import load_parts
from bpl.report.rows import ReportError

_PARTS = {"network": dict, "machine": dict, "peak": dict, "networks": list, "layers": dict, "times": list}


@dataclass(frozen=True)
class Survey:
    """One architecture on one machine: the dense network and pruned ones, what they cost and how long they take.

    Attributes:
        network: architecture, image size, width, classes.
        machine: processor, threads, versions, date.
        peak: the most multiply-accumulates and bytes a second that the machine reached.
        networks: for each network its name, ratio, rounding, target, MACs, parameters, memory and widths.
        layers: for some networks MACs, least traffic and time of every convolution.
        times: for each network, backend and batch size the time, and how many times faster than the dense network.
    """

    network: dict[str, Any]
    machine: dict[str, Any]
    peak: dict[str, float]
    networks: list[dict[str, Any]]
    layers: dict[str, list[dict[str, Any]]]
    times: list[dict[str, Any]]

    @property
    def dense(self) -> dict[str, Any]:
        """The dense network."""
        return self.networks[0]

    @cached_property
    def prunable(self) -> list[str]:
        """The convolutions that some network of the survey has cut."""
        return [n for n, width in self.dense["widths"].items() if any(w["widths"][n] != width for w in self.networks)]

    @cached_property
    def best_rate(self) -> float:
        """The most multiply-accumulates a second that were seen: in a matrix product, or in the fastest convolution."""
        kernels = (layer["macs"] / layer["ms"] * 1e3 for layers in self.layers.values() for layer in layers)
        return max(self.peak["macs_per_second"], *kernels, 0.0)

    def uniform(self, round_to: int) -> Iterator[dict[str, Any]]:
        """The uniformly pruned networks of one rounding, in the order of their ratios."""
        for entry in self.networks:
            if entry["name"].startswith("ratio ") and entry["round_to"] == round_to:
                yield entry

    def find(self, ratio: float, round_to: int) -> dict[str, Any]:
        """The uniformly pruned network of a ratio and a rounding.

        Raises:
            ReportError: the survey has none.
        """
        for entry in self.uniform(round_to):
            if entry["ratio"] == ratio:
                return entry
        raise ReportError(f"the survey has no network of ratio {ratio:g} rounded to {round_to}")

    def time(self, name: str, backend: str, batch_size: int) -> dict[str, Any]:
        """The time of a network.

        Raises:
            ReportError: it was not measured.
        """
        for row in self.times:
            if (row["network"], row["backend"], row["batch_size"]) == (name, backend, batch_size):
                return row
        raise ReportError(f"the survey has no time of {name!r} under {backend} at batch {batch_size}")

    def removed(self, entry: dict[str, Any], what: str = "macs") -> float:
        """Share of the dense network's MACs (or parameters, or memory) that a network lacks."""
        return 1 - entry[what] / self.dense[what]

    def becomes_time(self, entry: dict[str, Any], backend: str, batch_size: int) -> float:
        """What fraction of the MACs that were removed became time: (1 - t / t_dense) / (1 - MACs / MACs_dense)."""
        saved = 1 - 1 / self.time(entry["name"], backend, batch_size)["speed_up"][1]
        return saved / self.removed(entry)


def load_survey(path: Path) -> Survey:
    """Read a survey.

    Args:
        path: the file that `bpl bench` wrote.

    Raises:
        ReportError: unreadable, of another version, or incomplete; the message names the file and the reason.
    """
    values = load_parts(path, _PARTS, f"bpl bench {Path(path).name}")
    if not values["networks"] or values["networks"][0].get("name") != "dense":
        raise ReportError(f"survey {path} does not begin with the dense network")
    return Survey(**values)
