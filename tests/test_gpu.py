"""Training on a GPU. Skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from factories import RECIPE

from dgunet.config import LossKind
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.dataloader.loader import Batch
from pipeline.training.settings import Train
from pipeline.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


def batch(channels: int = 3, seed: int = 0) -> Batch:
    clean = torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(clean.pin_memory(), (clean / 2).pin_memory(), ["none"] * 4)


def trainer(
    device: str,
    loss: str = "charbonnier",
    ratio: int | None = None,
    optimizer: str = "adamw",
    operator_weight: float = 0.0,
    **compute: object,
) -> Trainer:
    changes = {
        "loss": loss,
        "network": {**RECIPE["network"], "sensing_ratio_percent": ratio},
        "optimizer": optimizer,
        "operator_loss": {"degradation": operator_weight, "adjoint": operator_weight},
        "compute": {**RECIPE["compute"], **compute},
    }
    recipe = Train.model_validate({**RECIPE, **changes})
    network = DGUNet.with_seed(DGUNetConfig(image_channels=1 if ratio else 3, **recipe.network.model_dump()), 0)
    return Trainer(network, recipe, torch.device(device))


CHANGES = [
    {}, {"optimizer": "muon"}, {"precision": "bfloat16"}, {"accumulate": 2}, {"recompute_activations": True},
    {"operator_weight": 0.1},
]  # fmt: skip


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Synchronisations of host and device that torch knows of are errors, once the test says so."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", get_args(LossKind))
@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("ratio", [None, 25])
@pytest.mark.parametrize("uses_graph", [True, False])
def test_a_step_never_waits_for_the_device(
    no_waiting: None, changes: dict[str, Any], loss: str, ratio: int | None, uses_graph: bool
) -> None:
    training, inputs = trainer("cuda", loss, ratio, **changes), batch(1 if ratio else 3)
    training.uses_graph = uses_graph
    for _ in range(3):  # the first steps allocate memory
        training.step(inputs)
    assert (training.graph is not None) == uses_graph
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    training.step(inputs)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_the_same_as_on_the_cpu(optimizer: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        both = [trainer(device, optimizer=optimizer) for device in ("cpu", "cuda")]
        losses = [[float(made.step(batch())[0]) for _ in range(4)] for made in both]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("ratio", [None, 25])
def test_a_graph_gives_the_losses_of_single_kernels(changes: dict[str, Any], ratio: int | None, tmp_path: Path) -> None:
    channels = 1 if ratio else 3
    losses = []
    for uses_graph in (True, False):
        made = trainer("cuda", "charbonnier", ratio, **changes)
        made.uses_graph = uses_graph
        steps = [made.step(batch(channels, seed)) for seed in range(3)]
        assert (made.graph is not None) == uses_graph
        made.save(tmp_path)
        made.step(batch(channels))
        made.load(tmp_path)  # into the weights whose places the graph knows
        steps.append(made.step(batch(channels, 3)))
        losses.append([float(value) for step in steps for value in step])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if changes.get("precision") else 1e-4)
