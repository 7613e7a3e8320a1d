"""Batches, normalisation and augmentation."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from bpl.data import POLICIES, DataError, augment, batches, normalise
from bpl.data.batches import Share

module = sys.modules["bpl.data.batches"]  # the package's attribute of that name is the function
SIZE = 32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=16, size=SIZE, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(seed))


def test_batches_go_through_every_image_once():
    images, labels = noise(10), torch.arange(10)
    part = torch.tensor([1, 3, 4, 6, 7, 8, 9])
    got = list(batches(images, labels, part, 3, generator_seed=0))
    assert [len(y) for _, y in got] == [3, 3, 1]
    assert sorted(torch.cat([y for _, y in got]).tolist()) == part.tolist()
    for x, y in got:
        assert x.dtype == torch.uint8 and torch.equal(x, images[y])
    assert [len(y) for _, y in batches(images, labels, part, 3, 0, drop_last=True)] == [3, 3]


def test_the_order_is_the_seeds():
    images, labels = noise(20), torch.arange(20)

    def order(seed):
        return torch.cat([y for _, y in batches(images, labels, labels, 4, seed)]).tolist()

    assert order(None) == list(range(20))
    assert order(1) == order(1) != order(2) != list(range(20))


@pytest.mark.parametrize(("count", "size", "drop"), [(5, 0, False), (5, -1, False), (0, 2, False), (5, 6, True)])
def test_impossible_batches_are_refused_at_once(count, size, drop):
    with pytest.raises(DataError, match="allowed are"):
        batches(noise(5), torch.arange(5), torch.arange(count), size, 0, drop)


def test_normalise_is_the_textbook_formula():
    batch, mean, std = noise(), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    expected = (batch / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(normalise(batch, mean, std), expected, atol=1e-5)
    assert torch.allclose(normalise(batch.float(), mean, std), expected, atol=1e-5)
    assert normalise(batch.bfloat16(), mean, std).dtype == torch.bfloat16


def test_constants_made_during_evaluation_serve_training():
    with torch.inference_mode():
        normalise(noise(), (0.11, 0.12, 0.13), (0.2, 0.2, 0.2))
    batch = noise().float().requires_grad_()
    normalise(batch, (0.11, 0.12, 0.13), (0.2, 0.2, 0.2)).sum().backward()
    assert batch.grad is not None


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_shape_flat_images_and_determinism(policy):
    flat = torch.randint(1, 256, (16, 3, 1, 1), generator=generator(5)).expand(-1, -1, SIZE, SIZE).to(torch.uint8)
    out = augment(flat, policy, SIZE, generator())
    assert out.shape == flat.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
    assert torch.allclose(out, out[:, :, :1, :1].expand_as(out), atol=1e-3)
    if policy != "nadir":  # which shifts colours
        assert torch.allclose(out, flat.float(), atol=1e-3)
    images = noise()
    assert torch.equal(augment(images, policy, SIZE, generator(1)), augment(images, policy, SIZE, generator(1)))
    assert torch.equal(augment(images, policy, SIZE, generator(1)), augment(images.float(), policy, SIZE, generator(1)))
    assert augment(images.bfloat16(), policy, SIZE, generator()).dtype == torch.bfloat16
    if policy != "none":
        assert not torch.equal(augment(images, policy, SIZE, generator(1)), augment(images, policy, SIZE, generator(2)))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_result_has_the_size_asked_for(policy):
    assert augment(noise(4, 48), policy, SIZE, generator()).shape == (4, 3, SIZE, SIZE)
    assert augment(noise(4, 24), policy, SIZE, generator()).shape == (4, 3, SIZE, SIZE)


def test_shrinking_is_antialiased():
    stripes = torch.zeros(2, 3, 64, 64)
    stripes[..., ::2] = 255
    assert (augment(stripes, "none", 16, generator()) - 127.5).abs().max() < 20


def test_none_and_flip_are_exact():
    images = noise(400)
    assert torch.equal(augment(images, "none", SIZE, generator()), images.float())
    out = augment(images, "flip", SIZE, generator())
    flipped = (out == images.flip(-1).float()).flatten(1).all(dim=1)
    kept = (out == images.float()).flatten(1).all(dim=1)
    assert (flipped ^ kept).all()
    assert 140 < flipped.sum() < 260  # 200 +- 6 standard deviations


def test_released_windows_are_distributed_as_torchvisions():
    count, size = 20_000, 256
    left, top, width, height = module._released_windows(
        torch.empty(count, 3, size, size), module._Draws(generator(), count)
    )
    for start, length in ((left, width), (top, height)):
        assert (start == start.round()).all() and (length == length.round()).all()
        assert (start >= 0).all() and (start + length <= size).all() and (length >= 1).all()
    # The reference: the same rejection rule, one image after the other.
    areas, ratios, draws = [], [], generator(1)
    for _ in range(count):
        area, ratio = size * size, 1.0
        for u, v in torch.rand(10, 2, generator=draws).tolist():
            a, r = size * size * (0.08 + 0.92 * u), math.exp(math.log(3 / 4) + v * math.log(16 / 9))
            w, h = round(math.sqrt(a * r)), round(math.sqrt(a / r))
            if w <= size and h <= size:
                area, ratio = w * h, w / h
                break
        areas.append(area / size**2)
        ratios.append(math.log(ratio))
    quantiles = torch.linspace(0.02, 0.98, 25)
    for mine, theirs in ((width * height / size**2, areas), ((width / height).log(), ratios)):
        assert torch.allclose(mine.quantile(quantiles), torch.tensor(theirs).quantile(quantiles), atol=0.02)
    assert abs((left / (size - width).clamp(min=1)).mean() - 0.5) < 0.02


def test_released_falls_back_to_the_middle_where_no_window_fits():
    wide = torch.empty(200, 3, 8, 400)
    left, top, width, height = module._released_windows(wide, module._Draws(generator(), 200))
    fallback = (width == 11) & (height == 8) & (left == (400 - 11) // 2)
    assert fallback.any() and (width <= 400).all() and (height <= 8).all() and (top >= 0).all()


@pytest.mark.parametrize("size", [SIZE, 20])
def test_a_sampled_window_is_crop_then_resize(size):
    images = noise(6).float()
    left, top = torch.tensor([0.0, 3, 5, 16, 31, 0]), torch.tensor([0.0, 7, 1, 16, 31, 0])
    width, height = torch.tensor([32.0, 20, 9, 16, 1, 12]), torch.tensor([32.0, 25, 31, 16, 1, 8])
    flip = torch.tensor([False, True, False, True, False, True])
    out = module._sample_window(images, left, top, width, height, size, flip=flip)
    for i in range(6):
        x, y, w, h = (int(v[i]) for v in (left, top, width, height))
        crop = images[i : i + 1, :, y : y + h, x : x + w]
        expected = F.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)
        expected = expected.flip(-1) if flip[i] else expected
        assert torch.allclose(out[i : i + 1], expected, atol=0.05), i


def test_square_crops_cover_0_6_to_1_of_the_area_evenly():
    left, top, width, height = module._square_windows(
        torch.empty(20_000, 3, SIZE, SIZE), module._Draws(generator(), 20_000)
    )
    area = width * height / SIZE**2
    assert torch.equal(width, height) and area.min() >= 0.599 and area.max() <= 1.001 and abs(area.mean() - 0.8) < 0.005
    assert left.min() >= 0 and top.min() >= 0 and (left + width).max() <= SIZE + 1e-3


def test_nadir_shows_all_eight_orientations():
    marked = torch.full((600, 3, SIZE, SIZE), 10.0)
    marked[:, :, 6:14, 2:6] = 250  # a bar off both diagonals: eight distinct orientations
    out = augment(marked, "nadir", SIZE, generator()).mean(dim=1)
    out = out / out.amax(dim=(1, 2), keepdim=True)
    where = torch.linspace(-1, 1, SIZE)
    x = (out * where).sum(dim=(1, 2))
    y = (out * where[:, None]).sum(dim=(1, 2))
    octant = (x > 0).int() * 4 + (y > 0).int() * 2 + (x.abs() > y.abs()).int()
    counts = torch.bincount(octant, minlength=8)
    assert (counts > 20).all(), counts


def test_nadir_turns_without_black_wedges_and_shifts_colours():
    flat = torch.full((200, 3, SIZE, SIZE), 100.0)
    out = augment(flat, "nadir", SIZE, generator())
    level = out[:, :, 0, 0]
    assert level.min() > 100 * 0.8 * 0.94 and level.max() < 100 * 1.2 * 1.06
    assert level.std() > 5 and (level.amax(dim=1) - level.amin(dim=1)).max() > 2


def test_unknown_policies_are_refused():
    with pytest.raises(
        DataError, match="unknown augmentation 'flop'; allowed are none, flip, released, crop-flip, nadir"
    ):
        augment(noise(), "flop", SIZE, generator())


@pytest.mark.parametrize("policy", POLICIES)
def test_processes_that_share_a_batch_see_what_one_would(policy):
    """The same images in the same order, each changed as it would be in the whole batch."""
    images, labels = noise(12), torch.arange(12)
    whole = list(batches(images, labels, labels, 6, 3))
    draws = generator(4)
    changed = [augment(x, policy, SIZE, draws) for x, _ in whole]
    for number in range(3):
        share, draws = Share(number, 3), generator(4)
        parts = list(batches(images, labels, labels, 6, 3, share=share))
        rows = slice(2 * number, 2 * number + 2)
        for (x, y), (all_x, all_y), expected in zip(parts, whole, changed, strict=True):
            assert torch.equal(x, all_x[rows]) and torch.equal(y, all_y[rows])
            assert torch.allclose(augment(x, policy, SIZE, draws, share), expected[rows], atol=1e-3)


def test_a_batch_that_cannot_be_shared_equally_is_refused_at_once():
    labels = torch.arange(10)
    with pytest.raises(DataError, match="a batch of 5 images cannot be divided equally over 2 processes"):
        batches(noise(10), labels, labels, 5, 0, share=Share(0, 2))
    with pytest.raises(DataError, match="a batch of 2 images"):  # the last one
        batches(noise(10), labels, labels, 4, 0, share=Share(0, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_waits_for_the_gpu(policy):
    images, labels = noise(64).cuda(), torch.arange(64).cuda()
    draws = torch.Generator("cuda").manual_seed(0)
    normalise(images, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))  # its constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, _ in batches(images, labels, labels, 16, 0):
            normalise(augment(x, policy, SIZE, draws), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
