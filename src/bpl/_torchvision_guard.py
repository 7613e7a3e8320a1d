"""Make ``import torchvision`` work beside a CPU-only torch.

torchvision's wheel on the package index is linked against CUDA. Beside a CPU build of torch its compiled extension
cannot be loaded, the operators it would register stay unknown, and ``import torchvision`` dies with ``operator
torchvision::nms does not exist`` (timm and everything else that imports it dies with it). Declaring the schemas of the
two operators that torchvision's Python side refers to at import time is enough: models, transforms v2 and data sets
then work. Its JPEG decoder and its detection operators do not, and this library uses neither.

``import bpl`` runs this module first. Nothing is declared where the extension loads.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_library: torch.library.Library | None = None  # a schema lives only as long as the library object that declared it


def _extension_loads() -> bool:
    """Whether torchvision's compiled operators can be loaded, found out without importing torchvision."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision: its own ImportError says it better than a guard could
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)
        except OSError:
            continue
        return True
    return hasattr(torch.ops.torchvision, "nms")


def install() -> bool:
    """Declare the missing schemas once.

    Returns:
        Whether the guard is in force (the extension could not be loaded).
    """
    global _library
    if _library is None and not _extension_loads():
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS.values():
            _library.define(schema)
    return _library is not None
