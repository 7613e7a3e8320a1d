"""The drawn scenes: the same for everyone, of the right shape, and neither trivial nor hopeless to learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from bpl.data import DataError, load_images
from bpl.data.synthetic import CLASSES, draw_scenes

PER_CLASS, TRAIN_PER_CLASS = 100, 70


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The embedded default at 64 pixels, and which images are for training."""
    images, labels = draw_scenes(64, PER_CLASS)
    return images, labels, np.arange(len(labels)) % PER_CLASS < TRAIN_PER_CLASS


def test_classes_are_uc_merceds():
    assert len(CLASSES) == 21
    assert list(CLASSES) == sorted(set(CLASSES))
    assert {"agricultural", "denseresidential", "storagetanks", "tenniscourt"} <= set(CLASSES)


def test_real_images_of_the_drawn_set_are_refused():
    with pytest.raises(DataError, match="data is 'real', but the data set 'synthetic' is drawn"):
        load_images("synthetic", 8, data="real")


@pytest.mark.parametrize("size", [1, 17, 64, 128])
def test_shapes_dtypes_and_balance(size):
    images, labels = draw_scenes(size, 2)
    assert images.shape == (42, size, size, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.array_equal(np.bincount(labels), np.full(21, 2))


def test_images_use_the_range_and_differ(scenes):
    images, _, _ = scenes
    assert images.min() < 20
    assert images.max() > 235
    assert 60 < images.mean() < 180
    assert (images.std(axis=(1, 2)) > 2).all()  # no blank picture
    assert len({image.tobytes() for image in images}) == len(images)


def test_one_seed_gives_one_set_and_another_seed_another():
    first, again, other = (draw_scenes(32, 2, seed=seed)[0] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_image_does_not_depend_on_how_many_are_drawn():
    few, few_labels = draw_scenes(32, 2, seed=1)
    many, many_labels = draw_scenes(32, 5, seed=1)
    for label in range(len(CLASSES)):
        assert np.array_equal(few[few_labels == label], many[many_labels == label][:2])


def test_a_scene_is_the_same_scene_at_another_size():
    small, large = (draw_scenes(size, 3)[0].astype(np.float64) for size in (32, 128))
    pooled = large.reshape(-1, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    difference = np.abs(small - pooled).mean(axis=(1, 2, 3))
    assert np.median(difference) < 12
    assert np.median(np.abs(small - np.roll(pooled, 1, axis=0)).mean(axis=(1, 2, 3))) > 25  # what a stranger scores


def test_the_global_random_state_is_neither_read_nor_moved():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    draw_scenes(16, 1)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
        ({"image_size": 64.5}, "image_size must be an integer of at least 1, got 64.5"),
        ({"image_size": 64, "images_per_class": -3}, "images_per_class must be an integer of at least 1, got -3"),
        ({"image_size": 64, "images_per_class": 0}, "images_per_class must be an integer of at least 1, got 0"),
        ({"image_size": 64, "seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"image_size": "64"}, "image_size must be an integer of at least 1, got '64'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_scenes(**arguments)


def test_a_linear_classifier_is_not_enough(scenes):
    images, labels, train = scenes
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    # 100 components: the number at which the linear classifier does best; more of them only overfit.
    model = make_pipeline(
        PCA(100, svd_solver="randomized", random_state=0), StandardScaler(), LogisticRegression(C=0.01, max_iter=500)
    )
    accuracy = model.fit(pixels[train], labels[train]).score(pixels[~train], labels[~train])
    assert 0.2 < accuracy < 0.6


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.skip(x))


def _resnet18(width: int = 16) -> nn.Module:
    """A ResNet-18 for 64-pixel images; the test must not depend on the library's own networks."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage in range(4):
        outputs = width * 2**stage
        layers += [_Block(outputs // 2, outputs, 2) if stage else _Block(width, width, 1), _Block(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, len(CLASSES)))


@pytest.mark.slow
def test_a_small_cnn_learns_them(scenes):
    images, labels, train = scenes
    torch.manual_seed(0)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.2)
    targets = torch.from_numpy(labels)
    train_rows, test_rows = (torch.from_numpy(np.flatnonzero(part)) for part in (train, ~train))
    network, epochs, batch = _resnet18(), 12, 64
    steps = len(train_rows) // batch
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    for _ in range(epochs):
        order = train_rows[torch.randperm(len(train_rows))]
        for rows in order[: steps * batch].split(batch):
            x = pixels[rows]
            for axis in (2, 3):
                x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x.flip(axis), x)
            optimizer.zero_grad()
            F.cross_entropy(network(x), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        accuracy = (network(pixels[test_rows]).argmax(1) == targets[test_rows]).float().mean().item()
    assert accuracy > 0.8
