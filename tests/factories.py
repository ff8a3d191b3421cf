"""Small recipes, pairs, shards and image files for tests, and where published images lie."""

import copy
import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dgunet.network import DGUNet, DGUNetConfig
from pipeline.config.params import is_same_kind, task_names
from pipeline.runtime.environment import read_environment
from pipeline.shards.format import Index, Pair, write_index, write_shard
from pipeline.training.context import WorkerContext
from pipeline.training.settings import Train

PROJECT = Path(__file__).parents[1]
DATA = Path(read_environment().data).absolute()  # published images
PARITY = Path(os.environ.get("DGUNET_TEST_PARITY") or DATA / "parity")  # weights and outputs of the published code
RECIPE: dict[str, Any] = {
    "network": {
        "width": 8, "growth": 4, "head_growth": 4, "num_stages": 2, "share_stages": False,
        "sensing_ratio_percent": None, "full_image": True,
    },
    "loss": "charbonnier", "operator_loss": {"degradation": 0.1, "adjoint": 0.02},
    "patch_size": 16, "batch_size": 4, "num_steps": 8, "warmup_steps": 2,
    "learning_rate": 2e-3, "final_learning_rate": 1e-6, "weight_decay": 0.0, "gradient_clip": 1.0,
    "average_decay": 0.9, "validate_every": 4, "max_skipped_steps": 1, "mixup_alpha": 0.0, "optimizer": "adamw",
    "compute": {"precision": "float32", "accumulate": 1, "recompute_activations": False, "compile": False},
}  # fmt: skip


def pythonpath(test: str) -> str:
    """PYTHONPATH for processes that import the project, the modules of `tests` and the test file `test` itself."""
    return os.pathsep.join(map(str, (PROJECT, PROJECT / "tests", Path(test).parent)))


def image_set(name: str) -> Path:
    """The folder of a set of published images, as docs/datasets.md names it; the test skips where it is missing."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no images in {DATA / name}: set DGUNET_DATA; docs/datasets.md says where to get them")
    return DATA / name


def recipe(**changes: Any) -> Train:
    """The small recipe with some values changed."""
    return Train.model_validate({**RECIPE, **changes})


def pair(number: int, size: int = 24, degraded: bool = True) -> Pair:
    """A pair whose clean image is drawn from its number."""
    rng = np.random.default_rng(number)
    clean = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    noisy = np.clip(clean.astype(int) + rng.integers(-20, 21, clean.shape), 0, 255).astype(np.uint8)
    return Pair(f"pair{number:04d}", clean, noisy if degraded else None, {"number": number, "degradation": {}})


def write_folder(folder: Path, sizes: list[int], *, online: bool = False) -> Index:
    """A folder of shards of these many pairs each."""
    folder.mkdir(parents=True)
    degradation = {"kind": "gaussian_noise", "sigma": [25.0, 25.0], "per_channel": True}
    entries, first = [], 0
    for number, size in enumerate(sizes):
        pairs = [pair(i, degraded=not online) for i in range(first, first + size)]
        entries.append(write_shard(folder / f"{number:06d}.tar", pairs))
        first += size
    index = Index({"degradation": degradation, "online": online, "seed": 1, "tile_size": 24}, tuple(entries))
    write_index(folder, index)
    return index


def small_params() -> dict[str, Any]:
    """params.yaml as it is committed."""
    return copy.deepcopy(_read_params())


@cache
def _read_params() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((PROJECT / "params.yaml").read_text())
    return content


def repeated_defaults(params: dict[str, Any]) -> list[str]:
    """The keys that a task states although the defaults have the same value."""

    def repeated(name: str, own: Any, default: Any) -> list[str]:
        if isinstance(own, dict) and isinstance(default, dict) and is_same_kind(default, own):
            return [
                found for key in own if key in default for found in repeated(f"{name}.{key}", own[key], default[key])
            ]
        return [name] if own == default and type(own) is type(default) else []

    defaults = params["defaults"]
    return [
        found
        for task in task_names(params)
        for stage, own in params[task].items()
        for found in repeated(f"{task}.{stage}", own, defaults[stage])
    ]


def png(value: int = 0) -> bytes:
    """A small gray picture as a file's bytes."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_pngs(*names: str) -> None:
    """Put pictures, each another, below the working directory."""
    for number, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


def step_of(context: WorkerContext) -> int:
    """The step from which the worker continues."""
    with context.resume as folder:
        return int((folder / "step").read_text()) if folder else 0


def changing_network(config: DGUNetConfig) -> DGUNet:
    """A network whose stages change the image: the initial ones change almost nothing."""
    model = DGUNet.with_seed(config, 0).eval()
    with torch.no_grad():
        for stage in (model.first, *model.between):
            stage.proximal.end.correct.weight.mul_(20)
        model.last.tail.weight.mul_(100)
    return model
