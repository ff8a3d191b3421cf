"""dgunet export: a model as an ONNX graph or a torch.export program."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgunet.commands.arguments import MODEL_HELP, path

if TYPE_CHECKING:
    from dgunet.network import DGUNet
    from dgunet.quantization import Image

CALIBRATION_SIDE = 256  # pixels, of the part of a photo that is used
MAX_CALIBRATION = 64  # photos; of more, every n-th is taken, so that at most this many remain


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its arguments."""
    export = actions.add_parser(
        "export",
        help="write a model as an ONNX graph or a torch.export program",
        description="Write a new folder with the graph, its card and, for ONNX, an example that needs only onnxruntime "
        "and numpy. The graph takes any number of images with sides of 16 pixels or more (32 for a sensing network), "
        "and computes its statistics over the whole image. It is compared with the model before it is written.",
    )
    export.add_argument("model", help=MODEL_HELP)
    export.add_argument("out", type=path, metavar="OUT", help="a new folder")
    export.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="(default: onnx)")
    export.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of an ONNX graph; float16: for GPUs and phones; int8: convolutions with 8-bit integers, faster on CPUs. "
        "Both are refused where they cost more than 0.1 dB (default: float32)",
    )
    export.add_argument(
        "--calibrate",
        nargs="+",
        type=path,
        default=[],
        metavar="PHOTO",
        help="for int8: two photos or more, or folders of them, like those to be restored",
    )
    export.set_defaults(action=_export)


def _export(arguments: argparse.Namespace) -> int:
    from dgunet.checkpoint import load_model, read_card
    from dgunet.console import write_line
    from dgunet.export import TIMED_SIDE, export
    from dgunet.hub import model_folder

    if arguments.out.exists():  # before some seconds of work
        raise ValueError(f"{arguments.out}: exists; give the name of a new folder")
    folder = model_folder(arguments.model)
    model = load_model(folder)
    if model.local_statistics is not None:
        write_line(f"the graph takes statistics of the whole image, not over {model.local_statistics}")
    report = export(
        model,
        arguments.out,
        arguments.format,
        source=arguments.model,
        card=read_card(folder),
        precision=arguments.precision,
        calibration=_calibration(model, arguments.calibrate),
    )
    write_line(
        f"{arguments.out}: differs from the model by at most {report.difference:.1e} ({report.agreement:.0f} dB); an "
        f"image of {TIMED_SIDE}x{TIMED_SIDE} takes {report.graph_seconds:.2f} s of CPU, with PyTorch "
        f"{report.network_seconds:.2f} s"
    )
    return 0


def _calibration(model: "DGUNet", photos: Sequence[Path]) -> "list[Image]":
    """Return the middle of each photo, of up to MAX_CALIBRATION, as the graph takes it."""
    from dgunet.export import least_side
    from dgunet.images.files import read_photo, to_float
    from dgunet.images.photo import in_channels
    from dgunet.jobs import find_photos

    images, side, found = [], least_side(model), find_photos(photos)
    for photo in found[:: -(-len(found) // MAX_CALIBRATION) or 1]:
        pixels = in_channels(read_photo(photo).pixels, model.config.image_channels)
        height, width = pixels.shape[:2]
        if min(height, width) < side:
            raise ValueError(f"{photo}: a photo for --calibrate needs {side} pixels or more on each side")
        top, left = max(0, height - CALIBRATION_SIDE) // 2, max(0, width - CALIBRATION_SIDE) // 2
        middle = pixels[top : top + CALIBRATION_SIDE, left : left + CALIBRATION_SIDE]
        images.append(to_float(middle).transpose(2, 0, 1)[None].copy())
    return images
