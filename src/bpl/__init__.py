"""Block-wise partner learning: grow partners, train, fuse, slim, ship an ordinary smaller network."""

from bpl import _torchvision_guard

_torchvision_guard.install()  # before anything imports torchvision

from bpl.config import RunConfig  # noqa: E402
from bpl.diversity import diversity_loss, record_outputs  # noqa: E402
from bpl.export import load_model, save_model  # noqa: E402
from bpl.measure import count_macs, count_params, measure_latency  # noqa: E402
from bpl.models import build_model  # noqa: E402
from bpl.onnx_files import export_onnx  # noqa: E402
from bpl.partner import fuse_partners, grow_partners  # noqa: E402
from bpl.pruning import apply_masks, prune_masks, slim  # noqa: E402
from bpl.records import Record, load_records  # noqa: E402
from bpl.run import run  # noqa: E402
from bpl.same_function import check_same  # noqa: E402

__all__ = [
    "Record",
    "RunConfig",
    "apply_masks",
    "build_model",
    "check_same",
    "count_macs",
    "count_params",
    "diversity_loss",
    "export_onnx",
    "fuse_partners",
    "grow_partners",
    "load_model",
    "load_records",
    "measure_latency",
    "prune_masks",
    "record_outputs",
    "run",
    "save_model",
    "slim",
]
