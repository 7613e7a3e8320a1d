"""Which windows the augmentation shows, how far it turns and shifts: seen on the draws, not on flat images."""

import importlib

import pytest
import torch

batches = importlib.import_module("bpl.data.batches")  # the package has a function of this name
IMAGES = 5000


@pytest.fixture
def draws():
    return batches._Draws(torch.Generator().manual_seed(0), IMAGES)


def test_contrast_is_within_a_fifth_of_the_images_own(draws) -> None:
    image = torch.full((IMAGES, 3, 2, 2), 50.0)
    image[..., 1] = 150
    out = batches._shift_colours(image, draws)[:, 0, 0]
    contrast = 2 * (out[:, 1] - out[:, 0]) / (out[:, 1] + out[:, 0])
    assert 0.799 < contrast.min() < 0.81 and 1.19 < contrast.max() < 1.201


def test_nadir_windows_have_most_of_the_area_a_small_turn_and_any_place(draws, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(batches, "_grid", lambda x, y, batch, size: seen.append((x, y)))
    monkeypatch.setattr(batches, "_sample", lambda *_: None)
    batches._sample_turned(torch.empty(IMAGES, 3, 8, 8), 8, draws)
    ((x, y),) = seen  # rows of the affine maps, (IMAGES, 3) each
    area = (x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).abs()
    assert area.min() > 0.599 and area.max() < 1.001 and abs(area.mean() - 0.8) < 0.01
    turn = torch.atan2(y[:, 0], x[:, 0]).rad2deg() % 90  # beside the quarter turns
    turn = torch.where(turn > 45, turn - 90, turn)
    assert 14 < turn.abs().max() < 15.01 and abs(turn.abs().mean() - 7.5) < 0.3
    room, centre = 1 - area.sqrt(), torch.stack([x[:, 2], y[:, 2]]).abs()
    assert (centre <= room + 1e-6).all() and abs((centre / room).mean() - 0.5) < 0.02


def test_square_crops_move_both_ways(draws) -> None:
    left, top, width, _ = batches._square_windows(torch.empty(IMAGES, 3, 32, 32), draws)
    places = torch.stack([left, top]) / (32 - width)
    assert abs(torch.corrcoef(places)[0, 1]) < 0.05 and ((places.mean(1) - 0.5).abs() < 0.02).all()
