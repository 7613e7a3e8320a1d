"""What the long trials came to: kept in a file, and shown as a table of the book.

    BPL_TRIALS=data/trials.json make test-long      every trial writes its own entry anew
    python tests/trials.py                          the rows of the table in book/scale.md

A trial of the short mode keeps nothing.
"""

import json
import os
import platform
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "data" / "trials.json"


def keep(trial: str, **figures: object) -> None:
    """Write down what a trial came to, where $BPL_TRIALS names a file.

    Args:
        trial: its name.
        figures: what was counted or measured.
    """
    place = os.environ.get("BPL_TRIALS")
    if not place:
        return
    import torch  # not for the table, which any Python prints

    path = ROOT / place  # an absolute one stays what it is
    kept = json.loads(path.read_text()) if path.exists() else {}
    made = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__}
    kept[trial] = figures | {"made": made}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def kept() -> dict[str, dict]:
    """Trial -> what it came to."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def together(trials: dict[str, dict], start: str) -> dict[str, int]:
    """The sums over the trials whose names start so, and how many they are."""
    ones = [figures for name, figures in trials.items() if name.startswith(start)]
    numbers = {key for key, value in ones[0].items() if isinstance(value, int)}
    return {key: sum(one[key] for one in ones) for key in numbers} | {"trials": len(ones)}


def rows(trials: dict[str, dict]) -> str:
    """The table of the book, without its head."""
    runs, campaign, engine = (trials[f"kills of {what}"] for what in ("runs", "a campaign", "Snakemake"))
    chosen, hostile = together(trials, "kills at chosen moments"), together(trials, "hostile inputs")
    disk, memory, two = trials["full disk"], trials["memory"], trials["two processes"]
    lines = [
        (
            "SIGKILL at random moments of a run, every fifth while it writes a file, and the same command again; "
            "at the end record and network are compared, byte for byte, with those of the run left alone",
            f"{runs['kills']} kills of {runs['runs']} runs: {runs['while_writing']} left a half-written file, "
            f"{runs['resumed']} starts found a checkpoint",
            f"{runs['different']} runs differ, {runs['left']} files left over",
        ),
        (
            "SIGKILL at chosen moments: an optimiser step, a checkpoint written and not yet renamed, a checkpoint "
            "renamed; weights and curves compared",
            f"{chosen['kills']} kills of {chosen['runs']} runs",
            f"{chosen['different']} runs differ",
        ),
        (
            "SIGKILL of one or both of two sweeps that share a campaign",
            f"{campaign['kills']} kills, {campaign['runs']} runs",
            f"{campaign['records']} records: {campaign['lost']} lost, {campaign['changed']} changed, "
            f"{campaign['written_twice']} written twice",
        ),
        (
            "SIGKILL of Snakemake and all its jobs",
            f"{engine['kills']} kills, {engine['runs']} runs",
            f"{engine['lost']} runs lost, {engine['repeated']} repeated",
        ),
        (
            "Damaged and hostile files: images, packed images, downloads, records, bundles, checkpoints, grids, "
            "networks",
            f"{hostile['inputs']:,} files of {hostile['trials']} kinds",
            f"{hostile['read']:,} read, {hostile['refused']:,} refused in a sentence, {hostile['crashes']} crashes",
        ),
        (
            "A full disk at every step of every write of a run in turn; then the same command again",
            f"{disk['steps']} steps",
            f"{disk['half_written']} files half-written, {disk['went_on']} times it went on to the end",
        ),
        (
            f"{memory['many']:,} images streamed, {memory['pixels_mb']:,} MB more of pixels than the "
            f"{memory['few']:,} before them",
            "1 pass",
            f"peak memory {memory['own']} → {memory['own_later']} MB, of the largest worker process "
            f"{memory['worker']} → {memory['worker_later']} MB",
        ),
        (
            "The same run by one process and by two",
            f"{two['runs']} runs, of all methods that can be shared",
            f"losses within {two['loss']:.0e} of each other, shipped weights within {two['weight']:.0e}",
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(rows(kept()))
