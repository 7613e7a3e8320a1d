"""Networks by name: torchvision's own, the CIFAR-style ResNet-56, and what small images need of them.

Images of at most `SMALL_IMAGE` pixels get a 3 x 3 convolution in ResNet's stem in place of the 7 x 7 one (stride 2 and
max-pooling stay), and VGG a global-average head in place of its three linear layers of 4,096 units.
"""

from collections.abc import Callable

from torch import nn
from torchvision import models as tv

from bpl.partner import replace_module
from bpl.shown import check_whole, shown

SMALL_IMAGE = 96  # pixels


class ResNet56(nn.Sequential):
    """The CIFAR-style residual network of depth 6n + 2, n = 9 (He et al. 2016, section 4.2): three stages.

    Args:
        num_classes: number of classes.
        image_size: height and width of the images; above 32 pixels the stem has stride 2 (stride 1 in the paper).
        width: filters of the first stage; 16 in the paper.
    """

    def __init__(self, num_classes: int, image_size: int = 32, width: int = 16):
        conv = nn.Conv2d(3, width, 3, stride=1 if image_size <= 32 else 2, padding=1, bias=False)
        stages = []
        filters = width
        for stage, out in enumerate((width, 2 * width, 4 * width)):
            blocks = []
            for block in range(9):
                stride = 2 if stage > 0 and block == 0 else 1
                project = None
                if stride > 1:
                    shortcut = nn.Conv2d(filters, out, 1, stride=stride, bias=False)
                    project = nn.Sequential(shortcut, nn.BatchNorm2d(out))
                blocks.append(tv.resnet.BasicBlock(filters, out, stride, project))
                filters = out
            stages.append(nn.Sequential(*blocks))
        super().__init__()
        self.conv1, self.bn1, self.relu = conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(4 * width, num_classes)
        initialise(self)


def initialise(model: nn.Module) -> nn.Module:
    """Kaiming normal (fan out) for convolutions, 1 and 0 for batch normalisation: torchvision's ResNet, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def redraw(linear: nn.Linear) -> None:
    """Draw a linear layer's weights anew, from what `build_model` drew them from.

    Args:
        linear: a fresh one, or part of one. A bias of zeros says that its weights are from N(0, 0.01^2), as in
            torchvision's VGG and MobileNetV2; any other is PyTorch's own start.
    """
    if linear.bias is None or linear.bias.any():
        linear.reset_parameters()
    else:
        nn.init.normal_(linear.weight, 0, 0.01)


def _resnet(build: Callable[..., nn.Module]) -> Callable[[int, int], nn.Module]:
    def make(num_classes: int, image_size: int) -> nn.Module:
        model = build(num_classes=num_classes)
        if image_size <= SMALL_IMAGE:
            model.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
            initialise(model)
        return model

    return make


def _vgg16_bn(num_classes: int, image_size: int) -> nn.Module:
    model = tv.vgg16_bn(num_classes=num_classes)
    if image_size <= SMALL_IMAGE:
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, num_classes)
        nn.init.normal_(model.classifier.weight, 0, 0.01)
        nn.init.zeros_(model.classifier.bias)
    return model


def _mobilenet_v2(num_classes: int, image_size: int) -> nn.Module:
    return tv.mobilenet_v2(num_classes=num_classes)


# name -> (constructor at the base width, base width: filters of the first stage)
_BUILDERS: dict[str, tuple[Callable[[int, int], nn.Module], int]] = {
    "resnet18": (_resnet(tv.resnet18), 64),
    "resnet34": (_resnet(tv.resnet34), 64),
    "resnet50": (_resnet(tv.resnet50), 64),
    "resnet101": (_resnet(tv.resnet101), 64),
    "resnet56": (ResNet56, 16),
    "vgg16_bn": (_vgg16_bn, 64),
    "mobilenet_v2": (_mobilenet_v2, 32),
}
NAMES = tuple(_BUILDERS)


def classifier_name(model: nn.Module) -> str:
    """Name of a network's classifier: its last linear layer."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def _scale_widths(model: nn.Module, factor: float, num_classes: int) -> None:
    """Multiply the width of every layer but the image's channels and the classes by `factor`, with fresh weights."""

    def scaled(width: int) -> int:
        return max(1, round(width * factor))

    last = classifier_name(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels if module.in_channels == 3 else scaled(module.in_channels)
            new = nn.Conv2d(
                inputs,
                scaled(module.out_channels),
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                groups=1 if module.groups == 1 else scaled(module.groups),
                bias=module.bias is not None,
            )
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm2d(scaled(module.num_features), module.eps, module.momentum)
        elif isinstance(module, nn.Linear):
            outputs = num_classes if name == last else scaled(module.out_features)
            new = nn.Linear(scaled(module.in_features), outputs)
        else:
            continue
        replace_module(model, name, new)
    initialise(model)


def build_model(name: str, num_classes: int, image_size: int = 256, width: int | None = None) -> nn.Module:
    """A fresh network with random weights.

    Args:
        name: one of `NAMES`.
        num_classes: number of classes, at least 2.
        image_size: height and width of the images in pixels, at least 32; small images get a small stem.
        width: filters of the first stage; None for the published width (64 for ResNet and VGG, 16 for ResNet-56, 32
            for MobileNetV2). All other widths scale with it.

    Returns:
        The network. Its attribute ``bpl_arch`` holds the four arguments, so that `save_model` can name them.

    Raises:
        ValueError: an unknown name or a value outside its range.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown network {shown(name)}: allowed are {', '.join(NAMES)}")
    build, base = _BUILDERS[name]
    width = base if width is None else width
    for what, value, least in (("num_classes", num_classes, 2), ("image_size", image_size, 32), ("width", width, 1)):
        check_whole(what, value, least)
    model = build(num_classes, image_size)
    if width != base:
        _scale_widths(model, width / base, num_classes)
    model.bpl_arch = {"name": name, "num_classes": num_classes, "image_size": image_size, "width": width}
    return model
