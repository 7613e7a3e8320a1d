"""What a chip can do at most: dense bf16 matrix products, the ceiling that a training step is held against."""

import time

import torch

# FLOP/s in bf16 without sparsity, by the vendors' data sheets. Of two names that fit a device the longer counts.
BF16_PEAK: dict[str, float] = {
    "H200": 989e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "A100": 312e12,
}


def known_peak(device_name: str) -> float | None:
    """The data sheet's FLOP/s of a device.

    Args:
        device_name: as `torch.cuda.get_device_name` says it, such as "NVIDIA H100 80GB HBM3".

    Returns:
        FLOP/s; None for a device that is not in the table.
    """
    fitting = [name for name in BF16_PEAK if all(word in device_name for word in name.split())]
    return BF16_PEAK[max(fitting, key=len)] if fitting else None


@torch.no_grad()
def measured_peak(device: torch.device, size: int = 1024, rounds: int = 5) -> float:
    """FLOP/s of a product of two square bf16 matrices, the fastest of some rounds.

    Args:
        device: where.
        size: rows and columns.
        rounds: how often, after one that does not count.
    """
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for turn in range(rounds + 1):
        wait_for(device)
        start = time.perf_counter()
        one @ other
        wait_for(device)
        if turn:
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given, so that the clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
