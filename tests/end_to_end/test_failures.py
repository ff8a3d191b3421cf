"""What befalls a long training, done to real processes: workers killed twenty times, one that hangs, a full storage."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray.train.torch
import torch
import torch.distributed as dist
from factories import pythonpath, recipe, step_of
from processes import S3Server, SmallDisk, command, until

from pipeline.cluster import errors, resources, session, training_run
from pipeline.cluster.channel import RunListener
from pipeline.shards.format import read_index
from pipeline.training import context, trainer
from pipeline.training.job import TrainingJob

PYTHONPATH = pythonpath(__file__)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray's own warnings
]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "storage"))
    yield tmp_path / "storage"


def add_up(last: int, folder: str, worker: context.Worker) -> None:
    """Adds ranks up with all others, a checkpoint each step; a file in `folder` says what befalls it on the way.

    3.stop.1: worker 1 hangs at step 3. 3.wait: the file is waited for to go before step 3 is reported.
    """
    wounds = Path(folder)
    step = step_of(worker)
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
        until(lambda: not (wounds / f"{step}.wait").exists())  # noqa: B023, done before the next step
        worker.report({"step": step, "total": float(total)}, checkpoint if worker.rank == 0 else None)


def run(
    work: Callable[[context.Worker], None],
    folder: Path,
    name: str,
    num_workers: int,
    *,
    on_report: Callable[[int], None] = lambda step: None,
    on_notice: Callable[[str], None] = lambda run_channel: None,
    cpus_per_worker: float = 0.5,
) -> tuple[list[int], list[str]]:
    """Run `work`; return the steps that were reported, and the notices.

    When a report is heard its checkpoint and Ray's list are stored: nobody writes until the next one is reported.
    """
    heard: list[int] = []
    notices: list[str] = []

    def report(metrics: dict[str, float]) -> None:
        heard.append(int(metrics["step"]))
        on_report(heard[-1])

    def note(run_channel: str) -> None:
        notices.append(run_channel)
        on_notice(run_channel)

    share = resources.WorkerResources(num_workers, cpus_per_worker, 0.0)
    with session.session():
        training_run.fit(work, name=name, into=folder / "out", listener=RunListener(report, notice=note), share=share)
    return heard, notices


def the_process(name: str) -> psutil.Process:
    """The one process of ours whose command begins so."""
    (found,) = [process for process in psutil.Process().children(recursive=True) if command(process).startswith(name)]
    return found


def test_a_worker_that_hangs_is_started_again(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_PATIENCE", "40")  # workers that start wait no longer for each other either
    (tmp_path / "3.stop.1").touch()
    heard, notices = run(partial(add_up, 5, str(tmp_path)), tmp_path, "hangs", 2)
    (notice,) = notices
    waited, hung = "worker 0 waited in vain for another", "worker 1 hung and was killed"
    assert notice.removesuffix("; back to the last checkpoint") in (waited, hung, f"{waited}; {hung}")
    assert not (tmp_path / "3.stop.1").exists()
    assert heard == [1, 2, 3, 4, 5]
    assert (tmp_path / "starts").read_text() == "0 2 "


@dataclasses.dataclass
class Deadly(ray.train.torch.TorchConfig):
    """TorchConfig, but as long as the file `wound` is there a worker dies of it while they are joined."""

    wound: str = ""

    @property
    def backend_cls(self) -> Any:
        return DeadlyBackend


class DeadlyBackend(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Deadly) -> None:
        if Path(backend_config.wound).exists():
            Path(backend_config.wound).unlink()
            worker_group.execute_single(0, die)
        super().on_start(worker_group, backend_config)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_as_its_group_starts_leaves_its_room_to_the_next(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train.torch, "TorchConfig", partial(Deadly, wound=str(tmp_path / "wound")))
    (tmp_path / "wound").touch()
    everything = float(os.cpu_count() or 1)
    heard, notices = run(partial(add_up, 3, str(tmp_path)), tmp_path, "dies", 1, cpus_per_worker=everything)
    assert not (tmp_path / "wound").exists()
    assert notices == ["workers died as they started; trying again"]
    assert heard == [1, 2, 3]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bytes, the index says": lambda shard: os.truncate(shard, shard.stat().st_size - 1),
    "another checksum": lambda shard: shard.write_bytes(shard.read_bytes().replace(b"pair0008", b"pair0009")),
    "is missing": Path.unlink,
}


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("message", DAMAGES)
def test_training_ends_at_a_damaged_shard_and_names_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setenv("DGUNET_LOADER_PROCESSES", "0" if message == "is missing" else "2")
    indices = {split: read_index(shards / split) for split in ("train", "val")}
    DAMAGES[message](shards / "train" / "000001.tar")
    with pytest.raises(ValueError, match=rf"train/000001\.tar .*{message}.*run `make repro`"):
        run(TrainingJob(recipe(num_steps=20), 3, shards, indices, 1), tmp_path, "damaged", 2)


def test_training_waits_for_a_full_storage(storage: Path, small_disk: SmallDisk, tmp_path: Path) -> None:
    small_disk(storage, "4m")
    (tmp_path / "3.wait").touch()

    def fill(step: int) -> None:
        if step == 2:
            with (storage / "others").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(100_000))
            (tmp_path / "3.wait").unlink()

    def free(run_channel: str) -> None:
        if "No space left" in run_channel:
            (storage / "others").unlink(missing_ok=True)

    heard, notices = run(partial(add_up, 8, str(tmp_path)), tmp_path, "full", 1, on_report=fill, on_notice=free)
    assert "No space left" in notices[0]
    assert heard == list(range(1, 9))
    assert (tmp_path / "starts").read_text() == "0 "
    assert (tmp_path / "out" / "step").read_text() == "8"


def test_training_waits_for_a_storage_folder_that_has_gone_and_so_does_a_worker_that_dies_meanwhile(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "mounted" / "runs"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "nothing").mkdir()  # what is left of a mount that has gone: an empty folder, and Ray may write there
    (tmp_path / "3.wait").touch()
    killed: list[psutil.Process] = []

    def mount(folder: str) -> None:
        (tmp_path / "new").symlink_to(tmp_path / folder)
        (tmp_path / "new").replace(tmp_path / "mounted")

    def unmount(step: int) -> None:
        if step == 2:
            mount("nothing")
            (tmp_path / "3.wait").unlink()

    def kill_then_mount(run_channel: str) -> None:
        if "cannot be stored" in run_channel and not killed:
            killed.append(the_process("ray::RayTrainWorker"))
            killed[0].kill()
        elif "trying again" in run_channel and "cannot be stored" not in run_channel:  # the next worker, or Ray for it
            mount("disk")

    mount("disk")
    heard, notices = run(
        partial(add_up, 12, str(tmp_path)), tmp_path, "gone", 1, on_report=unmount, on_notice=kill_then_mount
    )
    assert killed, notices
    assert (tmp_path / "out" / "step").read_text() == "12"
    assert (tmp_path / "starts").read_text() == "0 2 "  # and not anew
    assert heard == list(range(1, 13))


def test_a_run_survives_the_death_of_its_line(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "30.wait").touch()

    def kill(step: int) -> None:
        if step == 2:
            the_process("ray::Line").kill()
            (tmp_path / "30.wait").unlink()

    heard, _ = run(partial(add_up, 30, str(tmp_path)), tmp_path, "line", 1, on_report=kill)
    assert heard[-1] == 30
    assert (tmp_path / "starts").read_text() == "0 "


def test_the_death_of_the_controller_is_told_and_the_run_goes_on_later(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "30.wait").touch()

    def kill(step: int) -> None:
        if step == 2:
            the_process("ray::TrainController").kill()

    with pytest.raises(errors.WorkersLost, match="Ray's controller died"):
        run(partial(add_up, 30, str(tmp_path)), tmp_path, "controller", 1, on_report=kill)
    (tmp_path / "30.wait").unlink()
    heard, _ = run(partial(add_up, 30, str(tmp_path)), tmp_path, "controller", 1)
    first, second = (int(step) for step in (tmp_path / "starts").read_text().split())
    assert first == 0
    assert second >= 2
    assert heard == list(range(second + 1, 31))


def test_training_waits_for_a_storage_that_does_not_answer(
    storage: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.client()
    monkeypatch.setenv("DGUNET_STORAGE", f"s3://{s3_server.bucket}/runs")
    (tmp_path / "3.wait").touch()

    def hang(step: int) -> None:
        if step == 2:
            s3_server.process.send_signal(signal.SIGSTOP)
            (tmp_path / "3.wait").unlink()

    def answer(run_channel: str) -> None:
        s3_server.process.send_signal(signal.SIGCONT)

    heard, notices = run(partial(add_up, 6, str(tmp_path)), tmp_path, "away", 1, on_report=hang, on_notice=answer)
    assert "trying again" in notices[0]
    assert heard == [1, 2, 3, 4, 5, 6]


def mortal(job: TrainingJob, folder: str, worker: context.Worker) -> None:
    """The job, by a worker whose life is known to have begun, and which does not end before `enough` is there."""

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        if metrics["step"] == job.recipe.num_steps:
            (Path(folder) / "done").touch()
            until((Path(folder) / "enough").exists)
        worker.report(metrics, checkpoint)

    (Path(folder) / f"life{os.getpid()}").touch()
    with worker.resume as checkpoint, (Path(folder) / "lives").open("a") as lives:
        lives.write(f"{trainer.history(checkpoint)[-1]['step'] if checkpoint else 0} ")
    job(dataclasses.replace(worker, report=report, resume=contextlib.nullcontext(checkpoint)))


def kill(folder: Path, heard: Sequence[int], enough: threading.Event) -> None:
    """Kill workers chosen at random, at random moments of their lives: early, or after they have come further."""
    rng = np.random.default_rng(0)

    def alive() -> list[psutil.Process]:
        ours = psutil.Process().children(recursive=True)
        return [process for process in ours if (folder / f"life{process.pid}").exists() and command(process)]

    while not enough.wait(0.05):
        if not alive():
            continue
        before = len(heard)
        if rng.random() < 0.7:
            until(lambda: len(heard) > before or (folder / "done").exists() or enough.is_set())  # noqa: B023, done now
        if not enough.wait(rng.uniform(0, 2)) and (found := alive()):
            with contextlib.suppress(psutil.NoSuchProcess):  # gone with its group, whoever has its number now
                found[rng.integers(len(found))].kill()


@pytest.mark.timeout(1800)
def test_a_run_killed_twenty_times_ends_where_one_ends_that_was_left_alone(
    storage: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "100")
    settings = recipe(num_steps=800, validate_every=10, warmup_steps=10)
    indices = {split: read_index(shards / split) for split in ("train", "val")}
    job = TrainingJob(settings, 3, shards, indices, 1)
    run(job, tmp_path, "alone", 2)
    (tmp_path / "out").rename(tmp_path / "alone")
    losses: list[str] = []
    heard: list[int] = []
    enough = threading.Event()

    def lose(run_channel: str) -> None:
        losses.extend([run_channel] if "back to the last checkpoint" in run_channel else [])
        if len(losses) == 20:
            enough.set()
            (tmp_path / "enough").touch()

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill, tmp_path, heard, enough)
        try:
            run(partial(mortal, job, str(tmp_path)), tmp_path, "killed", 2, on_report=heard.append, on_notice=lose)
        finally:
            enough.set()
            killing.result()
    assert len(losses) >= 20
    assert heard == list(range(10, 801, 10))
    ours, theirs = (torch.load(tmp_path / name / trainer.STATE, weights_only=True) for name in ("out", "alone"))
    assert ours["progress"] == theirs["progress"]
    for network in ("network", "averaged", "best"):
        assert all(torch.equal(ours[network][name], tensor) for name, tensor in theirs[network].items())
    begun = {int(step) for step in (tmp_path / "lives").read_text().split()}
    assert len(begun) >= 5, f"the kills are spread over the training; lives began at {sorted(begun)}"
