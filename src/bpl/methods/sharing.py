"""What a run must be like for several processes to share it, with the result that one process would have."""

from bpl.config import RunConfig
from bpl.machine import processes
from bpl.methods import REGISTRY


def check_shared(config: RunConfig) -> None:
    """Refuse a run that the processes that were started cannot share with the result that one process would have.

    Args:
        config: the run.

    Raises:
        ValueError: its method, its batch size, its loss or its compiling does not allow it; says what would.
    """
    count = processes.count()
    if count == 1:
        return
    able = [name for name, method in REGISTRY.items() if method.shares_batches]
    if config.method not in able:
        raise ValueError(
            f"method {config.method!r} runs in one process, and {count} were started: those that several processes can "
            f"share are {', '.join(able)}"
        )
    if config.batch_size % count:
        raise ValueError(
            f"batch_size is {config.batch_size}: with {count} processes it must be a multiple of {count}, "
            "since it is divided over them"
        )
    if config.diversity_form is not None and config.diversity_form.startswith("feature"):
        raise ValueError(
            f"diversity_form is {config.diversity_form!r}, a cosine over all images of a batch: {count} processes "
            "cannot share it; allowed are the forms that look at kernels"
        )
    if config.compile != "off":
        raise ValueError(f"compile is {config.compile!r}: with {count} processes it must be off")
