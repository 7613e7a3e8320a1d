"""The README's lines on networks that this library has never heard of, and what came out.

    python tests/foreign_matrix.py                      # all networks, to data/results/foreign_networks.json
    python tests/foreign_matrix.py timm/regnetx_002     # these only, shown and not written

Each network is grown, trained for a step, masked, fused, slimmed, saved, read back and exported, as its owner would do
it; torch-pruning removes the same channels from a copy of the fused network as a second opinion. The page
notebooks/foreign.ipynb shows the file that this writes, and tests/test_foreign_networks.py compares it with what the
code gives today. Takes many minutes.
"""

import collections
import copy
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from exactness import TOLERANCE, images, logits, randomise_statistics, relative_error
from torch import nn

import bpl
from bpl.channels import ChannelGraph
from bpl.deployment.deploy import TOLERANCE as ONNX_TOLERANCE
from bpl.deployment.deploy import as_callable
from bpl.machine.atomic import write_atomic
from bpl.onnx_files import onnx_bytes
from bpl.partner import partner_blocks
from bpl.paths import project_root
from bpl.pruning.masks import prunable_sets

RECORD = project_root() / "data" / "results" / "foreign_networks.json"
# Families that the book names first, then others of the two libraries.
NETWORKS = (
    "torchvision/resnet18", "torchvision/resnet50", "torchvision/vgg11_bn", "torchvision/mobilenet_v2",
    "torchvision/regnet_x_400mf", "torchvision/regnet_y_400mf", "torchvision/efficientnet_b0",
    "torchvision/densenet121", "torchvision/convnext_tiny",
    "timm/resnet18", "timm/resnet50", "timm/vgg11_bn", "timm/mobilenetv2_100", "timm/regnetx_002", "timm/regnety_002",
    "timm/efficientnet_b0", "timm/tf_efficientnet_b0", "timm/densenet121", "timm/convnext_atto",
    "torchvision/alexnet", "torchvision/googlenet", "torchvision/mnasnet0_5", "torchvision/mobilenet_v3_small",
    "torchvision/resnext50_32x4d", "torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1",
    "torchvision/wide_resnet50_2",
    "timm/ghostnet_100", "timm/mobilenetv3_small_050", "timm/repvgg_a0", "timm/resnet26d", "timm/seresnet18",
)  # fmt: skip
CLASSES = 7
SIZE = 64  # pixels
RATIO = 0.5
LARGE = 40_000_000  # parameters: above, float32 instead of float64, for memory's sake


def build(network: str) -> nn.Module:
    """A fresh network, by library and name."""
    library, name = network.split("/")
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=CLASSES)
    import torchvision

    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(num_classes=CLASSES, **options)


def examine(network: str, *, onnx: bool = True) -> dict[str, Any]:
    """Take a network through the README's lines.

    Args:
        network: library and name.
        onnx: export it too, which takes seconds.

    Returns:
        Counts and answers, the same on every machine. Of a step that was not taken the answer is None; why nothing grew
        or nothing could be pruned stands under ``no_partners`` and ``no_pruning``.
    """
    torch.manual_seed(0)
    model = build(network)
    dtype = torch.float64 if bpl.count_params(model) < LARGE else torch.float32
    row: dict[str, Any] = {
        "network": network,
        "convolutions": sum(isinstance(module, nn.Conv2d) for module in model.modules()),
        "partners": 0,
        "no_partners": None,
        "trains": None,
        "no_pruning": None,
        "macs": bpl.count_macs(model, SIZE),
        "macs_inner": None,
        "macs_all": None,
        "exact": None,
        "torch_pruning_agrees": None,
        "comes_back": None,
        "onnx_agrees": None,
        "left_alone": left_alone(model),
    }
    try:
        bpl.grow_partners(model)
        row["partners"] = len(partner_blocks(model))
        row["trains"] = trains(model)
    except ValueError as error:
        row["no_partners"] = str(error)
    model = randomise_statistics(model.to(dtype).eval())
    for scope in ("inner", "all"):
        try:
            masks = bpl.prune_masks(model, RATIO, scope=scope)
        except ValueError as error:
            row["no_pruning"] = row["no_pruning"] or str(error)
            continue
        masked = bpl.apply_masks(copy.deepcopy(model), masks)
        fused = bpl.fuse_partners(masked)
        small = bpl.slim(bpl.fuse_partners(model), masks)
        x = images(2, SIZE, dtype)
        row["exact"] = row["exact"] is not False and same(logits(small, x), logits(masked, x))
        if row["torch_pruning_agrees"] is not False:
            row["torch_pruning_agrees"] = oracle_agrees(fused, small, masks, scope, x)
        row[f"macs_{scope}"] = bpl.count_macs(small, SIZE)
    if row["exact"] is not None:
        row["comes_back"] = comes_back(small, network, x)
        row["onnx_agrees"] = onnx_agrees(small.float()) if onnx else None
    return row


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are the same to float rounding."""
    return relative_error(got, expected) <= TOLERANCE[expected.dtype]


def trains(model: nn.Module) -> bool:
    """Whether one step with the diversity loss moves every partner, and leaves every weight finite."""
    before = {name: block.branches[1].conv.weight.detach().clone() for name, block in partner_blocks(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, labels = images(4, SIZE, torch.float32), torch.arange(4) % CLASSES
    loss = F.cross_entropy(model.train()(x), labels) + bpl.diversity_loss(model)
    loss.backward()
    optimizer.step()
    moved = all(not torch.equal(partner_blocks(model)[name].branches[1].conv.weight, w) for name, w in before.items())
    return moved and all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def oracle_agrees(
    masked: nn.Module, small: nn.Module, masks: dict[str, torch.Tensor], scope: str, x: torch.Tensor
) -> bool | None:
    """Whether torch-pruning, told to remove the same channels of the masked network, ends at the same network.

    None where it stops with an error before it is told anything, as at ShuffleNet's change of the channels' order.
    """
    import torch_pruning

    try:
        graph = torch_pruning.DependencyGraph().build_dependency(masked, example_inputs=x)
    except Exception:  # whatever its walk through a graph that it does not know raises
        return None
    for channels in prunable_sets(ChannelGraph(masked), scope):
        name = channels.convs[0]
        gone = (~masks[name]).nonzero().flatten().tolist()
        group = graph.get_pruning_group(masked.get_submodule(name), torch_pruning.prune_conv_out_channels, idxs=gone)
        group.prune()
    shapes = [{name: p.shape for name, p in network.named_parameters()} for network in (masked, small)]
    return shapes[0] == shapes[1] and same(logits(small, x), logits(masked, x))


def comes_back(small: nn.Module, network: str, x: torch.Tensor) -> bool:
    """Whether a network that was saved and read back onto a fresh original computes the same, bit by bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = bpl.save_model(small, Path(folder) / "small")
        return torch.equal(logits(bpl.load_model(path, build(network)), x), logits(small, x))


def onnx_agrees(small: nn.Module) -> bool:
    """Whether onnxruntime computes the same logits from the ONNX file, to 1e-4 of the largest."""
    x = images(3, SIZE, torch.float32)
    got, expected = as_callable(onnx_bytes(small, SIZE))(x), logits(small, x)
    return relative_error(got, expected) <= ONNX_TOLERANCE


def left_alone(model: nn.Module) -> dict[str, int]:
    """Why channels of the plain network stay, names left out -> of how many convolutions; the classes' always do."""
    frozen = [channels for channels in ChannelGraph(model).sets if channels.convs and channels.frozen]
    sets = [channels for channels in frozen if channels.frozen != "it is the network's output"]
    reasons = collections.Counter()
    for channels in sets:
        without_names = re.sub(r" ?'[^']*'", "", channels.frozen).strip()
        reasons[re.sub(r"^\S+ is a tensor", "it is combined with a tensor", without_names)] += len(channels.convs)
    return dict(sorted(reasons.items()))


def main() -> None:
    """Examine all networks, or those named."""
    torch.set_num_threads(1)
    rows = []
    for network in sys.argv[1:] or NETWORKS:
        rows.append(examine(network))
        print(json.dumps(rows[-1]), flush=True)
    if not sys.argv[1:]:
        write_atomic(RECORD, ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n").encode())


if __name__ == "__main__":
    main()
