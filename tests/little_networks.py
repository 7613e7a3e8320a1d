"""Small networks, each with one thing in it that channel removal can get wrong. Images are (B, 3, 8, 8)."""

import types

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 12
CLASSES = 5


def conv(inputs: int = WIDTH, outputs: int = WIDTH, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=options.pop("padding", kernel // 2), **options)


def block(inputs: int = WIDTH, outputs: int = WIDTH, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU())


def chain(**options) -> nn.Sequential:
    """Two convolutions with normalisation and a head; the second has these options."""
    options.setdefault("kernel_size", 3)
    return nn.Sequential(
        block(3),
        nn.Sequential(nn.Conv2d(WIDTH, WIDTH, **options), nn.BatchNorm2d(WIDTH), nn.ReLU()),
        block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, CLASSES),
    )


class Net(nn.Module):
    """A stem block, a place for something special, a last block and a linear head on the pooled map."""

    def __init__(self):
        super().__init__()
        self.stem, self.last, self.fc = block(3), block(), nn.Linear(WIDTH, CLASSES)

    def middle(self, x):
        return x

    def forward(self, x):
        return self.fc(self.last(self.middle(self.stem(x))).mean((2, 3)))


class FunctionalRelu(Net):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = conv(), nn.BatchNorm2d(WIDTH), conv(bias=True)

    def middle(self, x):
        return F.relu(self.b(torch.relu(self.n(self.a(x)))), inplace=True)


class NormsWithoutShift(FunctionalRelu):
    """What ``nn.BatchNorm2d(..., bias=False)`` of newer PyTorch makes: a scale, and no shift."""

    def __init__(self):
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias = None


class Standardised(FunctionalRelu):
    """It makes a tensor of numbers as it runs, to bring the images to mean 0."""

    def forward(self, x):
        return super().forward(x - torch.tensor([0.4, 0.5, 0.6], dtype=x.dtype).view(1, 3, 1, 1))


class FlattenMap(Net):
    """A linear layer that reads a channel as 16 features."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH * 16, CLASSES)

    def forward(self, x):
        return self.fc(torch.flatten(F.max_pool2d(self.last(self.stem(x)), 2), 1))


class ViewMap(FlattenMap):
    def forward(self, x):
        x = F.avg_pool2d(self.last(self.stem(x)), 2)
        return self.fc(x.view(x.size(0), -1))


class Concatenation(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = block(), block(), block(2 * WIDTH)

    def middle(self, x):
        return torch.cat([self.a(x), self.b(x)], 1)


class Gate(Net):
    """Squeeze and excitation by convolutions, as torchvision has it."""

    def __init__(self):
        super().__init__()
        self.a, self.reduce, self.expand = block(), conv(WIDTH, 4, 1), conv(4, WIDTH, 1)

    def middle(self, x):
        x = self.a(x)
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return torch.sigmoid(gate) * x


class LinearGate(Net):
    """Squeeze and excitation by linear layers and views, as many repositories have it."""

    def __init__(self):
        super().__init__()
        self.a, self.reduce, self.expand = block(), nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def middle(self, x):
        x = self.a(x)
        b, c, _, _ = x.size()
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1).view(b, c))))
        return x * torch.sigmoid(gate).view(b, c, 1, 1)


class SigmoidThenConv(Net):
    """A masked channel would be read as 1/2."""

    def middle(self, x):
        return torch.sigmoid(x)


class PlusOne(Net):
    def middle(self, x):
        return x + 1


class SpatialGate(Net):
    """A map of one channel multiplies all."""

    def __init__(self):
        super().__init__()
        self.one = conv(WIDTH, 1)

    def middle(self, x):
        return x * torch.sigmoid(self.one(x))


class BroadcastAdd(Net):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(conv(WIDTH, 1), nn.BatchNorm2d(1))

    def middle(self, x):
        return self.one(x) + x


class ResidualBeforeRelu(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = block(), nn.Sequential(conv(), nn.BatchNorm2d(WIDTH))

    def middle(self, x):
        return F.relu(x + self.b(self.a(x)))


class ResidualAfterRelu(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = block(), block()

    def middle(self, x):
        x = x + self.a(x)
        x += self.b(x)
        return x


class PreActivation(Net):
    """Normalisation and ReLU before the convolutions, and behind the sum."""

    def __init__(self):
        super().__init__()
        self.n1, self.a, self.n2, self.b = nn.BatchNorm2d(WIDTH), conv(), nn.BatchNorm2d(WIDTH), conv()
        self.n3 = nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        x = x + self.b(F.relu(self.n2(self.a(F.relu(self.n1(x))))))
        return F.relu(self.n3(x))


class Difference(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = block(), block()

    def middle(self, x):
        return self.a(x) - torch.sub(self.b(x), x, alpha=2)


class OtherNorm(Net):
    """GroupNorm mixes channels."""

    def __init__(self):
        super().__init__()
        self.a, self.n = conv(), nn.GroupNorm(3, WIDTH)

    def middle(self, x):
        return F.relu(self.n(self.a(x)))


class NoNorm(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    def middle(self, x):
        return F.gelu(self.b(F.silu(self.a(x))))


class NormWithoutAffine(Net):
    def __init__(self):
        super().__init__()
        self.a, self.n = conv(), nn.BatchNorm2d(WIDTH, affine=False)

    def middle(self, x):
        return F.relu(self.n(self.a(x)))


class NormWithoutStatistics(Net):
    def __init__(self):
        super().__init__()
        self.a, self.n = conv(), nn.BatchNorm2d(WIDTH, track_running_stats=False)

    def middle(self, x):
        return F.relu(self.n(self.a(x)))


class TwoReaders(Net):
    """A convolution whose output two normalisations read."""

    def __init__(self):
        super().__init__()
        self.a, self.n1, self.n2, self.b = conv(), nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH), conv()

    def middle(self, x):
        x = self.a(x)
        return F.relu(self.n1(x)) + self.b(F.relu(self.n2(x)))


class SharedConv(Net):
    """One convolution called twice, each time with a normalisation of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.n1, self.n2 = conv(), nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        return F.relu(self.n2(self.a(F.relu(self.n1(self.a(x))))))


class SharedNorm(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.n = conv(), conv(), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        return F.relu(self.n(self.b(F.relu(self.n(self.a(x))))))


class NormUsedTwice(Net):
    """A normalisation behind a convolution, and once more behind a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.n = conv(), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        return self.n(F.relu(self.n(self.a(x))) + x)


class TwoNames(Net):
    """The same modules under two names; the forward pass uses the second."""

    def __init__(self):
        super().__init__()
        self.a, self.n = conv(), nn.BatchNorm2d(WIDTH)
        self.features = nn.Sequential(self.a, self.n, nn.ReLU())

    def middle(self, x):
        return self.features(x)


class TiedWeights(Net):
    """Two convolutions with one weight tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b = block(), block()
        self.b[0].weight = self.a[0].weight

    def middle(self, x):
        return self.b(self.a(x))


class BorrowedWeight(Net):
    """A weight that is used past its module too."""

    def __init__(self):
        super().__init__()
        self.a = conv(bias=False)

    def middle(self, x):
        return F.relu(F.conv2d(F.relu(self.a(x)), self.a.weight, padding=1))


class SlopePerChannel(Net):
    def __init__(self):
        super().__init__()
        self.a, self.act = conv(), nn.PReLU(WIDTH)

    def middle(self, x):
        return self.act(self.a(x))


class LayerScale(Net):
    """A parameter with an entry per channel, outside every normalisation."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def middle(self, x):
        return x * self.scale.view(1, -1, 1, 1)


class ScalarScale(Net):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def middle(self, x):
        return x * self.scale


class SlicedChannels(Net):
    def __init__(self):
        super().__init__()
        self.last = block(WIDTH // 2)

    def middle(self, x):
        return x[:, : WIDTH // 2]


class SlicedSpace(Net):
    def middle(self, x):
        return x[..., 1:-1, ::2] + x[:, :, 1:-1, 1::2]


class Chunks(Net):
    """ShuffleNet: half of the channels go past the convolution, then they are mixed."""

    def __init__(self):
        super().__init__()
        self.a = block(WIDTH // 2, WIDTH // 2)

    def middle(self, x):
        one, other = x.chunk(2, dim=1)
        x = torch.cat([one, self.a(other)], 1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class PaddedShortcut(Net):
    """CIFAR ResNet's option A: the shortcut drops every second pixel and pads channels with zeros."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(block(WIDTH, 2 * WIDTH, stride=2), conv(2 * WIDTH, 2 * WIDTH), nn.BatchNorm2d(2 * WIDTH))
        self.last = block(2 * WIDTH)

    def middle(self, x):
        return F.relu(self.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, WIDTH // 2, WIDTH // 2)))


class PaddedWithOnes(Net):
    def middle(self, x):
        return F.pad(x, (1, 1, 1, 1), value=1.0)


class PaddedWithZeros(Net):
    def middle(self, x):
        return F.pad(F.pad(x, (1, 0, 2, 1)), (1, 1, 1, 1), mode="reflect")


class DividedByWidth(Net):
    """A number of channels in the arithmetic."""

    def middle(self, x):
        b, c, h, w = x.shape
        return x * (c**-0.5)


class LinearAlongWidth(Net):
    """A linear layer on a map reads its last dimension, which is as long here as there are channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.last = block(3, 8), nn.Linear(8, 8), block(8)

    def middle(self, x):
        return self.mix(x)


class ChannelMean(Net):
    """Averages the channels, not the pixels."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, CLASSES)

    def forward(self, x):
        return self.fc(self.last(self.stem(x)).mean(3).mean(2).mean(-1, keepdim=True))


class MeanTwice(Net):
    def forward(self, x):
        return self.fc(self.last(self.stem(x)).mean(-1).mean(2))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: the weight used is not the weight stored."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class WeightStandardisation(Net):
    def __init__(self):
        super().__init__()
        self.a, self.n = StandardisedConv(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        return F.relu(self.n(self.a(x)))


class SamePaddingConv(nn.Conv2d):
    """A subclass that is still a convolution."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Sliced(Net):
    """Calls its layers through parts of a Sequential that are made in the forward pass."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*block(), *block())

    def middle(self, x):
        return x + self.blocks[4:](self.blocks[:4](x))


class HarmlessSubclass(Net):
    def __init__(self):
        super().__init__()
        self.a, self.n = SamePaddingConv(WIDTH, WIDTH, 3), nn.BatchNorm2d(WIDTH)

    def middle(self, x):
        return F.relu(self.n(self.a(x)))


class Parametrised(Net):
    """torch's own weight normalisation."""

    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(conv())

    def middle(self, x):
        return F.relu(self.a(x))


class ShiftedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class ActivationInNorm(Net):
    """A normalisation that is not 0 where gamma and beta are."""

    def __init__(self):
        super().__init__()
        self.a, self.n = conv(), ShiftedNorm(WIDTH)

    def middle(self, x):
        return self.n(self.a(x))


class Transposed(Net):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)

    def middle(self, x):
        return F.relu(self.up(x))


class Resampled(Net):
    def __init__(self):
        super().__init__()
        self.up, self.drop, self.pool = nn.Upsample(scale_factor=2), nn.Dropout2d(0.3), nn.AvgPool2d(3, 2, 1)

    def middle(self, x):
        return F.interpolate(self.pool(self.drop(self.up(x))), scale_factor=2, mode="bilinear")


class DepthwiseOnInput(Net):
    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(conv(3, 3, groups=3), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, x):
        return super().forward(self.look(x))


class DepthwiseAfterConcatenation(Net):
    def __init__(self):
        super().__init__()
        self.wise, self.last = block(2 * WIDTH, 2 * WIDTH, groups=2 * WIDTH), block(2 * WIDTH)

    def middle(self, x):
        return self.wise(torch.cat([x, x], 1))


class InvertedResidual(Net):
    """MobileNetV2's block: expand, depthwise, project, add."""

    def __init__(self):
        super().__init__()
        self.expand, self.wise = block(WIDTH, 3 * WIDTH, 1), block(3 * WIDTH, 3 * WIDTH, groups=3 * WIDTH)
        self.project = nn.Sequential(conv(3 * WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH))

    def middle(self, x):
        return x + self.project(self.wise(self.expand(x)))


class PatchedActivation(Net):
    """Another forward pass on the object: it is a ReLU by its class only."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.act.forward = torch.sigmoid

    def middle(self, x):
        return self.act(x)


def _twice(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    return 2 * nn.BatchNorm2d.forward(self, x)


class PatchedNorm(Net):
    """A partner's outputs would be doubled with the block's, fused ones would not."""

    def __init__(self):
        super().__init__()
        self.a = block()
        self.a[1].forward = types.MethodType(_twice, self.a[1])

    def middle(self, x):
        return self.a(x)


class ShiftedRelu(nn.ReLU):
    """It branches on its input, so it is not traced but called as one layer; a channel of zeros becomes 1/2."""

    def forward(self, input):
        return F.relu(input) + 0.5 if input.shape[0] else input


class ClosedActivation(Net):
    def __init__(self):
        super().__init__()
        self.act = ShiftedRelu()

    def middle(self, x):
        return self.act(x)


class BranchingPool(nn.MaxPool2d):
    def forward(self, input):
        return super().forward(input) if input.shape[2] > 1 else input


class ClosedPool(Net):
    """Not traced either, and a pooling all the same."""

    def __init__(self):
        super().__init__()
        self.pool = BranchingPool(2)

    def middle(self, x):
        return self.pool(x)


class FanInConv(nn.Conv2d):
    """Equalised learning rate: the factor changes when channels are cut out."""

    def forward(self, input):
        return self._conv_forward(input, self.weight * (2 / self.weight[0].numel()) ** 0.5, self.bias)


class FanOutConv(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, self.weight * (2 / self.weight[:, 0].numel()) ** 0.5, self.bias)


class EqualisedRateIn(Net):
    kind = FanInConv

    def __init__(self):
        super().__init__()
        self.a = self.kind(WIDTH, WIDTH, 3, padding=1)

    def middle(self, x):
        return F.relu(self.a(x))


class EqualisedRateOut(EqualisedRateIn):
    kind = FanOutConv


class PooledRows(Net):
    """Of (B, C, H) a pooling by two dimensions takes the channels for height."""

    def forward(self, x):
        return self.fc(F.max_pool2d(self.last(self.stem(x)).mean(3), 3, 1, 1).mean(2))


class PooledRowsByModule(PooledRows):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x):
        return self.fc(self.pool(self.last(self.stem(x)).mean(3)).mean(2))


class PaddedVector(Net):
    """Features of zeros behind those of the pooled map."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x):
        return self.fc(F.pad(self.last(self.stem(x)).mean((2, 3)), (0, WIDTH)))


class PlusZero(Net):
    """What Python's `sum` does, and blocks whose shortcut may be absent."""

    def middle(self, x):
        return 0 + x


class PlusThreeByName(Net):
    def middle(self, x):
        return torch.add(x, other=3)


class SwishByHand(Net):
    def middle(self, x):
        return x * F.relu6(x + 3) / 6


class SlopeTwice(Net):
    """One slope for all channels: the layer is no channel's own."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.slope = conv(), nn.BatchNorm2d(WIDTH), nn.PReLU()

    def middle(self, x):
        return self.slope(self.n(self.a(self.slope(x))))


class Flag(Net):
    def forward(self, x, features=False):
        if features:
            return self.stem(x)
        return super().forward(x)


class OptionalActivation(Net):
    """With what it takes where nobody says otherwise, a sigmoid."""

    def forward(self, x, activation=None):
        if activation is None:
            activation = torch.sigmoid
        return self.fc(self.last(activation(self.stem(x))).mean((2, 3)))


class KeepsItsMap(Net):
    """For a loss on features, or a picture of them."""

    def middle(self, x):
        self.kept = x
        return x


class ReadsKernelSize(Net):
    def __init__(self):
        super().__init__()
        self.a = block(padding=0)

    def middle(self, x):
        return self.a(F.pad(x, (self.a[0].kernel_size[0] // 2,) * 4))


STRUCTURES: dict[str, type[Net]] = {
    kind.__name__: kind
    for kind in list(vars().values())
    if isinstance(kind, type) and issubclass(kind, Net) and kind is not Net
}

CONV_OPTIONS: dict[str, dict] = {
    "bias": {"bias": True, "padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "unequal stride": {"stride": (2, 1), "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "no padding": {},
    "same padding": {"padding": "same"},
    "valid padding": {"padding": "valid"},
    "wide kernel": {"kernel_size": (3, 5), "padding": (1, 2)},
    "row kernel": {"kernel_size": (1, 3), "padding": (0, 1)},
    "even kernel": {"kernel_size": 2},
    "largest kernel": {"kernel_size": 6, "padding": 3},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "depthwise": {"padding": 1, "groups": WIDTH},
    "depthwise, strided, dilated": {"padding": 2, "groups": WIDTH, "stride": 2, "dilation": 2},
    "grouped": {"padding": 1, "groups": 3},
}
