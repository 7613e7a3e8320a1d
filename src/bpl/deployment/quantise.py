"""Eight bits by post-training quantisation: an ONNX file in, a smaller and faster one out, no training.

Static, per channel, in the QDQ format (Jacob et al. 2018; the scheme of onnxruntime's `quantize_static`): every weight
w of output channel c becomes round(w / s_c), every activation a becomes round(a / s) + z, with scales s fixed
beforehand: a channel's s_c by its largest weight, a map's s and z by the smallest and the largest value it has on the
calibration images.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

CALIBRATION_IMAGES = 256
_BATCH = 32  # images at once: every map of the network is kept for one batch


def calibration_part(indices: Tensor, seed: int = 0) -> Tensor:
    """Which images to calibrate on: `CALIBRATION_IMAGES` of the training part, drawn without replacement.

    Args:
        indices: (n,) the training part.
        seed: of the draw.

    Returns:
        (m,) indices, m at most n.
    """
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return indices[order[:CALIBRATION_IMAGES].to(indices.device)]


def quantise_onnx(content: bytes, images: Tensor) -> bytes:
    """Quantise a float network to 8-bit integers.

    Args:
        content: the float network as ONNX, as `bpl.onnx_files.onnx_bytes` gives it.
        images: (n, 3, H, W) normalised training images; their range of activations is what can be represented.

    Returns:
        The quantised network as ONNX, with the same input, output and metadata.

    Raises:
        ValueError: no images.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    if not len(images):
        raise ValueError("there are no images to calibrate 8-bit quantisation on: it needs at least one")

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(images.float().cpu().split(_BATCH))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    network = onnx.load_from_string(content)
    metadata = {entry.key: entry.value for entry in network.metadata_props}
    add_pre_process_metadata(network)  # shapes are known and batch normalisations folded: torch's exporter did both
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        quantize_static(
            network,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Unsigned activations: with signed ones onnxruntime has no fast kernel on x86.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bits of weights: pairs of 8-bit products overflow the 16 bits in which processors without VNNI add
            # them up, and a network must not classify differently on another machine.
            reduce_range=True,
        )
        quantised = onnx.load(path)
    onnx.helper.set_model_props(quantised, metadata)
    return quantised.SerializeToString()
