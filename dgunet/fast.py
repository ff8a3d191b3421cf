"""A network as an OpenVINO graph, which computes the same as PyTorch on a CPU, but in less time.

How much less, beside other runtimes: `python -m benchmarks.runtimes` and docs/decisions.md. A graph takes statistics of
the whole image that it is given. It is made once for a model, in half a minute, and is kept in the user's cache.
"""

import hashlib
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from dgunet.export import least_side, quiet, to_program
from dgunet.hub import cache
from dgunet.inference import Graph, Precision
from dgunet.network import DGUNet

LEAST_AGREEMENT_DB = 60.0
CHECKED = (65, 131)  # height and width of the image on which a graph is compared
GRAPH_FILE = "graph.xml"
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


def load_graph(model: DGUNet, num_stages: int | None = None, precision: Precision = "float32") -> Graph:
    """Return a function from a degraded image to its estimate, for `dgunet.restore(…, fast=…)`.

    Args:
        model: in evaluation mode, on the CPU. It restores images that are too small for a graph.
        num_stages: as in `dgunet.restore`.
        precision: in which the graph computes. On CPUs without bfloat16, OpenVINO takes float32.

    Raises:
        ValueError: the network restores blocks one by one, or the graph differs from it by too much.
        ImportError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError("restoring with OpenVINO needs openvino: pip install 'dgunet[fast]'") from error
    folder = cache.folder() / "openvino" / _key(model, num_stages)
    if not folder.is_dir():
        cache.fill(folder, lambda empty: _written(model, empty / "graph", num_stages))
    hints = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    compiled = openvino.Core().compile_model(folder / GRAPH_FILE, "CPU", hints)

    def network(image: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        estimates: tuple[Tensor, ...] = model(model.network_input(image, image), num_stages)
        return estimates[-1].float()

    def graph(image: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        if min(image.shape[2:]) < least_side(model):
            return network(image)
        return torch.from_numpy(compiled(np.ascontiguousarray(image.numpy()))[0].copy())

    agreement = _agreement_db(graph, network, model.config.image_channels)
    if not agreement >= LEAST_AGREEMENT_DB:
        raise ValueError(
            f"the graph of OpenVINO agrees with the network to {agreement:.0f} dB only, at least "
            f"{LEAST_AGREEMENT_DB:.0f} are required: leave out "
            + ("--precision bfloat16" if precision == "bfloat16" else f"--fast, or delete {folder} and try again")
        )
    return graph


def write_graph(model: DGUNet, file: Path, num_stages: int | None = None) -> None:
    """Write a graph for images of any number and size: the .xml file `file`, and beside it a .bin with the weights."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    program = to_program(model, num_stages)
    # openvino.convert_model does the same, and reports to its makers that it was called.
    frontend = FrontEndManager().load_by_framework("pytorch")
    with quiet():
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # the frontend holds no reference to it
        graph = frontend.convert(frontend.load(decoder))
        openvino.save_model(graph, file, compress_to_fp16=False)


def _written(model: DGUNet, folder: Path, num_stages: int | None) -> Path:
    folder.mkdir()
    write_graph(model, folder / GRAPH_FILE, num_stages)
    return folder


def _key(model: DGUNet, num_stages: int | None) -> str:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    sha256 = hashlib.sha256(safetensors.torch.save(weights)).hexdigest()
    return cache.digest(sha256, str(asdict(model.config)), str(num_stages), version("openvino"))


def _agreement_db(graph: Graph, network: Graph, channels: int) -> float:
    """Return the PSNR of one against the other on an image of random pixels."""
    image = torch.rand(1, channels, *CHECKED, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        error = float((graph(image) - network(image)).double().square().mean())
    return -10 * math.log10(error) if error else math.inf
