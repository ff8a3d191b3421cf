"""Fixtures that many tests share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.runtime.threads import thread_settings

# One thread: the tests' networks are small. Where a test uses more, they sleep while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(thread_settings(os.environ))

import pytest
import torch
from factories import write_folder
from processes import S3Server, SmallDisk
from synthesis_checkout import synthesis_checkout  # noqa: F401 (a fixture of several packages)

# Files that take minutes, the longest first. Those that make hosts exclude each other: of two workers, the first runs
# the first and the third file. The second stands between them, so that this also holds for the tests of infra alone.
LONGEST = (
    "test_cluster.py", "test_images.py", "test_slurm.py", "test_failures.py", "test_repro.py",
    "test_training_run.py", "test_commands.py", "test_search.py", "test_golden.py", "test_dvc.py",
)  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Folder with train/ (3 shards, 23 pairs) and val/ (2 shards, 5 pairs)."""
    write_folder(tmp_path / "shards" / "train", [7, 10, 6])
    write_folder(tmp_path / "shards" / "val", [2, 3])
    return tmp_path / "shards"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/end_to_end/golden.json from this machine's results",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run the tests, long files come first, so that all processes end together."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}

        def place(item: pytest.Item) -> tuple[int, bool]:
            return (LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST), item.path not in slow)

        items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main() -> Iterator[None]:
    """End with pytest's exit status, without the interpreter's shutdown.

    Threads of Ray, Arrow and gRPC may still run then: a run crashed there after all tests had passed.
    """
    status = yield
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, to be copied: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    command = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", command, f"sqlite:///{path}"], check=True, capture_output=True)
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an MLflow store of this test alone; its cache folder, too, is in `tmp_path`."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address := f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return address


@pytest.fixture
def s3_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A running S3 server; the environment holds its address and credentials."""
    import s3fs  # takes a second

    s3fs.S3FileSystem.clear_instance_cache()  # those of the server of another test have its port
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


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """A function that mounts a small file system; the test skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size}" + (",remount" if folder in mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
        if done.returncode != 0:
            pytest.skip("cannot mount a small file system: run as root, in a container that allows mounts")
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
