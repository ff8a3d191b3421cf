"""Export a network as an ONNX graph, or as a torch.export program: images of any number, height and width.

The graph pads images itself, by reflection, and takes statistics of the whole image. A sensing network measures the
image in the graph. Before anything is written, the graph is compared with the network on images of odd sizes.
"""

import contextlib
import io
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
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

Format = Literal["onnx", "pt2"]
LEAST_SIDE = 16  # pixels, in a blind network; reflection needs more pixels than it adds
SENSING_LEAST_SIDE = 32
TOLERANCE = 1e-4  # of an output in [0, 1]
SIZES = ((1, 64, 96), (2, 33, 57), (1, 40, 47), (1, 63, 32))  # images, height, width
TIMED_SIDE = 256
OPSET = 20
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
| largest difference from the network | {difference:.1e}, over images of odd sizes |
| CPU time of an image of {timed}×{timed} | {graph_seconds:.2f} s; the network in PyTorch {network_seconds:.2f} s |

{usage}
"""


@dataclass(frozen=True)
class Report:
    """Result of the comparison before writing.

    Attributes:
        difference: largest absolute difference to the network.
        graph_seconds: CPU time of the graph for an image of 256×256.
        network_seconds: that of the network.
    """

    difference: float
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


def export(network: DGUNet, folder: Path, format: Format, *, source: str, card: dict[str, Any]) -> Report:
    """Write a new folder with the graph, config.json, README.md and, for ONNX, example.py.

    Args:
        network: in evaluation mode, on the CPU.
        folder: appears as a whole, or not at all.
        format: `onnx`, or `pt2` for torch.export.
        source: what the README calls the model.
        card: content of config.json of the model.

    Raises:
        ValueError: the folder exists or cannot be written, the network restores blocks one by one, or the graph does
            not compute what the network does.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    if folder.exists():
        raise ValueError(f"{folder}: exists; give the name of a new folder")
    if format == "onnx":
        _check_installed()
    channels = network.config.image_channels
    side = LEAST_SIDE if network.sensing is None else SENSING_LEAST_SIDE
    program = to_program(network)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        run = write_onnx(program, made) if format == "onnx" else _write_pt2(program, made)
        report = _compared(network, run)
        usage = (
            "    python example.py photo.npy restored.npy"
            if format == "onnx"
            else '    restored = torch.export.load("model.pt2").module()(image)'
        )
        kind = "an ONNX graph" if format == "onnx" else "a program of torch.export"
        (made / "README.md").write_text(
            README.format(
                name=folder.name,
                kind=kind,
                source=source,
                channels=channels,
                side=side,
                usage=usage,
                timed=TIMED_SIDE,
                **vars(report),
            )
        )
        if format == "onnx":
            (made / "example.py").write_text(EXAMPLE.format(channels=channels, side=side))
        (made / "config.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
        try:
            made.rename(folder)
        except OSError as error:
            raise ValueError(f"{folder}: cannot be written ({error.strerror})") from error
    return report


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
    import onnxruntime

    with quiet():
        graph = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=["image"], output_names=["restored"], verbose=False
        )
        assert graph is not None
        graph.save(folder / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def run(images: Float32[np.ndarray, "B C H W"]) -> Float32[np.ndarray, "B C H W"]:
        result: Float32[np.ndarray, "B C H W"] = session.run(None, {"image": images})[0]
        return result

    return run


def _write_pt2(program: torch.export.ExportedProgram, folder: Path) -> Run:
    with quiet():
        torch.export.save(program, folder / "model.pt2")
        loaded = torch.export.load(folder / "model.pt2").module()

    def run(images: Float32[np.ndarray, "B C H W"]) -> Float32[np.ndarray, "B C H W"]:
        with torch.no_grad():
            result: Float32[np.ndarray, "B C H W"] = loaded(torch.from_numpy(images)).numpy()
        return result

    return run


def _compared(network: DGUNet, run: Run) -> Report:
    rng, channels = np.random.default_rng(0), network.config.image_channels
    differences = []
    for count, height, width in SIZES:
        images = rng.random((count, channels, height, width), np.float32)
        differences.append(float(np.abs(run(images) - _restored(network, images)).max()))
    if not max(differences) <= TOLERANCE:
        raise ValueError(f"the graph differs from the network by {max(differences):.1e}, more than {TOLERANCE:g}")
    images = rng.random((1, channels, TIMED_SIDE, TIMED_SIDE), np.float32)
    return Report(max(differences), _seconds(lambda: run(images)), _seconds(lambda: _restored(network, images)))


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
