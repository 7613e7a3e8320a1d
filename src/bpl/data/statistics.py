"""Mean and standard deviation of pixels per channel, from exact integer histograms: the same on every machine."""

import numpy as np

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


class ChannelHistograms:
    """How often each value occurs in each channel of the images added so far."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), dtype=np.int64)

    def add(self, pixels: np.ndarray) -> None:
        """Count more images.

        Args:
            pixels: uint8, N x 3 x H x W.
        """
        for image in pixels:
            for channel in range(3):
                self._counts[channel] += np.bincount(image[channel].reshape(-1), minlength=256)

    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel, 0..1."""
        values = np.arange(256) / 255
        means, deviations = [], []
        for counts in self._counts:
            mean = float((counts * values).sum() / counts.sum())
            variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
            means.append(mean)
            deviations.append(max(variance**0.5, 1 / 255))  # a set of flat images must not divide by zero
        return tuple(means), tuple(deviations)


def channel_statistics(pixels: np.ndarray) -> Statistics:
    """Mean and standard deviation of each channel of a whole data set, 0..1.

    Args:
        pixels: uint8, N x 3 x H x W.
    """
    histograms = ChannelHistograms()
    histograms.add(pixels)
    return histograms.statistics()
