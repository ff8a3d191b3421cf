"""Export a network as an ONNX graph, or as a torch.export program: images of any number, height and width.

The graph pads images itself, by reflection, and takes statistics of the whole image. A sensing network measures the
image in the graph. Before anything is written, the graph is compared with the network on images of odd sizes; a graph
of lower precision must agree with it so far that the restored image loses at most 0.1 dB.
"""

import contextlib
import io
import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from dgunet.config import BLOCK_SIZE
from dgunet.network import DGUNet
from dgunet.network.unfolding import SIZE_MULTIPLE
from dgunet.quantization import LARGEST_LOSS, GraphPrecision, Image, needed_agreement, quality_of, to_float16, to_int8

Format = Literal["onnx", "pt2"]
LEAST_SIDE = 16  # pixels, in a blind network; reflection needs more pixels than it adds
SENSING_LEAST_SIDE = 32
TOLERANCE = 1e-4  # of an output in [0, 1]
SIZES = ((1, 64, 96), (2, 33, 57), (1, 40, 47), (1, 63, 32))  # images, height, width
LARGE = (1, 512, 512)  # sums over its pixels show whether a lower precision holds them
TIMED_SIDE = 256
OPSET = 20
Images = Float32[np.ndarray, "_ _ _ _"]  # B C H W, of any size
Run = Callable[[Float32[np.ndarray, "B C H W"]], Float32[np.ndarray, "B C H W"]]

EXAMPLE = '''"""Restore an array with onnxruntime and numpy alone: python example.py photo.npy restored.npy

photo.npy holds H W C, uint8, uint16, or float32 in [0, 1], with C = {channels}; both sides have {side} pixels or more.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

photo = np.load(sys.argv[1])
white = 1 if photo.dtype == np.float32 else np.iinfo(photo.dtype).max
batch = (photo.astype(np.float32) / white).transpose(2, 0, 1)[None]  # B C H W in [0, 1]

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
(restored,) = session.run(None, {{"image": batch}})

restored = restored[0].transpose(1, 2, 0)
if white != 1:
    restored = np.rint(restored.clip(0, 1) * white)
np.save(sys.argv[2], restored.astype(photo.dtype))
'''
README = """# {name}

A DGUNet as {kind}, exported from {source}.

| | |
|---|---|
| input | `image`, float32 B C H W in [0, 1], C = {channels}, H and W of {side} pixels or more |
| output | `restored`, of the same shape |
| precision | {precision} |
| agreement with the network | {agreement:.0f} dB; largest difference {difference:.1e} |
| CPU time of an image of {timed}×{timed} | {graph_seconds:.2f} s; the network in PyTorch {network_seconds:.2f} s |

{usage}
"""


@dataclass(frozen=True)
class Report:
    """Result of the comparison before writing.

    Attributes:
        difference: largest absolute difference to the network.
        agreement: PSNR against the network, in dB.
        graph_seconds: CPU time of the graph for an image of 256×256.
        network_seconds: that of the network.
    """

    difference: float
    agreement: float
    graph_seconds: float
    network_seconds: float


class ImageToImage(nn.Module):
    """The network from images to restored images, with padding in operations that allow any size.

    Args:
        network: in evaluation mode.
        num_stages: how many stages are computed; None: all.
    """

    def __init__(self, network: DGUNet, num_stages: int | None = None) -> None:
        super().__init__()
        self.network, self.num_stages = network, num_stages

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return the last estimate."""
        height, width = image.shape[2:]
        sensing = self.network.sensing
        multiple = SIZE_MULTIPLE if sensing is None else BLOCK_SIZE
        for axis, side in ((2, height), (3, width)):
            index = torch.arange((side + multiple - 1) // multiple * multiple, device=image.device)
            image = image.index_select(axis, torch.where(index < side, index, 2 * (side - 1) - index))
        estimate = self.network.unfold(image if sensing is None else sensing.degrade(image), self.num_stages)[-1]
        rows, columns = (torch.arange(side, device=image.device) for side in (height, width))
        return estimate.index_select(2, rows).index_select(3, columns)


def export(
    network: DGUNet,
    folder: Path,
    format: Format,
    *,
    source: str,
    card: dict[str, Any],
    precision: GraphPrecision = "float32",
    calibration: Sequence[Image] = (),
) -> Report:
    """Write a new folder with the graph, config.json, README.md and, for ONNX, example.py.

    Args:
        network: in evaluation mode, on the CPU.
        folder: appears as a whole, or not at all.
        format: `onnx`, or `pt2` for torch.export.
        source: what the README calls the model.
        card: content of config.json of the model.
        precision: of the graph; one other than float32 is for ONNX.
        calibration: images as those that will be restored, in [0, 1]. `int8` needs two or more: it takes the ranges of
            values from every other one, and is compared with the network on the rest.

    Raises:
        ValueError: the folder exists or cannot be renamed into place, the network restores blocks one by one, the
            graph does not compute what the network does, its lower precision costs more than 0.1 dB or is not for
            this format, or calibration images are missing.
        OSError: no temporary folder can be made beside `folder`, or a file in it cannot be written.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    if folder.exists():
        raise ValueError(f"{folder}: exists; give the name of a new folder")
    if format == "onnx":
        _check_installed()
    elif precision != "float32":
        raise ValueError(f"{precision} is for the format onnx; a program of torch.export is written in float32")
    if precision == "int8" and len(calibration) < 2:
        raise ValueError("int8 needs two photos or more that are like those to be restored: name them by --calibrate")
    channels = network.config.image_channels
    program = to_program(network)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        run = write_onnx(program, made) if format == "onnx" else _write_pt2(program, made)
        if precision == "float32":
            report = _compared(network, run, run, _random_images(channels))
            if not report.difference <= TOLERANCE:
                raise ValueError(
                    f"the graph differs from the network by {report.difference:.1e}, more than {TOLERANCE:g}"
                )
        else:
            report = _compared_in_lower_precision(network, made / "model.onnx", precision, calibration)
            _check_agreement(report, precision, quality_of(card))
        _describe(made, format, report, network, name=folder.name, source=source, precision=precision)
        (made / "config.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
        try:
            made.rename(folder)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error.strerror})") from error
    return report


def least_side(network: DGUNet) -> int:
    """Return how many pixels the sides of an image must have at least in a graph of this network."""
    return LEAST_SIDE if network.sensing is None else SENSING_LEAST_SIDE


def _describe(
    folder: Path, format: Format, report: Report, network: DGUNet, *, name: str, source: str, precision: GraphPrecision
) -> None:
    """Write README.md and, for ONNX, example.py."""
    usage = (
        "    python example.py photo.npy restored.npy"
        if format == "onnx"
        else '    restored = torch.export.load("model.pt2").module()(image)'
    )
    facts = {"channels": network.config.image_channels, "side": least_side(network)}
    text = README.format(
        name=name,
        kind="an ONNX graph" if format == "onnx" else "a program of torch.export",
        source=source,
        precision=precision,
        usage=usage,
        timed=TIMED_SIDE,
        **facts,
        **vars(report),
    )
    (folder / "README.md").write_text(text)
    if format == "onnx":
        (folder / "example.py").write_text(EXAMPLE.format(**facts))


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"exporting to ONNX needs {error.name}: pip install 'dgunet[export]'") from error


def to_program(network: DGUNet, num_stages: int | None = None) -> torch.export.ExportedProgram:
    """Return `ImageToImage` as torch.export traces it, for images of any number, height and width.

    Raises:
        ValueError: the network restores blocks one by one.
    """
    if not network.config.full_image:
        raise ValueError("a network that restores blocks one by one (full_image: false) cannot be exported")
    example = torch.zeros(2, network.config.image_channels, 64, 96)
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad(), quiet():
        return torch.export.export(
            ImageToImage(network, num_stages), (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
        )


def write_onnx(program: torch.export.ExportedProgram, folder: Path) -> Run:
    """Write model.onnx and return what runs it."""
    with quiet():
        graph = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=["restored"], verbose=False
        )
        assert graph is not None
        graph.save(folder / "model.onnx", external_data=False)
    return run_graph(folder / "model.onnx")


def run_graph(file: Path, *, num_threads: int = 0, optimized: bool = True) -> Run:
    """Return what runs an ONNX graph on the CPU.

    Args:
        file: of the graph.
        num_threads: 0: as many as there are cores.
        optimized: False: compute every operator as the graph says it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(images: Float32[np.ndarray, "B C H W"]) -> Float32[np.ndarray, "B C H W"]:
        result: Float32[np.ndarray, "B C H W"] = session.run(None, {"image": images})[0]
        return result

    return run


def lower_precision(file: Path, precision: GraphPrecision, calibration: Sequence[Image]) -> None:
    """Convert the graph in a file to float16, or to int8 with ranges of values from images; float32: leave it."""
    with quiet():
        if precision == "int8":
            to_int8(file, calibration)
        elif precision == "float16":
            to_float16(file)


def _compared_in_lower_precision(
    network: DGUNet, file: Path, precision: GraphPrecision, calibration: Sequence[Image]
) -> Report:
    """Convert the graph in a file, and compare it with the network."""
    channels = network.config.image_channels
    lower_precision(file, precision, calibration[::2])
    # Ranges of values that suit the images they were measured on say little about others.
    images = calibration[1::2] if precision == "int8" else [*calibration, *_random_images(channels, (*SIZES, LARGE))]
    # Where a CPU lacks an operator in float16, optimization computes neighbours in float32; other devices do not.
    return _compared(network, run_graph(file, optimized=precision != "float16"), run_graph(file), images)


def _check_agreement(report: Report, precision: GraphPrecision, quality: float) -> None:
    needed = needed_agreement(quality)
    if not report.agreement >= needed:
        raise ValueError(
            f"the graph in {precision} agrees with the network to {report.agreement:.1f} dB; {needed:.1f} dB are "
            f"needed to lose no more than {LARGEST_LOSS:g} dB of {quality:.1f} dB. Export it in "
            + ("float16" if precision == "int8" else "float32")
        )


def _write_pt2(program: torch.export.ExportedProgram, folder: Path) -> Run:
    with quiet():
        torch.export.save(program, folder / "model.pt2")
        loaded = torch.export.load(folder / "model.pt2").module()

    def run(images: Float32[np.ndarray, "B C H W"]) -> Float32[np.ndarray, "B C H W"]:
        with torch.no_grad():
            result: Float32[np.ndarray, "B C H W"] = loaded(torch.from_numpy(images)).numpy()
        return result

    return run


def _random_images(channels: int, sizes: Sequence[tuple[int, int, int]] = SIZES) -> list[Images]:
    rng = np.random.default_rng(0)
    return [rng.random((count, channels, height, width), np.float32) for count, height, width in sizes]


def _compared(network: DGUNet, run: Run, timed: Run, images: Sequence[Images]) -> Report:
    """Compare what `run` computes with the network, and time `timed`."""
    errors = [(run(batch) - _restored(network, batch)).astype(np.float64) for batch in images]
    difference = max(float(np.abs(error).max()) for error in errors)
    mean_square = float(np.mean([np.square(error).mean() for error in errors]))
    agreement = -10 * math.log10(mean_square) if mean_square else math.inf
    image = np.random.default_rng(0).random((1, network.config.image_channels, TIMED_SIDE, TIMED_SIDE), np.float32)
    return Report(difference, agreement, _seconds(lambda: timed(image)), _seconds(lambda: _restored(network, image)))


def _restored(network: DGUNet, images: Float32[np.ndarray, "B C H W"]) -> Float32[np.ndarray, "B C H W"]:
    batch = torch.from_numpy(images)
    with torch.inference_mode():
        result: Float32[np.ndarray, "B C H W"] = network(network.network_input(batch, batch))[-1].numpy()
    return result


def _seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(4):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times[1:])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress, and warnings about their own code, out of the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
