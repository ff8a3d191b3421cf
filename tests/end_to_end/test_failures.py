"""Faults in a long training, done to real processes: killed workers, a worker that hangs, a full storage."""

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

from pipeline.cluster import errors, resources, training_run
from pipeline.cluster.channel import RunListener
from pipeline.cluster.session import session
from pipeline.shards.format import read_index
from pipeline.training import trainer
from pipeline.training.context import WorkerContext
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
    monkeypatch.setattr(training_run, "SECONDS_UNTIL_NOTICE", 600.0)  # busy CPUs are no cluster without room
    yield tmp_path / "storage"


def add_up(last: int, folder: str, context: WorkerContext) -> None:
    """Adds the ranks up, with a checkpoint at each step; a file in `folder` causes a fault.

    3.stop.1: worker 1 hangs at step 3. 3.wait: step 3 is reported when the file has been deleted.
    """
    place = Path(folder)
    step = step_of(context)
    if context.rank == 0:
        with (place / "starts").open("a") as file:
            file.write(f"{step} ")
    while step < last:
        step += 1
        fault = place / f"{step}.stop.{context.rank}"
        if fault.exists():
            fault.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        total = torch.tensor(float(context.rank))
        dist.all_reduce(total)
        checkpoint = place / f"made{step}"
        if context.rank == 0:
            checkpoint.mkdir(exist_ok=True)
            (checkpoint / "step").write_text(str(step))
            (checkpoint / "ballast").write_bytes(bytes(300_000))
        until(lambda: not (place / f"{step}.wait").exists())  # noqa: B023, done before the next step
        context.report({"step": step, "total": float(total)}, checkpoint if context.rank == 0 else None)


def run(
    job: Callable[[WorkerContext], None],
    folder: Path,
    name: str,
    num_workers: int,
    *,
    on_report: Callable[[int], None] = lambda step: None,
    on_notice: Callable[[str], None] = lambda text: None,
    cpus_per_worker: float = 0.5,
) -> tuple[list[int], list[str]]:
    """Run `job`; return the steps that were reported, and the notices.

    When a report arrives, its checkpoint and Ray's list are stored: nothing is written before the next report.
    """
    steps: list[int] = []
    notices: list[str] = []

    def report(metrics: dict[str, float]) -> None:
        steps.append(int(metrics["step"]))
        on_report(steps[-1])

    def note(text: str) -> None:
        notices.append(text)
        on_notice(text)

    planned = resources.WorkerResources(num_workers, cpus_per_worker, 0.0)
    with session():
        listener = RunListener(report, notice=note)
        training_run.fit(job, name=name, into=folder / "out", listener=listener, resources=planned)
    return steps, notices


def the_process(name: str) -> psutil.Process:
    """The only child process whose command starts with `name`."""
    (found,) = [process for process in psutil.Process().children(recursive=True) if command(process).startswith(name)]
    return found


def test_a_worker_that_hangs_is_started_again(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_TIMEOUT_SECONDS", "40")  # also of workers that start, for each other
    (tmp_path / "3.stop.1").touch()
    steps, notices = run(partial(add_up, 5, str(tmp_path)), tmp_path, "hangs", 2)
    (notice,) = notices
    timeout, hung = "worker 0 timed out waiting for another worker", "worker 1 hung and was killed"
    assert notice.removesuffix("; continuing from the last checkpoint") in (timeout, hung, f"{timeout}; {hung}")
    assert not (tmp_path / "3.stop.1").exists()
    assert steps == [1, 2, 3, 4, 5]
    assert (tmp_path / "starts").read_text() == "0 2 "


@dataclasses.dataclass
class Deadly(ray.train.torch.TorchConfig):
    """TorchConfig, but a worker is killed while they connect, if the file `fault` exists."""

    fault: str = ""

    @property
    def backend_cls(self) -> Any:
        return DeadlyBackend


class DeadlyBackend(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Deadly) -> None:
        if Path(backend_config.fault).exists():
            Path(backend_config.fault).unlink()
            worker_group.execute_single(0, die)
        super().on_start(worker_group, backend_config)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_resources_of_a_worker_that_dies_as_its_group_starts_are_freed(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train.torch, "TorchConfig", partial(Deadly, fault=str(tmp_path / "fault")))
    (tmp_path / "fault").touch()
    everything = float(os.cpu_count() or 1)
    steps, notices = run(partial(add_up, 3, str(tmp_path)), tmp_path, "dies", 1, cpus_per_worker=everything)
    assert not (tmp_path / "fault").exists()
    assert notices == ["workers died as they started; trying again"]
    assert steps == [1, 2, 3]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bytes, the index says": lambda shard: os.truncate(shard, shard.stat().st_size - 1),
    "another checksum": lambda shard: shard.write_bytes(shard.read_bytes().replace(b"pair0008", b"pair0009")),
    "is missing": Path.unlink,
}


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("message", DAMAGES)
def test_training_stops_at_a_damaged_shard_and_names_it(
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

    def free(text: str) -> None:
        if "No space left" in text:
            (storage / "others").unlink(missing_ok=True)

    steps, notices = run(partial(add_up, 8, str(tmp_path)), tmp_path, "full", 1, on_report=fill, on_notice=free)
    assert "No space left" in notices[0]
    assert steps == list(range(1, 9))
    assert (tmp_path / "starts").read_text() == "0 "
    assert (tmp_path / "out" / "step").read_text() == "8"


def test_training_waits_for_an_unmounted_storage_and_so_does_a_worker_that_starts_meanwhile(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "mounted" / "runs"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "nothing").mkdir()  # an unmounted storage is an empty folder, and Ray may write there
    (tmp_path / "3.wait").touch()
    killed: list[psutil.Process] = []

    def mount(folder: str) -> None:
        (tmp_path / "new").symlink_to(tmp_path / folder)
        (tmp_path / "new").replace(tmp_path / "mounted")

    def unmount(step: int) -> None:
        if step == 2:
            mount("nothing")
            (tmp_path / "3.wait").unlink()

    def kill_then_mount(text: str) -> None:
        if "cannot be stored" in text and not killed:
            killed.append(the_process("ray::RayTrainWorker"))
            killed[0].kill()
        elif "trying again" in text and "cannot be stored" not in text:  # the next worker, or Ray for it
            mount("disk")

    mount("disk")
    steps, notices = run(
        partial(add_up, 12, str(tmp_path)), tmp_path, "gone", 1, on_report=unmount, on_notice=kill_then_mount
    )
    assert killed, notices
    assert (tmp_path / "out" / "step").read_text() == "12"
    assert (tmp_path / "starts").read_text() == "0 2 "  # and not anew
    assert steps == list(range(1, 13))


def test_a_run_survives_the_death_of_its_channel(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "30.wait").touch()

    def kill(step: int) -> None:
        if step == 2:
            the_process("ray::RunChannel").kill()
            (tmp_path / "30.wait").unlink()

    steps, _ = run(partial(add_up, 30, str(tmp_path)), tmp_path, "channel", 1, on_report=kill)
    assert steps[-1] == 30
    assert (tmp_path / "starts").read_text() == "0 "


def test_the_death_of_the_controller_is_reported_and_the_run_can_continue(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "30.wait").touch()

    def kill(step: int) -> None:
        if step == 2:
            the_process("ray::TrainController").kill()

    with pytest.raises(errors.WorkersLost, match="Ray's controller died"):
        run(partial(add_up, 30, str(tmp_path)), tmp_path, "controller", 1, on_report=kill)
    (tmp_path / "30.wait").unlink()
    steps, _ = run(partial(add_up, 30, str(tmp_path)), tmp_path, "controller", 1)
    first, second = (int(step) for step in (tmp_path / "starts").read_text().split())
    assert first == 0
    assert second >= 2
    assert steps == list(range(second + 1, 31))


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

    def answer(text: str) -> None:
        s3_server.process.send_signal(signal.SIGCONT)

    steps, notices = run(partial(add_up, 6, str(tmp_path)), tmp_path, "away", 1, on_report=hang, on_notice=answer)
    assert "trying again" in notices[0]
    assert steps == [1, 2, 3, 4, 5, 6]


def observed(job: TrainingJob, folder: str, context: WorkerContext) -> None:
    """Runs `job`, writes down where each worker starts, and does not end before the file `enough` exists."""

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        if metrics["step"] == job.recipe.num_steps:
            (Path(folder) / "done").touch()
            until((Path(folder) / "enough").exists)
        context.report(metrics, checkpoint)

    (Path(folder) / f"worker{os.getpid()}").touch()
    with context.resume as checkpoint, (Path(folder) / "starts").open("a") as starts:
        starts.write(f"{trainer.history(checkpoint)[-1]['step'] if checkpoint else 0} ")
    job(dataclasses.replace(context, report=report, resume=contextlib.nullcontext(checkpoint)))


def kill(folder: Path, steps: Sequence[int], enough: threading.Event) -> None:
    """Kill workers chosen at random, at random times: soon after their start, or after further reports."""
    rng = np.random.default_rng(0)
    workers: dict[int, psutil.Process] = {}

    def alive() -> list[psutil.Process]:
        for pid in {int(path.name.removeprefix("worker")) for path in folder.glob("worker*")} - workers.keys():
            with contextlib.suppress(psutil.NoSuchProcess):
                workers[pid] = psutil.Process(pid)
        return [process for process in workers.values() if command(process)]

    while not enough.wait(0.1):
        if not alive():
            continue
        before = len(steps)
        if rng.random() < 0.7:
            until(lambda: len(steps) > before or (folder / "done").exists() or enough.is_set())  # noqa: B023, done now
        if not enough.wait(rng.uniform(0, 2)) and (found := alive()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with its group
                found[rng.integers(len(found))].kill()


@pytest.mark.timeout(1800)
def test_a_run_killed_twenty_times_has_the_result_of_an_undisturbed_one(
    storage: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "100")
    settings = recipe(num_steps=500, validate_every=10, warmup_steps=10)
    indices = {split: read_index(shards / split) for split in ("train", "val")}
    job = TrainingJob(settings, 3, shards, indices, 1)
    run(job, tmp_path, "alone", 2)
    (tmp_path / "out").rename(tmp_path / "alone")
    failures: list[str] = []
    steps: list[int] = []
    enough = threading.Event()

    def count_failures(text: str) -> None:
        failures.extend([text] if "continuing from the last checkpoint" in text else [])
        if len(failures) == 20:
            enough.set()
            (tmp_path / "enough").touch()

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill, tmp_path, steps, enough)
        try:
            run(
                partial(observed, job, str(tmp_path)),
                tmp_path,
                "killed",
                2,
                on_report=steps.append,
                on_notice=count_failures,
            )
        finally:
            enough.set()
            killing.result()
    assert len(failures) >= 20
    assert steps == list(range(10, 501, 10))
    killed, alone = (torch.load(tmp_path / name / trainer.STATE, weights_only=True) for name in ("out", "alone"))
    assert killed["progress"] == alone["progress"]
    for network in ("network", "averaged", "best"):
        assert all(torch.equal(killed[network][name], tensor) for name, tensor in alone[network].items())
    starts = {int(step) for step in (tmp_path / "starts").read_text().split()}
    assert len(starts) >= 5, f"the kills are spread over the training; workers started at {sorted(starts)}"
