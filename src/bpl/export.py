"""The small network as files: safetensors + a JSON of widths. Nothing in them is ever executed."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from bpl.copies import check_has_values, check_is_network
from bpl.machine.atomic import write_together
from bpl.models import build_model
from bpl.norm_act import take_apart
from bpl.partner import refuse_unfused, replace_module
from bpl.partner_conv import NORMS
from bpl.pruning.zeros import masks_of_zeros
from bpl.residual_blocks import Shortcut, remove_blocks
from bpl.shown import one_line, shown
from bpl.use import check_use

FORMAT = "bpl-model"
VERSION = 1
LARGEST_DESCRIPTION = 16 << 20  # characters; that of ResNet-101 has some 30,000


class ModelFileError(ValueError):
    """A model file that cannot be used; the message names the file and the reason in one sentence."""


def _files(path: Path) -> tuple[Path, Path]:
    """The two files of a model, named by either of them or by their common stem."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.parent / (stem.name + ".safetensors"), stem.parent / (stem.name + ".json")


def exports_of(weights: Path) -> tuple[Path, Path, Path]:
    """What `bpl export` writes beside a network's weights: ONNX, its 8-bit version, and the report."""
    return tuple(weights.with_suffix(ending) for ending in (".onnx", ".int8.onnx", ".export.json"))


def check_finished(model: nn.Module) -> None:
    """Refuse what is not yet small: a network with partners, or with channels of zeros, which cost as much as any.

    Args:
        model: the network.

    Raises:
        ValueError: what is left to do, in one sentence.
    """
    refuse_unfused(model)
    zeros = masks_of_zeros(model)
    if zeros:
        name, mask = next(iter(zeros.items()))
        raise ValueError(
            f"{int((~mask).sum())} of the {len(mask)} channels of {name!r} are exactly zero: the network is masked and "
            "not yet small; call bpl.slim before exporting (bpl.pruning.masks_of_zeros gives the masks)"
        )


def describe_widths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The widths of every layer that pruning or fusing may have changed, and the residual blocks that were removed.

    Args:
        model: a plain network.

    Returns:
        Module name -> its kind and sizes.
    """
    widths: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            sizes = {"inputs": module.in_channels, "outputs": module.out_channels, "groups": module.groups}
            widths[name] = {"kind": "conv", **sizes, "bias": module.bias is not None}
        elif isinstance(module, NORMS):
            widths[name] = {"kind": "norm", "channels": module.num_features}
        elif isinstance(module, nn.Linear):
            widths[name] = {"kind": "linear", "inputs": module.in_features, "outputs": module.out_features}
        elif isinstance(module, nn.Identity):
            widths[name] = {"kind": "identity"}
        elif isinstance(module, Shortcut):
            widths[name] = {"kind": "removed"}
    return widths


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write a plain network as ``<path>.safetensors`` (weights) and ``<path>.json`` (widths and what use needs).

    A network of `build_model` is named in it, unless layers were changed in more than their widths (an activation
    replaced, say): such a one is loaded into an original, like a network of one's own.

    Args:
        model: a network without partners, of any widths.
        path: either file, or their common stem.
        classes: class names, in the order of the logits.
        mean: per-channel mean of the images, 0..1.
        std: per-channel standard deviation of the images, 0..1.

    Returns:
        The path of the weights.

    Raises:
        ValueError: the network still has partners or no values, or class names, mean or deviation cannot be.
        OSError: a file could not be written.
    """
    refuse_unfused(model)
    check_has_values(model)
    weights, description = _files(Path(path))
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    content = describe_use(model, classes, mean, std) | {"widths": describe_widths(model)}
    if content["arch"] is not None and not _is_built_by_name(model, content, description):
        content["arch"] = None  # changed since: loading it by name would give another function
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_together({weights: tensors_to_bytes(tensors), description: json.dumps(content, indent=1).encode()})
    return weights


def describe_use(
    model: nn.Module,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What a program has to know before it can classify an image: part of every file that is written here.

    Args:
        model: the network.
        classes: class names, in the order of the logits.
        mean: per-channel mean of the images, 0..1.
        std: per-channel standard deviation of the images, 0..1.

    Returns:
        Plain values: format, version, arch (None for a network of one's own), classes, mean, std.

    Raises:
        ValueError: class names that are no names or not distinct, or a mean or deviation that cannot be.
    """
    use = check_use(classes, mean, std)
    return {
        "format": FORMAT,
        "version": VERSION,
        "arch": getattr(model, "bpl_arch", None),
        "classes": None if use.classes is None else list(use.classes),
        "mean": None if use.mean is None else list(use.mean),
        "std": None if use.std is None else list(use.std),
    }


def read_description(path: str | Path) -> dict[str, Any]:
    """The JSON beside a model's weights, checked.

    Args:
        path: either file, or their common stem.

    Returns:
        Its content: format, version, arch, classes, mean, std, widths.

    Raises:
        ModelFileError: missing, not JSON, or of another format or version.
    """
    file = _files(Path(path))[1]
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(LARGEST_DESCRIPTION + 1)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"model description {file} cannot be read: {error}") from error
    if len(text) > LARGEST_DESCRIPTION:
        raise ModelFileError(f"model description {file} has more than {LARGEST_DESCRIPTION:,} characters")
    content = parse_description(text, file)
    if not isinstance(content.get("widths"), dict):
        raise ModelFileError(f"{file} has no table of widths")
    return content


def parse_description(text: str, source: Path) -> dict[str, Any]:
    """A model's description from its text, whether that lies beside the weights or in an ONNX file.

    Args:
        text: JSON.
        source: the file it comes from, for messages.

    Returns:
        Its content, with format and version checked.

    Raises:
        ModelFileError: not JSON, or of another format or version.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"model description {source} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelFileError(f"{source} does not describe a model of this library: its 'format' is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ModelFileError(f"{source} has version {shown(content.get('version'))}: this library reads {VERSION}")
    return content


def load_model(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a network that `save_model` wrote.

    Args:
        path: either file, or their common stem.
        model: a freshly constructed original, of full width, for a network of one's own; it is resized and returned.
            None for a network of `build_model`, which is constructed by its name.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelFileError: files missing, corrupt, of another version, or not fitting the network.
        TypeError: the original is no network.
    """
    if model is not None:
        check_is_network(model)
    description = read_description(path)
    weights, file = _files(Path(path))
    try:
        tensors = load_tensors(weights.read_bytes())
    except Exception as error:  # OSError, or safetensors' own, which has no public base class
        raise ModelFileError(f"weights {weights} cannot be read: {error}") from error
    device = torch.device("cpu")
    if model is None:
        model = _by_name(description, file)
    elif (first := next(model.parameters(), None)) is not None:
        device = first.device
    shared = _shared_parameters(model)
    resize(model, description["widths"], file)
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name in own and own[name].is_floating_point() != tensor.is_floating_point():
            raise ModelFileError(f"weights {weights} do not fit: {name!r} is {tensor.dtype}")
    tensors = OrderedDict(tensors)
    tensors._metadata = own._metadata  # a module may ask for its version, as torchvision's MNASNet does
    try:
        model.load_state_dict(tensors, assign=True)  # the file's own tensors, in the precision they were saved in
    except RuntimeError as error:
        problem = " ".join(str(error).split("\n\t")[-1].split())[:200]
        raise ModelFileError(f"weights {weights} do not fit the widths of {file}: {problem}") from error
    _share(model, shared)
    return model.to(device).eval()


def _shared_parameters(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that several layers hold."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _share(model: nn.Module, shared: list[list[str]]) -> None:
    """Make one parameter again of those that were one before they were resized, where they still are equal."""
    loaded = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in shared:
        for name in others:
            if first in loaded and name in loaded and torch.equal(loaded[first], loaded[name]):
                layer, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(layer), leaf, loaded[first])


def _by_name(description: dict[str, Any], file: Path) -> nn.Module:
    """The network of `build_model` that a description names, without memory for weights: widths may be anything."""
    arch = description.get("arch")
    if not isinstance(arch, dict):
        raise ModelFileError(f"{file} names no network of build_model: pass a freshly constructed original as model")
    try:
        with torch.device("meta"):
            return build_model(**arch)
    except Exception as error:  # whatever numbers like 10**30 make of the constructors
        raise ModelFileError(f"{file} describes a network that cannot be built: {one_line(error)[:200]}") from error


def _made_as(layer: type) -> type:
    """The class that `build_model` has a layer of: what a network is converted to for training is no other network."""
    return nn.BatchNorm2d if layer is nn.SyncBatchNorm else layer


def _is_built_by_name(model: nn.Module, description: dict[str, Any], file: Path) -> bool:
    """Whether building a network by its name and resizing it gives these layers, with the same settings."""
    try:
        other = _by_name(description, file)
        resize(other, description["widths"], file)
    except ModelFileError:
        return False

    def layers(network: nn.Module) -> list[tuple[str, type, str]]:
        return [(name, _made_as(type(module)), module.extra_repr()) for name, module in network.named_modules()]

    return layers(model) == layers(other)


def resize(model: nn.Module, widths: dict[str, dict[str, Any]], source: Path) -> None:
    """Give the layers of a network the widths of a description, in place, so that a subclass stays what it is.

    The resized parameters are on the meta device: they have a shape and no values.

    Args:
        model: a network whose layers are at least as wide.
        widths: as `describe_widths` returns them.
        source: the file they come from, for messages.

    Raises:
        ModelFileError: a layer that the network lacks, of another kind, or wider than the network's own.
    """
    _remove_blocks(model, widths, source)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        parts = take_apart(module) if name not in widths and type(module) not in NORMS else None
        if parts is not None:  # it was fused, and has left the activation that it held
            replace_module(model, name, parts[1])
    for name, wanted in widths.items():
        module = modules.get(name)
        if module is None or not isinstance(wanted, dict):
            raise ModelFileError(f"{source}: the network has no layer {shown(name)}")
        kind = wanted.get("kind")
        if kind == "removed" and isinstance(module, Shortcut):
            continue
        elif kind == "identity" and isinstance(module, (*NORMS, nn.Identity)):
            replace_module(model, name, nn.Identity())
        elif kind == "conv" and isinstance(module, nn.Conv2d):
            inputs = _width(source, name, wanted, "inputs", module.in_channels)
            outputs = _width(source, name, wanted, "outputs", module.out_channels)
            groups = _width(source, name, wanted, "groups", module.groups)
            if inputs % groups or outputs % groups:
                raise ModelFileError(f"{source}: layer {name!r} cannot have {groups} groups of {inputs} and {outputs}")
            module.in_channels, module.out_channels, module.groups = inputs, outputs, groups
            _reshape(module, "weight", outputs, inputs // groups, *module.kernel_size)
            module.bias = _empty(outputs) if wanted.get("bias") else None
        elif kind == "norm" and isinstance(module, NORMS):
            channels = _width(source, name, wanted, "channels", module.num_features)
            module.num_features = channels
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                _reshape(module, tensor, channels)
        elif kind == "linear" and isinstance(module, nn.Linear):
            inputs = _width(source, name, wanted, "inputs", module.in_features)
            outputs = _width(source, name, wanted, "outputs", module.out_features)
            module.in_features, module.out_features = inputs, outputs
            _reshape(module, "weight", outputs, inputs)
            _reshape(module, "bias", outputs)
        else:
            raise ModelFileError(f"{source}: layer {name!r} is a {type(module).__name__}, not a {shown(kind)}")


def _remove_blocks(model: nn.Module, widths: dict[str, dict[str, Any]], source: Path) -> None:
    """Remove the residual blocks that a description calls removed, so that it cannot give widths to layers in them."""
    modules = dict(model.named_modules())
    for name, wanted in widths.items():
        if name in modules and isinstance(wanted, dict) and wanted.get("kind") == "removed":
            try:
                remove_blocks(model, [name])
            except ValueError as error:
                raise ModelFileError(f"{source}: {error}") from error


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"))


def _reshape(module: nn.Module, name: str, *shape: int) -> None:
    """Give a parameter or buffer of a layer, where it has one, another shape."""
    old = getattr(module, name)
    if is_parametrized(module, name):  # computed from other tensors, which are in the file
        if old.shape != shape:
            raise ModelFileError(
                f"a {type(module).__name__} computes its {name} of shape {tuple(old.shape)}, not {shape}"
            )
    elif old is not None:
        new = _empty(*shape)
        setattr(module, name, new.requires_grad_(old.requires_grad) if isinstance(old, nn.Parameter) else new.detach())


def _width(source: Path, name: str, wanted: dict[str, Any], key: str, limit: int) -> int:
    value = wanted.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise ModelFileError(
            f"{source}: {key} of layer {name!r} is {shown(value)}: it must be a whole number of 1 to {limit}"
        )
    return value
