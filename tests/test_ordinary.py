"""Layers that only look like convolutions, normalisations and linear layers, and forward passes that count channels."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpl
from bpl.channels.ordinary import is_ordinary_conv, is_ordinary_linear, is_ordinary_norm


class Activated(nn.Conv2d):
    def forward(self, x):
        return F.relu(super().forward(x))  # scales with a positive factor, but is not additive


class OnlyInEvaluation(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else F.leaky_relu(y)


class WithoutBias(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, None, self.stride, self.padding)


class Mirrored(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.flip(-1)).flip(-1)  # odd, and still linear in its weights


@pytest.mark.parametrize("kind", [Activated, OnlyInEvaluation, WithoutBias])
def test_a_subclass_that_is_not_linear_in_its_weights_is_no_convolution(kind):
    assert not is_ordinary_conv(kind(3, 4, 3, bias=False))


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 4, "bias": False}, {"stride": 2, "dilation": 2}])
def test_a_subclass_that_is_stays_one(options):
    conv = Mirrored(4, 8, 3, padding=1, **options)
    before = copy.deepcopy(conv.state_dict())
    assert is_ordinary_conv(conv)
    assert all(torch.equal(before[name], value) for name, value in conv.state_dict().items())  # tried on a copy


class Normalisation(nn.BatchNorm2d):
    """Goes on with what the normalisation gives, by a function of the class."""

    then = staticmethod(F.relu)

    def forward(self, x):
        return self.then(super().forward(x))


class Shuffled(Normalisation):
    then = staticmethod(lambda x: x.flip(1))


class Gated(Normalisation):
    then = staticmethod(lambda x: x * x.mean(1, keepdim=True).sigmoid())


class Counted(Normalisation):
    then = staticmethod(lambda x: x / x.shape[1])


@pytest.mark.parametrize("kind", [Shuffled, Gated, Counted])
def test_a_normalisation_that_looks_at_other_channels_is_none(kind):
    assert not is_ordinary_norm(kind(8))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 28 * 28, 2))
    assert set(bpl.prune_masks(net, 0.5)) == {"2"}  # the convolution that it normalises keeps its filters


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_a_normalisation_with_an_activation_is_one(options, channels):
    norm = Normalisation(channels, **options)
    before = copy.deepcopy(norm.state_dict())
    assert is_ordinary_norm(norm)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_a_forward_pass_given_to_the_layer_itself_is_seen():
    conv, norm, linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
    assert is_ordinary_conv(conv) and is_ordinary_norm(norm) and is_ordinary_linear(linear)
    for layer, is_ordinary in ((conv, is_ordinary_conv), (norm, is_ordinary_norm), (linear, is_ordinary_linear)):
        layer.forward = types.MethodType(lambda self, x: type(self).forward(self, x).sigmoid(), layer)
        assert not is_ordinary(layer)
    padded = nn.Conv2d(3, 4, 3, padding=1)
    padded._conv_forward = types.MethodType(lambda self, x, w, b: F.conv2d(F.pad(x, (1,) * 4, value=1), w, b), padded)
    assert not is_ordinary_conv(padded)


class CountsChannels(nn.Module):
    """Divides by the root of the number of channels, asked for in one of several ways."""

    def __init__(self, ask):
        super().__init__()
        self.ask = ask
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images):
        x = F.relu(self.nb(self.b(F.relu(self.na(self.a(images))))))
        return self.ask(self, x)


def in_the_middle(net, x):
    return net.fc((x * x.size(dim=1) ** -0.5).mean((2, 3)))


def when_flat(net, x):
    x = x.mean((2, 3))
    return net.fc(x * x.shape[-1] ** -0.5)


def when_almost_flat(net, x):
    x = x.mean(3)
    return net.fc((x * x.shape[-2] ** -0.5).mean(2))


def in_all(net, x):
    return net.fc((x * x.shape.numel() ** -0.5).mean((2, 3)))


@pytest.mark.parametrize("ask", [in_the_middle, when_flat, when_almost_flat, in_all])
def test_a_number_of_channels_that_is_computed_with_keeps_them_all(ask):
    torch.manual_seed(0)
    net = CountsChannels(ask).double().eval()
    masks = bpl.prune_masks(net, 0.5)
    bpl.apply_masks(net, masks)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert "b" not in masks and "a" in masks
    torch.testing.assert_close(bpl.slim(copy.deepcopy(net), masks)(images), net(images), rtol=1e-12, atol=1e-12)


def test_a_partnered_convolution_is_called_by_keyword_too():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(input=x))

    net = bpl.grow_partners(Keyword()).eval()
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(bpl.fuse_partners(copy.deepcopy(net))(images), net(images), rtol=1e-4, atol=1e-5)
