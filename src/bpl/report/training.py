"""What training costs beside the dense network's: tables and sentences from what the benchmarks of steps recorded."""

from dataclasses import dataclass
from pathlib import Path

from bpl.measure import quartiles
from bpl.report.display import Markdown
from bpl.report.latency import where
from bpl.report.measured_files import Values, load_parts
from bpl.report.numbers import NBSP
from bpl.report.rows import ReportError
from bpl.report.tables import MISSING, numbered_table

PRECISIONS = ("float32", "bf16")
# This library's goals: times as fast as a step in the style of the released code, on a CPU; and how much longer than
# its multiply-accumulates suggest a step may take.
AIMS = {"float32": 2.2, "bf16": 4.5}
WITHIN = 0.1
_KINDS = {"dense": "dense", "partners": "with partners, masks held", "slimmed": "with partners, slimmed"}
_STEPS = tuple(f"{kind} {precision}" for kind in _KINDS for precision in PRECISIONS)


@dataclass(frozen=True)
class Steps:
    """Training steps that took turns on one machine, as `benchmarks/training.py` writes them.

    Attributes:
        network: architecture, image size, batch, and the ratio of the masks.
        machine: processor, threads, versions, date, clock, share of other programs.
        macs: step -> multiply-accumulates an image, forward and backward.
        times: step -> milliseconds, one a round.
        parts: step -> part -> its share of the step in percent.
    """

    network: Values
    machine: Values
    macs: dict[str, int]
    times: dict[str, list[float]]
    parts: dict[str, dict[str, float]]

    def ratio(self, one: str, other: str) -> tuple[float, float, float]:
        """Quartiles over the rounds of one step's time over another's."""
        return quartiles([a / b for a, b in zip(self.times[one], self.times[other], strict=True)])


@dataclass(frozen=True)
class WholeTraining:
    """The phases of a BPL training and the dense network's, as `benchmarks/whole_training.py` writes them.

    Attributes:
        network: architecture, image size, batch, ratio.
        machine: processor, threads, versions, date, clock, share of other programs.
        epochs: of the whole training.
        freeze_epoch: after which the network is slimmed.
        macs: phase -> multiply-accumulates an image, forward and backward.
        times: precision -> phase -> milliseconds a step, one a round.
    """

    network: Values
    machine: Values
    epochs: int
    freeze_epoch: int
    macs: dict[str, int]
    times: dict[str, dict[str, list[float]]]

    def of_macs(self) -> float:
        """Multiply-accumulates of the training over those of the dense network's."""
        share = self.freeze_epoch / self.epochs
        return (share * self.macs["partners"] + (1 - share) * self.macs["slimmed"]) / self.macs["dense"]

    def of_time(self, precision: str) -> tuple[float, float, float]:
        """Quartiles over the rounds of the training's time over that of the dense network's."""
        share, times = self.freeze_epoch / self.epochs, self.times[precision]
        rounds = zip(times["dense"], times["partners"], times["slimmed"], strict=True)
        return quartiles([(share * before + (1 - share) * after) / dense for dense, before, after in rounds])


def load_steps(path: Path) -> Steps:
    """Read what `benchmarks/training.py` wrote.

    Args:
        path: its file.

    Raises:
        ReportError: unreadable, of another version, or incomplete; the message names the file and the reason.
    """
    parts = {"network": dict, "machine": dict, "macs": dict, "times": dict, "parts": dict}
    steps = Steps(**load_parts(path, parts, "python benchmarks/training.py"))
    if lacking := [name for name in (*_STEPS, "released") if not steps.times.get(name) or name not in steps.macs]:
        raise ReportError(f"measurements {path} lack the step {lacking[0]!r}")
    return steps


def load_whole(path: Path) -> WholeTraining:
    """Read what `benchmarks/whole_training.py` wrote.

    Args:
        path: its file.

    Raises:
        ReportError: unreadable, of another version, or incomplete; the message names the file and the reason.
    """
    parts = {"network": dict, "machine": dict, "epochs": int, "freeze_epoch": int, "macs": dict, "times": dict}
    whole = WholeTraining(**load_parts(path, parts, "python benchmarks/whole_training.py"))
    for precision in PRECISIONS:
        for phase in ("dense", "partners", "slimmed"):
            if phase not in whole.macs or not whole.times.get(precision, {}).get(phase):
                raise ReportError(f"measurements {path} lack the phase {phase!r} in {precision}")
    return whole


def machine(measured: Steps | WholeTraining) -> Markdown:
    """What was measured, and where, in a sentence.

    Args:
        measured: the measurements.
    """
    m, n = measured.machine, measured.network
    return Markdown(
        f"Measured: {n['arch']}, {n['image_size']} × {n['image_size']} pixels, batch {n['batch']}, ratio "
        f"{n['ratio']:g}; {where(m)}; torch {m['torch']}, {m['date']}."
    )


def aims(steps: Steps) -> Markdown:
    """This library's goals, and what was measured, as a list.

    Args:
        steps: the measurements.
    """
    lines = []
    for precision, aim in AIMS.items():
        held, slimmed = (steps.ratio("released", f"{kind} {precision}") for kind in ("partners", "slimmed"))
        lines.append(
            f"- This library's goal for a step in {precision}: {aim} times as fast as one in the released style. "
            f"Measured with masks held on the whole network: {_spread(held)} times, {_met(held[1] >= aim)}. Measured "
            f"after slimming, which is the same step up to rounding and what the library does from the freeze on: "
            f"{_spread(slimmed)} times, {_met(slimmed[1] >= aim)}."
        )
    for precision in PRECISIONS:
        ours, dense = f"partners {precision}", f"dense {precision}"
        bound, measured = steps.macs[ours] / steps.macs[dense], steps.ratio(ours, dense)
        lines.append(
            f"- The goal for a step with partners in {precision}: at most {100 * WITHIN:.0f} % longer than its "
            f"multiply-accumulates suggest ({bound:.2f} × the dense step). Measured: {_spread(measured)} × the dense "
            f"step, {_met(measured[1] <= (1 + WITHIN) * bound)}."
        )
    return Markdown("\n".join(lines))


def _met(met: bool) -> str:
    return "met" if met else "not met here"


def _spread(values: tuple[float, float, float]) -> str:
    """Median and quartiles, such as "2.10 [2.05, 2.18]"."""
    low, middle, high = values
    return f"{middle:.2f} [{low:.2f},{NBSP}{high:.2f}]"


def steps_table(steps: Steps, caption: str, name: str) -> Markdown:
    """One line a kind of step: time, images a second, and how it stands to the dense and to the released style.

    Args:
        steps: the measurements.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    header = ["Step", "ms", "Images a second", "Of the dense step", "by MACs", "Against the released style"]
    lines = []
    for step in (*_STEPS, "released"):
        kind, _, precision = step.partition(" ")
        dense = f"dense {precision or 'float32'}"
        middle = quartiles(steps.times[step])[1]
        lines.append(
            [
                f"{_KINDS[kind]}, {precision}" if precision else "with partners, released style, float32",
                f"{middle:.0f}",
                f"{1e3 * steps.network['batch'] / middle:.2f}",
                MISSING if kind == "dense" else _spread(steps.ratio(step, dense)),
                MISSING if kind == "dense" else f"{steps.macs[step] / steps.macs[dense]:.2f}",
                MISSING if step == "released" else f"{_spread(steps.ratio('released', step))}{NBSP}×",
            ]
        )
    return Markdown(numbered_table(header, lines, caption, name))


def parts_table(steps: Steps, caption: str, name: str) -> Markdown:
    """Where the time of a step with partners goes.

    Args:
        steps: the measurements.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    parts = list(dict.fromkeys(part for shares in steps.parts.values() for part in shares))
    lines = [
        [step.replace("partners ", ""), *(f"{shares[part]:.1f}" if part in shares else MISSING for part in parts)]
        for step, shares in steps.parts.items()
    ]
    return Markdown(numbered_table(["Share of the step, %", *parts], lines, caption, name))


def whole_sentence(whole: WholeTraining) -> Markdown:
    """What a whole training costs beside the dense network's own, in a sentence.

    Args:
        whole: the measurements.
    """
    n = whole.network
    times = " and ".join(f"{_spread(whole.of_time(precision))} in {precision}" for precision in PRECISIONS)
    less = whole.of_macs() < 1 and all(whole.of_time(precision)[1] < 1 for precision in PRECISIONS)
    return Markdown(
        f"A BPL training of {n['arch']} at ratio {n['ratio']:g} and {n['image_size']} × {n['image_size']} pixels, "
        f"{whole.epochs} epochs with masks that freeze after epoch {whole.freeze_epoch}, computes "
        f"{whole.of_macs():.3f} times as much as the dense network's own training and takes {times} times as long "
        f"(medians and quartiles): {'less of both' if less else 'not less of both'}."
    )


def whole_table(whole: WholeTraining, caption: str, name: str) -> Markdown:
    """The phases of a training: the time of their steps, over the dense network's.

    Args:
        whole: the measurements.
        caption: what the table shows.
        name: label for cross-references, unique in the book.
    """
    header = ["Training", "MACs", *(f"{text}, {p}" for p in PRECISIONS for text in ("ms a step", "of dense"))]
    share, lines = whole.freeze_epoch / whole.epochs, []
    labels = {
        "dense": "dense",
        "partners": f"BPL before the freeze, {100 * share:.0f}{NBSP}% of the epochs",
        "slimmed": "BPL after it",
    }
    for phase, label in labels.items():
        line = [label, f"{whole.macs[phase] / whole.macs['dense']:.3f}"]
        for precision in PRECISIONS:
            times = whole.times[precision]
            line.append(f"{quartiles(times[phase])[1]:.0f}")
            relative = quartiles([a / b for a, b in zip(times[phase], times["dense"], strict=True)])
            line.append("1" if phase == "dense" else _spread(relative))
        lines.append(line)
    whole_line = ["BPL, whole training", f"{whole.of_macs():.3f}"]
    for precision in PRECISIONS:
        whole_line += [MISSING, _spread(whole.of_time(precision))]
    return Markdown(numbered_table(header, [*lines, whole_line], caption, name))
