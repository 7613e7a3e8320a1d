"""The commands of ``bpl``: a dataclass each, whose fields are its words on a command line and whose call does it.

What is imported inside a call takes seconds, or is not needed by the others.
"""

import dataclasses
import inspect
import io
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bpl.cli.knobs import unread, with_readers
from bpl.cli.words import Positional
from bpl.config import RunConfig
from bpl.machine import exit_codes
from bpl.machine.ending import Stopped, on_sigterm
from bpl.machine.processes import rank
from bpl.shown import check_whole

# The fields of RunConfig without its checks: the words are only read here, and the config itself says what is wrong
# with a value.
_Fields = dataclasses.make_dataclass(
    "RunFields", [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(RunConfig)]
)
_Fields.__doc__ = with_readers(inspect.getdoc(RunConfig))


@dataclass
class Run:
    """Run one config to its record, alone or, under torchrun, on several devices; a recorded run is only shown."""

    config: _Fields
    out: Path | None = None
    """Results folder; data/results of the checkout where not given."""
    repeat: bool = False
    """Run again even if there is a record, and replace it."""
    work: Path | None = None
    """Folder for checkpoints, logs and shipped networks; _build/runs of the checkout where not given."""
    time_budget: str | None = None
    """Stop before this is over, with a checkpoint: 90s, 25m, 2h."""
    wait: bool = False
    """Where another process is at work on this run, wait for it."""
    beside: int = 1
    """Runs that share the machine, this one included: recorded, since it bears on the times recorded."""
    quiet: bool = False
    """No progress bar."""

    def __call__(self) -> int:
        from bpl.run import run
        from bpl.sweep import seconds_of

        if self.beside < 1:
            raise ValueError(f"--beside is {self.beside}: it must be at least 1")
        config = RunConfig(**dataclasses.asdict(self.config))
        given = {f.name for f in dataclasses.fields(_Fields) if getattr(self.config, f.name) != f.default}
        if rank() == 0 and (options := unread(given, config)):
            say(f"{config.method} does not read {', '.join(options)}: left out")
        stop_at = None if self.time_budget is None else time.monotonic() + seconds_of(self.time_budget)
        with on_sigterm() as ending:

            def watch(epoch: int, row: dict[str, float]) -> bool:
                return ending.watch(epoch, row) or (stop_at is not None and time.monotonic() > stop_at)

            try:
                record = run(
                    config,
                    folder=self.out,
                    work=self.work,
                    repeat=self.repeat,
                    progress=not self.quiet,
                    watch=watch,
                    beside=self.beside,
                    wait=self.wait,
                )
            except Stopped as stopped:
                code = exit_codes.TERMINATED if ending.asked else stopped.exit_code
                return say(f"{stopped}; start the same command again to go on from there", code)
        if rank() > 0:  # the first process speaks for all
            return exit_codes.DONE
        cost, accuracy = record.cost, record.accuracy
        print(f"{record.name} on {record.data['name']} ({record.data['source']} images)")
        print(f"  top-1 test {accuracy['test']:.2f} %, last epoch's weights")
        per_class = accuracy.get("mean_per_class")  # not in older records
        if per_class is not None and not math.isclose(per_class, accuracy["test"]):
            print(f"  mean over classes {per_class:.2f} %")
        for part, of in (("macs", "MACs"), ("params", "parameters")):
            small, dense = cost[part], cost[f"dense_{part}"]
            print(f"  {of} {dense:,} -> {small:,} ({100 * (small / dense - 1):+.2f} %)")
        print(f"  logits of the shipped network within {record.equivalence['relative_error']:.1e} of the trained one's")
        return 0


@dataclass
class SweepGrid:
    """Run what a grid still lacks, most valuable first."""

    grid: Positional[Path]
    """YAML or JSON file with the runs."""
    jobs: int = 1
    """Runs beside each other: on a GPU when one does not fill it; on a CPU they divide the cores."""
    time_budget: str | None = None
    """Stop before this is over: 90s, 25m, 2h."""
    out: Path | None = None
    """Results folder; data/results of the checkout where not given."""
    work: Path | None = None
    """Folder for checkpoints, logs and shipped networks; _build/runs of the checkout where not given."""
    bundle: Path | None = None
    """A .zip file to keep all records of the results folder in, written anew after every run."""
    compile: str | None = None
    """For all runs off, default, reduce-overhead or max-autotune, whatever the grid says."""
    estimate: bool = False
    """Run nothing: only say how much computation the grid is, and how long a GPU may take."""
    chip: str | None = None
    """With --estimate: which GPU; H200 where not given."""
    price: float | None = None
    """With --estimate: what an hour of it costs, in any currency."""
    quiet: bool = False
    """No progress bars."""

    def __call__(self) -> int:
        from bpl.sweep import load_grid, load_stages, seconds_of, sweep
        from bpl.sweep.durations import in_words

        asked = {name: value for name in ("chip", "price") if (value := getattr(self, name)) is not None}
        budget = None if self.time_budget is None else seconds_of(self.time_budget)
        check_whole("jobs", self.jobs, 1)
        configs = load_grid(self.grid)
        if self.compile is not None:
            configs = [dataclasses.replace(config, compile=self.compile) for config in configs]
        if self.estimate:
            from bpl.sweep.estimate import estimate

            print(estimate(load_stages(self.grid), **asked))
            return 0
        for name, value in asked.items():  # whoever asks for a price does not ask for the runs
            raise ValueError(f"--{name} is {value}: it is allowed with --estimate only")
        done = sweep(
            configs,
            folder=self.out,
            work=self.work,
            budget=budget,
            jobs=self.jobs,
            bundle=self.bundle,
            progress=not self.quiet,
        )
        rest = "" if not done.left or done.estimate is None else f", about {in_words(done.estimate)}"
        print(
            f"{len(configs)} runs: {done.done} recorded before, {done.ran} run now, {len(done.failed)} failed, "
            f"{done.busy} under way elsewhere, {len(done.left)} left{rest}"
        )
        if done.ended:
            return exit_codes.TERMINATED
        if done.failed:
            return exit_codes.FAILED
        return exit_codes.TRY_AGAIN if done.left or done.busy else exit_codes.DONE


@dataclass
class Status:
    """What of a grid, or of the work folder, is done, running, failed and left."""

    grid: Positional[Path | None] = None
    """YAML or JSON file with the runs; all runs that have a folder where not given."""
    out: Path | None = None
    """Results folder; data/results of the checkout where not given."""
    work: Path | None = None
    """Folder of the runs' checkpoints and logs; _build/runs of the checkout where not given."""
    json: bool = False
    """Write it as JSON, all runs."""

    def __call__(self) -> int:
        from bpl.sweep.status import as_json, as_table, status_of_grid, status_of_work

        where = (self.out, self.work)
        status = status_of_work(*where) if self.grid is None else status_of_grid(self.grid, *where)
        print(as_json(status) if self.json else as_table(status))
        return exit_codes.DONE


@dataclass
class Data:
    """Show the data sets and where their images were found; fetch one, or pack one into a file."""

    download: str | None = None
    """Name of a data set to download into --root."""
    root: Path | None = None
    """Folder to look in, and to download into; BPL_DATA, or data of the checkout, where not given."""
    pack: str | None = None
    """Name of a data set to write into the file --to: one file that is a data root itself."""
    to: Path | None = None
    """With --pack: the .zip file."""

    def __call__(self) -> int:
        from bpl.data import CARDS, download, pack_images
        from bpl.data.folders import find_folder, roots

        if (self.pack is None) != (self.to is None):
            raise ValueError("--pack NAME and --to FILE.zip go together")
        if self.pack is not None and self.download is not None:
            raise ValueError(f"--download {self.download} and --pack {self.pack}: one at a time")
        if self.pack is not None:
            print(pack_images(self.pack, self.to))
            return 0
        if self.download is not None:
            print(download(self.download, roots(self.root)[0]))
            return 0
        for card in CARDS.values():
            found = find_folder(card, roots(self.root)) if card.folders else None
            where = "drawn on demand" if not card.folders else str(found[1]) if found else "not found"
            note = f" ({card.note})" if card.note else ""
            print(f"{card.name:10} {card.title}{note}: {where}")
        return 0


@dataclass
class Export:
    """Write a run's network as ONNX, checked on its test images, and with --int8 an 8-bit version of it."""

    run: Positional[str]
    """The run's name, its record, its folder, or a network's safetensors file; demo for the one that comes with bpl."""
    out: Path | None = None
    """Folder to write to; the network's own where not given."""
    int8: bool = False
    """Quantise to 8 bits too, calibrated on training images."""
    data: str = "auto"
    """Where real images are looked for: auto, or a data root."""
    work: Path | None = None
    """Folder of the runs' networks; _build/runs of the checkout where not given."""

    def __call__(self) -> int:
        from bpl.deployment.deploy import export
        from bpl.deployment.shipped import find_shipped

        exported = export(find_shipped(self.run, work=self.work), out=self.out, int8=self.int8, data=self.data)
        report = exported.report
        print(f"checked on {report['checked_on']}")
        for kind in ("onnx", "int8"):
            if kind in report:
                check = report[kind]
                accuracy = f", top-1 {report['accuracy'][kind]:.2f} %" if "accuracy" in report else ""
                print(
                    f"  {kind}: {check['bytes']:,} bytes, class as PyTorch's on {100 * check['same_top1']:.2f} %, "
                    f"logits within {check['largest_difference']:.1e}{accuracy}"
                )
        if "accuracy" in report:
            print(f"  the run's record says {report['accuracy']['record']:.2f} %")
        for file in exported.removed:
            print(f"removed {file}: it was of an earlier export")
        for file in exported.files:
            print(file)
        return 0


@dataclass
class Predict:
    """Classify image files: a CSV line for each, with the five most probable classes."""

    model: Positional[str]
    """demo, an ONNX file that bpl export wrote, or what bpl export takes: a run's name, record, folder or file."""
    images: Positional[tuple[Path, ...]]
    """Image files, and folders to search for them."""
    csv: Path | None = None
    """File to write the lines to; standard output where not given."""
    batch_size: int = 64
    """Images at once."""
    work: Path | None = None
    """Folder of the runs' networks; _build/runs of the checkout where not given."""

    def __call__(self) -> int:
        from bpl.deployment.predict import check_table, classify, find_images, load_classifier, write_table
        from bpl.machine.atomic import check_target, write_atomic

        if self.csv is not None:
            if not self.csv.absolute().parent.is_dir():
                raise ValueError(f"--csv is {self.csv}: its folder does not exist")
            check_target(self.csv)
        classifier = load_classifier(self.model, work=self.work)
        files = find_images(self.images)
        if self.csv is not None:
            check_table(self.csv, self.model, classifier, files)
        predictions = classify(classifier, files, self.batch_size)
        if self.csv is None:
            sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be no text in any encoding
            return 1 if write_table(predictions, len(classifier.classes), sys.stdout, say) else 0
        table = io.StringIO()
        failed = write_table(predictions, len(classifier.classes), table, say)
        if failed < len(files):
            write_atomic(self.csv, table.getvalue().encode(errors="surrogateescape"))
            print(f"{len(files) - failed} of {len(files)} images classified: {self.csv}")
        return 1 if failed else 0


@dataclass
class Bench:
    """Time a network and its pruned versions in turns, and write all that the latency page shows to one file."""

    out: Positional[Path]
    """JSON file to write; the page reads data/latency/*.json."""
    arch: str = "resnet50"
    """Network."""
    image_size: int = 224
    """Height and width of the images in pixels."""
    width: int | None = None
    """Filters of the first stage; None for the network's published width."""
    ratios: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Shares of the filters removed per layer; 0.7 has to be among them."""
    target: float = 0.3
    """Share of the dense network's latency that widths chosen layer by layer have to meet."""
    rounds: int = 7
    """Rounds in which all networks take turns."""
    threads: int | None = None
    """Threads of an operation; as many as torch uses where not given."""
    clock: str = "wall"
    """wall, or processor: with one thread, what counts on a machine that other programs use too."""
    quiet: bool = False
    """No progress bar."""

    def __call__(self) -> int:
        from bpl.deployment.bench import save_survey, survey
        from bpl.machine.atomic import check_target
        from bpl.machine.this_machine import use_threads

        if not all(0 < ratio < 1 for ratio in self.ratios) or 0.7 not in self.ratios:
            raise ValueError(f"--ratios are {self.ratios}: they must be more than 0 and less than 1, 0.7 among them")
        if self.rounds < 1:
            raise ValueError(f"--rounds is {self.rounds}: it must be at least 1")
        if self.out.is_dir():
            raise ValueError(f"{self.out} is a folder: name the JSON file to write")
        check_target(self.out)  # it takes a minute until there is something to write
        if self.threads is not None:
            use_threads(self.threads)
        result = survey(
            self.arch,
            self.image_size,
            width=self.width,
            ratios=self.ratios,
            target=self.target,
            rounds=self.rounds,
            clock=self.clock,
            progress=not self.quiet,
        )
        for row in result["times"]:
            low, middle, high = row["speed_up"]
            print(
                f"{row['backend']:12} batch {row['batch_size']:<3} {row['network']:28} {row['median_ms']:8.2f} ms  "
                f"{middle:5.2f} x dense [{low:.2f}, {high:.2f}]"
            )
        print(save_survey(result, self.out))
        return 0


@dataclass
class MergeRecords:
    """Take the records of bundles into a results folder, after checking every one of them."""

    bundles: Positional[tuple[Path, ...]]
    """The .zip files, as bpl sweep --bundle leaves them."""
    into: Path | None = None
    """Results folder; data/results of the checkout where not given."""
    replace: bool = False
    """Replace records that are there and different."""

    def __call__(self) -> int:
        from bpl.sweep.bundle import merge_bundles

        merged = merge_bundles(list(self.bundles), self.into, replace=self.replace)
        print(f"{merged.added} records added, {merged.same} there already, {merged.replaced} replaced")
        return 0


@dataclass
class BundleRecords:
    """Write all records of a results folder into one file."""

    bundle: Positional[Path]
    """The .zip file to write."""
    out: Path | None = None
    """Results folder; data/results of the checkout where not given."""

    def __call__(self) -> int:
        from bpl.sweep.bundle import write_bundle

        if self.out is not None and not self.out.is_dir():
            raise ValueError(f"--out is {self.out}: there is no such folder of records")
        print(f"{write_bundle(self.bundle, self.out)} records in {self.bundle}")
        return 0


COMMANDS = {
    "run": Run,
    "sweep": SweepGrid,
    "status": Status,
    "data": Data,
    "export": Export,
    "predict": Predict,
    "bench": Bench,
    "records": {"merge": MergeRecords, "bundle": BundleRecords},
}


def say(error: object, code: int = 1) -> int:
    """A sentence on standard error, with the program's name before it and, where several share a run, the process's.

    Args:
        error: the sentence, or what was raised.
        code: the exit code that goes with it.

    Returns:
        The code.
    """
    who = "bpl" if rank() == 0 else f"bpl, process {rank()}"
    print(f"{who}: {error}", file=sys.stderr)
    return code
