"""The small network as ONNX, and ONNX files run by onnxruntime: they hold no code, and may read no other file."""

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bpl.copies import copy_of
from bpl.export import FORMAT, ModelFileError, check_finished, describe_use
from bpl.machine.atomic import write_atomic
from bpl.measure import blamed_on_images, image_channels, where_it_computes
from bpl.partner import refuse_unfused
from bpl.shown import check_whole, flat

if TYPE_CHECKING:
    import onnxruntime

_NOWHERE = "/dev/null/no-folder"


def export_onnx(
    model: nn.Module,
    path: str | Path,
    image_size: int,
    *,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write a plain network as ONNX, with a free batch size; one in float64 or bfloat16 in float32.

    Args:
        model: a network without partners and without masked channels.
        path: the file to write.
        image_size: height and width of the images in pixels.
        channels: of the images; None for what the network's first convolution reads, or 3 where it takes that too.
        classes: class names, in the order of the logits; they and what follows go into the file's metadata, from which
            `bpl predict` reads them.
        mean: per-channel mean of the images, 0..1.
        std: per-channel standard deviation of the images, 0..1.

    Returns:
        The path.

    Raises:
        ValueError: the network still has partners, or channels of zeros that could be gone, is inside a wrapper, or
            does not take such images; or class names, mean or deviation cannot be.
        OSError: the file could not be written.
    """
    check_finished(model)
    content = onnx_bytes(model, image_size, describe_use(model, classes, mean, std), channels)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def onnx_bytes(
    model: nn.Module, image_size: int, use: dict[str, Any] | None = None, channels: int | None = None
) -> bytes:
    """A plain network as an ONNX file's content; input ``images`` (B, C, H, W), output ``logits`` (B, classes).

    Args:
        model: a network without partners.
        image_size: height and width of the images in pixels.
        use: as `describe_use` returns it: goes into the file's metadata, as JSON under the key ``bpl-model``.
        channels: as of `export_onnx`.

    Raises:
        ValueError: the network still has partners, or does not take such images.
    """
    refuse_unfused(model)
    check_whole("image_size", image_size, 1)
    network = in_a_precision_of_onnx(copy_of(model).eval())
    device, dtype = where_it_computes(network)
    shape = (2, image_channels(network, image_size, channels), image_size, image_size)
    example = torch.zeros(shape, device=device, dtype=dtype)
    with blamed_on_images(network, image_size, channels), warnings.catch_warnings():
        # what the exporter warns of in its own code (older names of its own functions) is no user's business
        warnings.filterwarnings("ignore", module=r"torch\.|onnxscript|onnx_ir|copyreg")
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    if use is not None:
        program.model.metadata_props[FORMAT] = json.dumps(use)
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def in_a_precision_of_onnx(model: nn.Module) -> nn.Module:
    """The network itself, its parameters in float32 where onnxruntime has no convolutions of their type."""
    _, dtype = where_it_computes(model)
    return model if dtype in (torch.float32, torch.float16) else model.float()


def onnx_session(model: nn.Module, image_size: int, channels: int | None = None) -> "onnxruntime.InferenceSession":
    """An onnxruntime session on the CPU for a plain network, with as many threads as torch uses."""
    return open_session(onnx_bytes(model, image_size, channels=channels), Path("the exported network"))


def open_session(content: bytes, source: Path) -> "onnxruntime.InferenceSession":
    """An onnxruntime session on the CPU for an ONNX file's content, with as many threads as torch uses.

    Args:
        content: the file's bytes.
        source: where they come from, for messages.

    Returns:
        The session.

    Raises:
        ModelFileError: the content is damaged, no network that onnxruntime can run, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelFileError(
            f"running {source} needs onnxruntime: pip install -e '.[export]' in the repository"
        ) from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised; printed as well, they would stand among a table's lines
    # The weights are in the file itself: one that names other files to read weights from is not ours.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # its own exceptions have no public base class
        raise ModelFileError(f"network {source} cannot be run: {flat(error)}") from error
