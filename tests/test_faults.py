"""What befalls a long training, done to real processes: workers killed twenty times, one that hangs, a full storage."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from conftest import S3Server, SmallDisk, recipe
from test_cluster import wait_for

from pipeline import cluster, training, workers
from pipeline.job import Job
from pipeline.line import Ears
from pipeline.shards import read_index

TESTS = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("DGUNET_PATIENCE", "20")
    yield tmp_path / "storage"


def add_up(last: int, folder: str, worker: workers.Worker) -> None:
    """Adds ranks up with all others, a checkpoint each step; a file in `folder` says what befalls it on the way."""
    wounds = Path(folder)
    step = int((worker.resume / "step").read_text()) if worker.resume else 0
    if worker.rank == 0:
        with (wounds / "starts").open("a") as file:
            file.write(f"{step} ")
    while step < last:
        step += 1
        wound = wounds / f"{step}.stop.{worker.rank}"
        if wound.exists():
            wound.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        total = torch.tensor(float(worker.rank))
        dist.all_reduce(total)
        checkpoint = wounds / f"made{step}"
        if worker.rank == 0:
            checkpoint.mkdir(exist_ok=True)
            (checkpoint / "step").write_text(str(step))
            (checkpoint / "ballast").write_bytes(bytes(300_000))
        worker.report({"step": step, "total": float(total)}, checkpoint if worker.rank == 0 else None)


def run(
    work: Callable[[workers.Worker], None],
    folder: Path,
    name: str,
    num_workers: int,
    on_notice: Callable[[str], None] = lambda line: None,
) -> tuple[list[int], list[str]]:
    """Run `work`; return the steps that were reported, and the notices."""
    heard: list[int] = []
    notices: list[str] = []

    def note(line: str) -> None:
        notices.append(line)
        on_notice(line)

    ears = Ears(lambda metrics: heard.append(int(metrics["step"])), notice=note)
    share = workers.Share(num_workers, 0.5, 0.0)
    with cluster.session():
        workers.fit(work, name=name, into=folder / "out", ears=ears, share=share)
    return heard, notices


def test_a_worker_that_hangs_is_started_again(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "3.stop.1").touch()
    heard, notices = run(partial(add_up, 5, str(tmp_path)), tmp_path, "hangs", 2)
    assert notices == ["worker 0 waited in vain for another; worker 1 hung and was killed; back to the last checkpoint"]
    assert heard == [1, 2, 3, 4, 5]
    assert (tmp_path / "starts").read_text() == "0 2 "


def test_training_waits_for_a_full_storage(storage: Path, small_disk: SmallDisk, tmp_path: Path) -> None:
    small_disk(storage, "4m")
    freed = threading.Event()

    def fill() -> None:
        while not (tmp_path / "made3").exists():
            time.sleep(0.01)
        with (storage / "others").open("wb", buffering=0) as file:
            while not freed.wait(0.01):
                try:
                    file.write(bytes(100_000))
                except OSError:
                    continue
        (storage / "others").unlink()

    def free(line: str) -> None:
        if "No space left" in line:
            freed.set()

    filler = threading.Thread(target=fill)
    filler.start()
    heard, _ = run(partial(add_up, 8, str(tmp_path)), tmp_path, "full", 1, free)
    filler.join()
    assert heard == list(range(1, 9))
    assert (tmp_path / "starts").read_text() == "0 "
    assert (tmp_path / "out" / "step").read_text() == "8"


def test_training_waits_for_a_storage_folder_that_has_gone_and_so_does_a_worker_that_dies_meanwhile(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_PATIENCE", "120")
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "mounted" / "runs"))
    (tmp_path / "mounted").mkdir()

    def unmount() -> None:
        wait_for(tmp_path / "made3")
        (tmp_path / "mounted").rename(tmp_path / "gone")
        time.sleep(3)
        for worker in processes("ray::RayTrainWorker"):  # where Ray's controller has not ended it itself
            worker.kill()
        time.sleep(15)
        shutil.rmtree(tmp_path / "mounted", ignore_errors=True)  # Ray may have made an empty one
        (tmp_path / "gone").rename(tmp_path / "mounted")

    unmounting = threading.Thread(target=unmount)
    unmounting.start()
    _, notices = run(partial(add_up, 12, str(tmp_path)), tmp_path, "gone", 1)
    unmounting.join()
    assert (tmp_path / "out" / "step").read_text() == "12"
    assert any("trying again" in line for line in notices)
    assert [int(step) for step in (tmp_path / "starts").read_text().split()][-1] >= 2  # and not anew


def processes(name: str) -> list[psutil.Process]:
    ours = psutil.Process().children(recursive=True)
    return [process for process in ours if " ".join(process.cmdline()).startswith(name)]


def kill_at_the_second_step(folder: Path, name: str) -> None:
    wait_for(folder / "made2")
    (process,) = processes(name)
    process.kill()


def test_a_run_survives_the_death_of_its_line(storage: Path, tmp_path: Path) -> None:
    threading.Thread(target=kill_at_the_second_step, args=(tmp_path, "ray::Line")).start()
    heard, _ = run(partial(add_up, 30, str(tmp_path)), tmp_path, "line", 1)
    assert heard[-1] == 30
    assert (tmp_path / "starts").read_text() == "0 "


def test_the_death_of_the_controller_is_told_and_the_run_goes_on_later(storage: Path, tmp_path: Path) -> None:
    threading.Thread(target=kill_at_the_second_step, args=(tmp_path, "ray::TrainController")).start()
    with pytest.raises(workers.WorkersLost, match="Ray's controller died"):
        run(partial(add_up, 1000, str(tmp_path)), tmp_path, "controller", 1)
    run(partial(add_up, 8, str(tmp_path)), tmp_path, "controller", 1)
    assert int((tmp_path / "starts").read_text().split()[1]) >= 1


@pytest.mark.timeout(600)
def test_training_waits_for_a_storage_that_does_not_answer(
    storage: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.client()
    monkeypatch.setenv("DGUNET_STORAGE", f"s3://{s3_server.bucket}/runs")
    monkeypatch.setenv("DGUNET_PATIENCE", "120")

    def hang() -> None:
        wait_for(tmp_path / "made3")
        s3_server.process.send_signal(signal.SIGSTOP)

    def answer(line: str) -> None:
        s3_server.process.send_signal(signal.SIGCONT)

    threading.Thread(target=hang).start()
    heard, notices = run(partial(add_up, 6, str(tmp_path)), tmp_path, "away", 1, answer)
    assert any("trying again" in line for line in notices)
    assert heard == [1, 2, 3, 4, 5, 6]


def mortal(job: Job, folder: str, worker: workers.Worker) -> None:
    """The job, by a worker whose process can be found."""
    (Path(folder) / f"worker{worker.rank}.new").write_text(str(os.getpid()))
    (Path(folder) / f"worker{worker.rank}.new").rename(Path(folder) / f"worker{worker.rank}")
    job(worker)


def kill(folder: Path, times: int, killed: list[int]) -> None:
    """Kill a worker chosen at random, at random moments of its life, so many times."""
    rng = np.random.default_rng(0)
    while len(killed) < times:
        victim = folder / f"worker{rng.integers(2)}"
        if not victim.exists() or (process := int(victim.read_text())) in killed:
            time.sleep(0.05)
            continue
        time.sleep(rng.uniform(0, 3))
        with contextlib.suppress(ProcessLookupError):  # gone with its group: that is no kill of ours
            os.kill(process, signal.SIGKILL)
            killed.append(process)


@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_ends_where_one_ends_that_was_left_alone(
    storage: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "100")
    settings = recipe(num_steps=1500, validate_every=10, warmup_steps=10)
    indices = {split: read_index(shards / split) for split in ("train", "val")}
    job = Job(settings, 3, shards, indices, 1, {"task": "test", "provenance": {"commit": "none", "data": "none"}})
    run(job, tmp_path, "alone", 2)
    (tmp_path / "out").rename(tmp_path / "alone")
    killed: list[int] = []
    killer = threading.Thread(target=kill, args=(tmp_path, 20, killed), daemon=True)
    killer.start()
    heard, notices = run(partial(mortal, job, str(tmp_path)), tmp_path, "killed", 2)
    assert len(killed) == 20
    assert sum("died" in line for line in notices) >= 15  # two kills may end the same life of the group
    assert heard == list(range(10, 1501, 10))
    ours, theirs = (torch.load(tmp_path / name / training.STATE, weights_only=True) for name in ("out", "alone"))
    assert ours["progress"] == theirs["progress"]
    assert all(torch.equal(ours["network"][name], tensor) for name, tensor in theirs["network"].items())
