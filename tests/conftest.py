"""What many tests need: small shards and a small recipe, made in a moment."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main() -> Iterator[None]:
    """Leave with pytest's verdict, without tearing the interpreter down.

    Threads of Ray, Arrow and gRPC may outlive it: a run crashed there, after all tests had passed.
    """
    status = yield
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status))


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


def png(value: int = 0) -> bytes:
    """A small gray picture as a file's bytes."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def lay(*names: str) -> None:
    """Put pictures, each another, below the working directory."""
    for number, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


def until(condition: Callable[[], Any], seconds: float = 600) -> Any:
    """Return what `condition` returns once that is true; TimeoutError if it never is."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {condition}")
        time.sleep(0.05)
    return result


def command(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended, whether reaped or not."""
    try:
        return " ".join(process.cmdline()) if process.is_running() else ""
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that leads a group of its own; what of it and of all that it started is left in the end is killed."""
    with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for left in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    with suppress(psutil.NoSuchProcess):
                        left.kill()


class S3Server:
    """A bucket on an S3 server of our own."""

    bucket = "bucket"

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        self.port = int(until(self.listening).group(1))

    def listening(self) -> re.Match[str] | None:
        """What it says of its port, once it listens."""
        said = self.log.read_text()
        assert self.process.poll() is None, said
        return re.search(r"Running on http://127\.0\.0\.1:(\d+)", said)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        """A client of the server, with the bucket made."""
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket=self.bucket)
        return client


@pytest.fixture
def s3_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server that the environment names."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        yield server
    finally:
        server.stop()


SmallDisk = Callable[[Path, str], None]
"""Mounts a disk of so many bytes ("200k", "4m") at a folder, or gives the one that is there another size."""


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """A way to fill a disk; skips where this process must not mount one."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size}" + (",remount" if folder in mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
        if done.returncode != 0:
            pytest.skip("needs to mount a small disk: root, and a container that allows it")
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
