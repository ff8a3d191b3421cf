"""Training on a GPU. Skipped where there is none."""

from collections.abc import Iterator
from typing import get_args

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


def batch(channels: int = 3) -> Batch:
    clean = torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(clean.pin_memory(), (clean / 2).pin_memory(), ["none"] * 4)


def trainer(
    device: str, loss: str = "charbonnier", ratio: int | None = None, optimizer: str = "adamw", **compute: object
) -> Trainer:
    sizes = {**RECIPE["network"], "sensing_ratio_percent": ratio}
    changes = {"loss": loss, "network": sizes, "optimizer": optimizer, "compute": {**RECIPE["compute"], **compute}}
    recipe = Train.model_validate({**RECIPE, **changes})
    network = DGUNet.with_seed(DGUNetConfig(image_channels=1 if ratio else 3, **recipe.network.model_dump()), 0)
    return Trainer(network, recipe, torch.device(device))


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Synchronisations of host and device that torch knows of are errors, once the test says so."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", get_args(LossKind))
@pytest.mark.parametrize(
    "compute",
    [{}, {"optimizer": "muon"}, {"precision": "bfloat16"}, {"accumulate": 2}, {"recompute_activations": True}],
)
@pytest.mark.parametrize("ratio", [None, 25])
def test_a_step_never_waits_for_the_device(
    no_waiting: None, compute: dict[str, object], loss: str, ratio: int | None
) -> None:
    training, inputs = trainer("cuda", loss, ratio, **compute), batch(1 if ratio else 3)
    for _ in range(3):  # the first steps allocate memory
        training.step(inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    training.step(inputs)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_the_same_as_on_the_cpu(optimizer: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        both = [trainer(device, optimizer=optimizer) for device in ("cpu", "cuda")]
        losses = [[float(made.step(batch())[0]) for _ in range(4)] for made in both]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
