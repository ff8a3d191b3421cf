"""What many tests need: small shards and a small recipe, made in a moment."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.params import Train
from pipeline.shards import Index, Pair, write_index, write_shard

PROJECT = Path(__file__).parents[1]
RECIPE: dict[str, Any] = {
    "network": {
        "width": 8, "growth": 4, "head_growth": 4, "num_stages": 2, "share_stages": False,
        "sensing_ratio_percent": None, "full_image": True,
    },
    "loss": "charbonnier", "patch_size": 16, "batch_size": 4, "num_steps": 8, "warmup_steps": 2,
    "learning_rate": 2e-3, "final_learning_rate": 1e-6, "weight_decay": 0.0, "gradient_clip": 1.0,
    "average_decay": 0.9, "validate_every": 4, "max_skipped_steps": 1, "mixup_alpha": 0.0,
    "compute": {"precision": "float32", "accumulate": 1, "recompute_activations": False, "compile": False},
}  # fmt: skip


def recipe(**changes: Any) -> Train:
    """The small recipe with some values changed."""
    return Train.model_validate({**RECIPE, **changes})


def pair(number: int, size: int = 24, degraded: bool = True) -> Pair:
    """A pair whose clean image is drawn from its number."""
    rng = np.random.default_rng(number)
    clean = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    noisy = np.clip(clean.astype(int) + rng.integers(-20, 21, clean.shape), 0, 255).astype(np.uint8)
    return Pair(f"pair{number:04d}", clean, noisy if degraded else None, {"number": number})


def write_folder(folder: Path, sizes: list[int], *, online: bool = False) -> Index:
    """A folder of shards of these many pairs each."""
    folder.mkdir(parents=True)
    degradation = {"kind": "gaussian_noise", "sigma": [25.0, 25.0], "per_channel": True}
    entries, first = [], 0
    for number, size in enumerate(sizes):
        pairs = [pair(i, degraded=not online) for i in range(first, first + size)]
        entries.append(write_shard(folder / f"{number:06d}.tar", pairs))
        first += size
    index = Index({"degradation": degradation, "online": online, "seed": 1}, tuple(entries))
    write_index(folder, index)
    return index


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Folder with train/ (3 shards, 23 pairs) and val/ (2 shards, 5 pairs)."""
    write_folder(tmp_path / "shards" / "train", [7, 10, 6])
    write_folder(tmp_path / "shards" / "val", [2, 3])
    return tmp_path / "shards"


def small_params() -> dict[str, Any]:
    """params.yaml as it is committed."""
    content: dict[str, Any] = yaml.safe_load((PROJECT / "params.yaml").read_text())
    return content


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without content: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    command = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", command, f"sqlite:///{path}"], check=True, capture_output=True)
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an MLflow store in `tmp_path` that the test has for itself, and a cache of its own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address := f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return address
