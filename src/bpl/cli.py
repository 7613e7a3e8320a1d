"""The command line: ``bpl run``, ``bpl sweep``, ``bpl data``, ``bpl export``.

Exit codes: 0 done, 1 a run failed (disk full, loss not finite), 2 bad input (one sentence on standard error).
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bpl.config import RunConfig

Positional = tyro.conf.Positional

# The fields of RunConfig without its checks: tyro only reads the words, and the config itself says what is wrong with
# a value, in one sentence instead of a box.
_Fields = dataclasses.make_dataclass(
    "RunFields", [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(RunConfig)]
)
_Fields.__doc__ = RunConfig.__doc__


@dataclass
class Run:
    """Run one config to its record; a recorded run is only shown."""

    config: tyro.conf.OmitArgPrefixes[_Fields]
    out: Path | None = None
    """Results folder; data/results of the checkout where not given."""
    repeat: bool = False
    """Run again even if there is a record, and replace it."""
    quiet: bool = False
    """No progress bar."""

    def __call__(self) -> int:
        from bpl.run import run

        config = RunConfig(**dataclasses.asdict(self.config))
        record = run(config, folder=self.out, repeat=self.repeat, progress=not self.quiet)
        cost, accuracy = record.cost, record.accuracy
        print(f"{record.name} on {record.data['name']} ({record.data['source']} images)")
        print(f"  top-1 test {accuracy['test']:.2f} %, last epoch's weights")
        for part, of in (("macs", "MACs"), ("params", "parameters")):
            small, dense = cost[part], cost[f"dense_{part}"]
            print(f"  {of} {dense:,} -> {small:,} ({100 * (small / dense - 1):+.2f} %)")
        print(f"  logits of the shipped network within {record.equivalence['relative_error']:.1e} of the trained one's")
        return 0


@dataclass
class SweepGrid:
    """Run what a grid still lacks, most valuable first."""

    grid: Positional[Path]
    """YAML file with the runs."""
    time_budget: str | None = None
    """Stop before this is over: 90s, 25m, 2h."""
    out: Path | None = None
    """Results folder; data/results of the checkout where not given."""
    work: Path | None = None
    """Folder for checkpoints and shipped networks; _build/runs of the checkout where not given."""
    quiet: bool = False
    """No progress bars."""

    def __call__(self) -> int:
        from bpl.sweep import load_grid, seconds_of, sweep

        budget = None if self.time_budget is None else seconds_of(self.time_budget)
        configs = load_grid(self.grid)
        done = sweep(configs, folder=self.out, work=self.work, budget=budget, progress=not self.quiet)
        estimate = "" if not done.left or done.estimate is None else f", about {done.estimate / 60:.0f} min"
        print(
            f"{len(configs)} runs: {done.done} recorded before, {done.ran} run now, {len(done.failed)} failed, "
            f"{done.busy} under way elsewhere, {len(done.left)} left{estimate}"
        )
        return 1 if done.failed else 0


@dataclass
class Data:
    """Show the data sets and where their images were found; with --download fetch one."""

    download: str | None = None
    """Name of a data set to download into --root."""
    root: Path = Path("data")
    """Folder to download into."""

    def __call__(self) -> int:
        from bpl.data import CARDS, download
        from bpl.data.folders import find_folder, roots

        if self.download is not None:
            print(download(self.download, self.root))
            return 0
        for card in CARDS.values():
            found = find_folder(card, roots()) if card.folders else None
            where = "drawn on demand" if not card.folders else str(found[1]) if found else "not found"
            print(f"{card.name:10} {card.title}: {where}")
        return 0


@dataclass
class Export:
    """Write a run's shipped network as ONNX beside its safetensors."""

    model: Positional[Path]
    """The network's safetensors file, as `bpl run` leaves it."""
    onnx: Path | None = None
    """File to write; the model's name with .onnx where not given."""

    def __call__(self) -> int:
        from bpl.export import ModelFileError, export_onnx, load_model, read_description

        arch = read_description(self.model)["arch"]
        if arch is None:
            raise ModelFileError(f"{self.model} names no network of build_model: export it from Python")
        print(export_onnx(load_model(self.model), self.onnx or self.model.with_suffix(".onnx"), arch["image_size"]))
        return 0


_Command = (
    Annotated[Run, tyro.conf.subcommand("run", prefix_name=False)]
    | Annotated[SweepGrid, tyro.conf.subcommand("sweep", prefix_name=False)]
    | Annotated[Data, tyro.conf.subcommand("data", prefix_name=False)]
    | Annotated[Export, tyro.conf.subcommand("export", prefix_name=False)]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``bpl``.

    Args:
        arguments: the words of the command line; None for the process's own.
    """
    try:
        command = tyro.cli(_Command, prog="bpl", args=arguments, description=__doc__.splitlines()[0])
        code = command()
    except ValueError as error:
        code = _say(error, 2)
    except (OSError, ArithmeticError) as error:
        code = _say(error, 1)
    except KeyboardInterrupt:
        code = _say("interrupted; start the same command again to go on from the last checkpoint", 130)
    sys.exit(code)


def _say(error: object, code: int) -> int:
    print(f"bpl: {error}", file=sys.stderr)
    return code
