"""A grid as a graph of jobs, for an engine that spreads them over machines (``workflow/Snakefile``).

A run is done when its record is there, here as in `bpl sweep`. An engine deletes what a job is to make before it starts
the job, and again when the job fails, so records are never named to it as something to make: a job makes an empty
marker, and a run that has a record has no job. Which images there are is found out once, where the graph is made: a job
that sees others fails.
"""

import shlex
import sys
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from bpl.config import RunConfig
from bpl.data import source_of
from bpl.memory import step_memory
from bpl.models import build_model
from bpl.partner import grow_partners
from bpl.records import load_record, record_path
from bpl.sweep.chips import BF16_PEAK
from bpl.sweep.durations import Durations
from bpl.sweep.estimate import UTILISATION, runs_before, size_of, training_macs
from bpl.sweep.local import load_stages

CHIP = "H200"  # that GPU runs are reckoned on where no run of their kind is recorded
MINUTES = 240  # of a run on a CPU of which nothing is known; it is asked for again, longer, where it was too short
MARGIN = 2.0  # minutes asked for over minutes expected: machines differ, and what takes too long is killed
START = 20  # minutes beside the training: decoding of the images, measuring, and the wait for a slow disk
PROCESS = 1500  # MB of a process that holds torch and a small network; 700 to 1,100 were seen
UNKNOWN_IMAGES = 4000  # MB for a data set whose size is not known before it is looked at


@dataclass(frozen=True)
class Campaign:
    """The runs of a grid, and the dense runs that they learn or start from.

    Attributes:
        runs: name -> run, those of the grid in its order, then dense runs that only others need; where the grid leaves
            open whether the images are real (``data: auto``), it is said here.
        wanted: names of the grid's own runs.
        ranks: names in groups of equal worth: one seed of one stage each, the most valuable first.
        records: name -> where the run's record is or will be.
        needed: name -> the runs that have to be done first.
        markers: folder of the jobs' markers.
        out: the results folder; None for the checkout's.
        work: folder of checkpoints, logs and networks; None for ``_build/runs``.
        took: what recorded runs of the grid took.
    """

    runs: dict[str, RunConfig]
    wanted: list[str]
    ranks: list[list[str]]
    records: dict[str, Path]
    needed: dict[str, list[str]]
    markers: Path
    out: Path | None
    work: Path | None
    took: Durations

    @classmethod
    def of_grid(cls, grid: Path, markers: Path, out: Path | None = None, work: Path | None = None) -> "Campaign":
        """The campaign that a grid file stands for.

        Args:
            grid: a YAML or JSON file.
            markers: folder of the jobs' markers.
            out: the results folder; None for the checkout's.
            work: folder of checkpoints, logs and networks; None for ``_build/runs``.

        Raises:
            GridError: a grid that cannot be used.
            RecordError: a record that is there and broken.
            DataError: images that are asked for and not there.
        """
        source = cache(source_of)

        def name_of(config: RunConfig) -> str:
            return config.run_name(source(config.dataset, config.data))

        runs: dict[str, RunConfig] = {}
        ranks: dict[tuple[int, int], list[str]] = {}
        for number, stage in enumerate(load_stages(grid)):
            for config in stage:
                if name_of(config) not in runs:
                    runs[name_of(config)] = config
                    ranks.setdefault((number, config.seed), []).append(name_of(config))
        wanted, needed = list(runs), {}
        for rank in ranks.values():
            for name in rank:  # it grows: what a run needs is worth as much as the run
                needed[name] = [name_of(before) for before in runs_before(runs[name])]
                for before, config in zip(needed[name], runs_before(runs[name]), strict=True):
                    if before not in runs:
                        runs[before] = config
                        rank.append(before)
        records = {name: record_path(run, source(run.dataset, run.data), out) for name, run in runs.items()}
        for name, run in runs.items():
            if run.data == "auto":
                runs[name] = replace(run, data=source(run.dataset, run.data))
        took = Durations()
        for name, path in records.items():
            if path.exists():
                took.add(runs[name], load_record(path).seconds)
        return cls(runs, wanted, list(ranks.values()), records, needed, markers, out, work, took)

    def proof(self, name: str) -> Path:
        """What tells the engine that a run is done: the record where it is there, else the marker that its job makes.

        Args:
            name: the run.
        """
        return self.records[name] if self.records[name].exists() else self.marker(name)

    def marker(self, name: str) -> Path:
        """The empty file that a run's job makes at its end.

        Args:
            name: the run.
        """
        return self.markers / name

    def needs(self, name: str) -> list[Path]:
        """What has to be there before a run starts: the proofs of the dense runs that it learns or starts from.

        Args:
            name: the run.
        """
        return [self.proof(before) for before in self.needed[name]]

    def forget_markers(self) -> None:
        """Remove the markers of runs whose record is gone: the record alone says what is done."""
        for name, path in self.records.items():
            if not path.exists():
                self.marker(name).unlink(missing_ok=True)

    def command(self, name: str, beside: int = 1) -> str:
        """The line of shell that makes a run, or does nothing but show it where it is recorded by then.

        Args:
            name: the run.
            beside: how many runs share the machine, this one included.
        """
        config = self.runs[name]
        words = ["--wait", "--quiet", "--beside", str(beside), "--device", config.device, "--compile", config.compile]
        for option, folder in (("--out", self.out), ("--work", self.work)):
            if folder is not None:
                words += [option, str(folder)]
        return f"{shlex.quote(sys.executable)} -m {config.command()} {shlex.join(words)}"

    def check(self, name: str) -> str:
        """The line of shell that fails, with a sentence, where a run's job has ended and left no record.

        Args:
            name: the run.
        """
        record = shlex.quote(str(self.records[name]))
        said = f"bpl: no record {self.records[name]} after its run: it went to another folder, or used other images"
        return f"{{ test -f {record} || {{ echo {shlex.quote(said)}; exit 1; }}; }}"

    def gpus(self, name: str) -> int:
        """GPUs of a run: one for the paper's own scale, unless the grid says cpu, and where the grid says cuda.

        Args:
            name: the run.
        """
        config = self.runs[name]
        return int(config.device == "cuda" or (config.device == "auto" and config.tier == "paper"))

    def minutes(self, name: str) -> int:
        """Minutes to ask for: by what such runs took, on a GPU by arithmetic where none is recorded.

        Args:
            name: the run.
        """
        config = self.runs[name]
        expected = self.took.of(config)
        if expected is None and self.gpus(name):
            try:
                flops = 2 * training_macs(config, *size_of(config))
                expected = flops / (BF16_PEAK[CHIP] * UTILISATION)
            except ValueError:
                pass  # a folder of one's own, whose size is not known here
        return MINUTES if expected is None else START + round(MARGIN * expected / 60)

    def memory_mb(self, name: str) -> int:
        """Megabytes of the machine's memory to ask for: the process, the images, and on a CPU the training step.

        Args:
            name: the run.
        """
        config = self.runs[name]
        try:
            sides = {config.image_size, config.stored_size}
            images = sum(3 * side**2 * _images(config) for side in sides) / 1e6
        except ValueError:
            images = UNKNOWN_IMAGES
        if self.gpus(name):
            return round(2 * PROCESS + 2 * images)  # the driver and the kernels, and a copy on its way to the device
        networks = config.copies or (2 if config.teacher_epochs is not None or config.method == "fcs_mlft" else 1)
        grown = config.method == "bpl"
        step = _step_mb(config.arch, config.width, config.image_size, config.batch_size, grown)
        return round(PROCESS + 2 * images + networks * step)


def _images(config: RunConfig) -> int:
    """All images of a run's data set, by its card; at most 5 in 3 of those that it trains on."""
    trained_on, _ = size_of(config)
    return round(trained_on / 0.6)


@lru_cache(maxsize=64)
def _step_mb(arch: str, width: int | None, image_size: int, batch_size: int, grown: bool) -> float:
    """Megabytes of a training step in float32."""
    model = build_model(arch, 1000, image_size, width)
    return step_memory(grow_partners(model) if grown else model, image_size, batch_size).total / 1e6
