"""Batches from a data set that lies whole on the device, or on the disk, augmented by one sampling grid per batch.

Every random number comes from a generator on the batch's device, nothing is read back to the host, and no loop runs
over images: a GPU is never kept waiting. The same code runs on the CPU.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from bpl.data.catalog import DataError
from bpl.data.streamed import StreamedImages

POLICIES = ("none", "flip", "released", "crop-flip", "nadir")

_ATTEMPTS = 10  # torchvision's RandomResizedCrop draws that many windows before it falls back to the centre


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes sees; together they see all of it.

    Args:
        number: Which process this is, from 0.
        of: How many there are.
    """

    number: int = 0
    of: int = 1

    def rows(self, total: int) -> slice:
        """Which images of a batch of ``total`` are this process's: as many as every other's.

        Raises:
            DataError: They cannot be divided equally.
        """
        if total % self.of:
            raise DataError(f"a batch of {total} images cannot be divided equally over {self.of} processes.")
        return slice(total // self.of * self.number, total // self.of * (self.number + 1))


ALL = Share()


def batches(
    images: torch.Tensor | StreamedImages,
    labels: torch.Tensor,
    indices: torch.Tensor,
    batch_size: int,
    generator_seed: int | None,
    drop_last: bool = False,
    share: Share = ALL,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Go once through part of a data set.

    Args:
        images: uint8, N x 3 x H x W, on any device, or what stands for them on the disk.
        labels: int64, N, on the same device.
        indices: int64, the part to go through.
        batch_size: Images per batch.
        generator_seed: Seeds the order; ``None`` keeps the order of ``indices``.
        drop_last: Leave out a last batch that is smaller than the others.
        share: What of each batch to give out; the order is that of the whole.

    Returns:
        An iterator over pairs of images (uint8, B x 3 x H x W) and labels (int64, B).

    Raises:
        DataError: The batch size is not positive, no batch would come out, or one cannot be shared.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; allowed are 1 and more.")
    total = len(indices)
    end = total - total % batch_size if drop_last else total
    if end == 0:
        raise DataError(f"{total} images give no batch of {batch_size}; allowed are 1 to {total} images per batch.")
    order = indices.to(images.device)
    if generator_seed is not None:
        generator = torch.Generator(images.device).manual_seed(generator_seed)
        order = order[torch.randperm(total, generator=generator, device=images.device)]
    parts = [chosen[share.rows(len(chosen))] for chosen in order[:end].split(batch_size)]
    if isinstance(images, StreamedImages):
        return zip(images.batches(parts), (labels[chosen] for chosen in parts), strict=True)
    return ((images[chosen], labels[chosen]) for chosen in parts)


def normalise(batch: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Shift and scale pixels to zero mean and unit deviation per channel.

    Args:
        batch: B x 3 x H x W on the scale 0..255, uint8 or what `augment` made of it.
        mean: Per-channel mean, 0..1.
        std: Per-channel standard deviation, 0..1.

    Returns:
        Float, B x 3 x H x W; float32 for uint8, else of the batch's own type.
    """
    dtype = batch.dtype if batch.is_floating_point() else torch.float32
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), batch.device, dtype)
    return batch.to(dtype) * scale + shift


@lru_cache(maxsize=32)
def _scale_and_shift(mean: tuple, std: tuple, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The two constants of `normalise`, copied to the device once instead of at every step."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):  # a constant first made during evaluation has to serve training too
        return tuple(torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1) for values in (scale, shift))


def augment(
    batch: torch.Tensor, policy: str, image_size: int, generator: torch.Generator, share: Share = ALL
) -> torch.Tensor:
    """Change every image of a batch at random, each in its own way.

    Args:
        batch: B x 3 x H x W, uint8 or float; values on any scale whose zero is black.
        policy: ``"none"``; ``"flip"`` (left-right, half of the images); ``"released"`` (torchvision's RandomResizedCrop
            with area 0.08..1 and aspect ratio 3/4..4/3, and flip: what the released BPL code trains with);
            ``"crop-flip"`` (square crops of area 0.6..1, and flip); ``"nadir"`` (for images taken from straight above,
            which have no up: both flips, quarter turns, square crops of area 0.6..1, +-15 degrees, brightness, contrast
            and colour shifts).
        image_size: Height and width of the result, in pixels.
        generator: On the batch's device.
        share: What of a larger batch this is: each image is changed as it would be there.

    Returns:
        Float, B x 3 x image_size x image_size, on the scale of the batch; float32 for uint8.

    Raises:
        DataError: Unknown policy.
    """
    if policy not in POLICIES:
        raise DataError(f"unknown augmentation {policy!r}; allowed are {', '.join(POLICIES)}.")
    if not batch.is_floating_point():
        batch = batch.float()
    draws = _Draws(generator, len(batch), share)
    if policy == "flip":
        flipped = draws.coin().view(-1, 1, 1, 1)
        batch = torch.where(flipped, batch.flip(-1), batch)
    elif policy == "released":
        window = _released_windows(batch, draws)
        batch = _sample_window(batch, *window, image_size, flip=draws.coin())
    elif policy == "crop-flip":
        window = _square_windows(batch, draws)
        batch = _sample_window(batch, *window, image_size, flip=draws.coin())
    elif policy == "nadir":
        batch = _shift_colours(_sample_turned(batch, image_size, draws), draws)
    if batch.shape[-2:] != (image_size, image_size):
        batch = F.interpolate(batch, size=(image_size, image_size), mode="bilinear", antialias=True)
    return batch


@dataclass(frozen=True)
class _Draws:
    """Random numbers for the images of a batch: drawn for the whole of it, given out for the share that is here."""

    generator: torch.Generator
    here: int
    share: Share = ALL

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """float32 numbers in low..high, one per image or B x shape."""
        whole = self.here * self.share.of
        drawn = torch.rand(whole, *shape, generator=self.generator, device=self.generator.device)
        return drawn[self.share.rows(whole)] * (high - low) + low

    def coin(self) -> torch.Tensor:
        """A fair coin per image: bool, B."""
        return self.uniform(0, 1) < 0.5


def _released_windows(batch: torch.Tensor, draws: _Draws) -> tuple[torch.Tensor, ...]:
    """Windows as torchvision's RandomResizedCrop draws them: left, top, width, height in whole pixels, each B."""
    height, width = batch.shape[-2:]
    area = draws.uniform(0.08, 1, _ATTEMPTS) * (height * width)
    ratio = draws.uniform(math.log(3 / 4), math.log(4 / 3), _ATTEMPTS).exp()
    widths = (area * ratio).sqrt().round()
    heights = (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    # The fallback is the largest window in the middle whose ratio is allowed: all of a square image.
    widest, tallest = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    chosen_width = torch.where(found, widths.gather(1, first).squeeze(1), widest)
    chosen_height = torch.where(found, heights.gather(1, first).squeeze(1), tallest)
    # 1 - 2^-24 times a large room rounds up to the room itself: hence the minimum.
    left = (draws.uniform(0, 1) * (width - chosen_width + 1)).floor().minimum(width - chosen_width)
    top = (draws.uniform(0, 1) * (height - chosen_height + 1)).floor().minimum(height - chosen_height)
    left = torch.where(found, left, (width - widest) // 2)
    top = torch.where(found, top, (height - tallest) // 2)
    return left, top, chosen_width, chosen_height


def _square_windows(batch: torch.Tensor, draws: _Draws) -> tuple[torch.Tensor, ...]:
    """Windows of 0.6..1 of the area, of the image's own aspect ratio, anywhere: left, top, width, height, each B."""
    height, width = batch.shape[-2:]
    side = draws.uniform(0.6, 1).sqrt()
    left = draws.uniform(0, 1) * (1 - side) * width
    top = draws.uniform(0, 1) * (1 - side) * height
    return left, top, side * width, side * height


def _sample_window(
    batch: torch.Tensor,
    left: torch.Tensor,
    top: torch.Tensor,
    width: torch.Tensor,
    height: torch.Tensor,
    image_size: int,
    *,
    flip: torch.Tensor,
) -> torch.Tensor:
    """Stretch a window of every image over the whole result, mirrored where ``flip``; B x 3 x size x size."""
    full_height, full_width = batch.shape[-2:]
    scale_x, scale_y = width / full_width, height / full_height
    centre_x = (2 * left + width) / full_width - 1  # -1..1 over the image, as grid_sample counts
    centre_y = (2 * top + height) / full_height - 1
    zero = torch.zeros_like(scale_x)
    rows_x = torch.stack([torch.where(flip, -scale_x, scale_x), zero, centre_x], dim=1)
    rows_y = torch.stack([zero, scale_y, centre_y], dim=1)
    grid = _grid(rows_x, rows_y, batch, image_size)
    # Cropping first and resizing then, as torchvision does, never looks beyond the window's outermost pixel centres.
    centres = torch.stack([centre_x, centre_y], dim=1)[:, None, None, :]
    reach_x, reach_y = scale_x - 1 / full_width, scale_y - 1 / full_height
    reach = torch.stack([reach_x, reach_y], dim=1).clamp(min=0)[:, None, None, :]
    grid = torch.minimum(torch.maximum(grid, centres - reach), centres + reach)
    return _sample(batch, grid, "border")


def _sample_turned(batch: torch.Tensor, image_size: int, draws: _Draws) -> torch.Tensor:
    """Both flips, a quarter turn, +-15 degrees and a window of 0.6..1 of the area, in one affine map per image."""
    side = draws.uniform(0.6, 1).sqrt()
    quarter = (draws.uniform(0, 4)).floor().clamp(max=3) * (math.pi / 2)
    angle = quarter + draws.uniform(-15, 15) * (math.pi / 180)
    mirror_x = 1 - 2 * draws.coin().float()
    mirror_y = 1 - 2 * draws.coin().float()
    centre = draws.uniform(-1, 1, 2) * (1 - side)[:, None]
    cosine, sine = angle.cos() * side, angle.sin() * side
    rows_x = torch.stack([mirror_x * cosine, -mirror_y * sine, centre[:, 0]], dim=1)
    rows_y = torch.stack([mirror_x * sine, mirror_y * cosine, centre[:, 1]], dim=1)
    grid = _grid(rows_x, rows_y, batch, image_size)
    # A turned window's corners may leave the image. Ground goes on there, so mirror it: black wedges would be learnt.
    return _sample(batch, grid, "reflection")


def _grid(rows_x: torch.Tensor, rows_y: torch.Tensor, batch: torch.Tensor, image_size: int) -> torch.Tensor:
    """Where to sample every image for a result of the given size: B x size x size x 2."""
    size = [*batch.shape[:2], image_size, image_size]
    return F.affine_grid(torch.stack([rows_x, rows_y], dim=1), size, align_corners=False)


def _sample(batch: torch.Tensor, grid: torch.Tensor, padding: str) -> torch.Tensor:
    """Bilinear sampling in float32: half precision would place samples whole pixels off."""
    return F.grid_sample(batch.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False).to(
        batch.dtype
    )


def _shift_colours(batch: torch.Tensor, draws: _Draws) -> torch.Tensor:
    """Contrast and brightness +-20 %, each channel +-5 %: factors only, which suit any scale whose zero is black."""
    contrast = draws.uniform(0.8, 1.2, 1, 1, 1)
    brightness = draws.uniform(0.8, 1.2, 1, 1, 1)
    colour = draws.uniform(0.95, 1.05, batch.shape[1], 1, 1)
    grey = batch.mean(dim=(1, 2, 3), keepdim=True)
    return (((batch - grey) * contrast + grey) * (brightness * colour)).to(batch.dtype)
