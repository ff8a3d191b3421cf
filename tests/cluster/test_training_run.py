"""Ray with real processes: killed work is repeated, a run asked to stop saves first, errors reach the driver."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from factories import pythonpath, step_of
from processes import command, started, until

from pipeline.cluster import checkpoints, errors, lease, resources, run_lock, tasks, training_run
from pipeline.cluster.channel import RunListener, WorkerChannel
from pipeline.cluster.failures import describe_worker_failures
from pipeline.cluster.run_channel import RunChannel
from pipeline.cluster.session import session
from pipeline.training.context import WorkerContext

PYTHONPATH = pythonpath(__file__)
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("DGUNET_STORAGE", str(folder))
        patch.setattr(lease, "SECONDS_TO_SETTLE", 0.1)  # no other driver is there
        patch.setattr(training_run, "SECONDS_UNTIL_NOTICE", 600.0)  # busy CPUs are no cluster without room
        with session():
            yield folder


def square_unless_killed(folder: Path, number: int) -> int:
    """Is killed at the first call for 3."""
    mark = folder / str(number)
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number: int) -> int:
    raise ValueError(f"no square of {number}")


def test_a_task_whose_process_is_killed_is_repeated(storage: Path, tmp_path: Path) -> None:
    squares = tasks.map_unordered(partial(square_unless_killed, tmp_path), iter(range(6)))
    assert sorted(squares) == [0, 1, 4, 9, 16, 25]


def test_items_are_read_only_as_fast_as_they_are_processed(storage: Path, tmp_path: Path) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = tasks.map_unordered(partial(square_unless_killed, tmp_path), items())
    next(results)
    assert len(read) < 20


def test_the_error_of_a_task_is_raised_as_it_was(storage: Path) -> None:
    with pytest.raises(ValueError, match="no square of 7") as error:
        list(tasks.map_unordered(refuse, [7]))
    assert str(error.value) == "no square of 7"  # and not Ray's traceback


def count(last: int, folder: str, context: WorkerContext) -> None:
    """Counts to `last` with a checkpoint for each; a file STEP.kill, .error or .notice in `folder` does that there."""
    place = Path(folder)
    step = step_of(context)
    with (place / "starts").open("a") as file:
        file.write(f"{step} ")
    while step < last:
        step += 1
        context.progress(step, {"loss": 1.0})
        checkpoint = place / f"made{step}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "step").write_text(str(step))
        context.report({"step": step}, checkpoint)
        for fault in place.glob(f"{step}.*"):
            kind = fault.suffix
            fault.unlink()
            if kind == ".kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == ".error":
                raise ValueError("the recipe is wrong")
            if kind == ".notice":
                context.notice(f"step {step} was counted")
        if context.stop_requested():
            return


def counted(folder: Path, name: str, last: int) -> tuple[list[int], Path]:
    steps: list[int] = []
    folder.mkdir(exist_ok=True)
    training_run.fit(
        partial(count, last, str(folder)), name=name, into=folder / "out",
        listener=RunListener(lambda metrics: steps.append(int(metrics["step"]))),
    )  # fmt: skip
    return steps, folder / "out"


@pytest.fixture(scope="module")
def stored_run(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps in the storage; a copy is a run of another name."""
    counted(tmp_path_factory.mktemp("stored"), "stored", 3)
    return storage / "stored"


def test_an_error_that_no_retry_can_correct_is_raised_at_once(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "1.error").touch()
    with pytest.raises(ValueError, match="the recipe is wrong"):
        counted(tmp_path, "wrong", 3)
    assert (tmp_path / "starts").read_text() == "0 "


@pytest.mark.slow
@pytest.mark.parametrize("backup_too", [False, True])
def test_a_damaged_list_of_checkpoints_does_not_stop_a_run(
    storage: Path, stored_run: Path, tmp_path: Path, backup_too: bool
) -> None:
    name = f"cut-{backup_too}"
    shutil.copytree(stored_run, storage / name)
    for file in (storage / name).glob("checkpoint_manager_snapshot.json*" if backup_too else "*.json"):
        file.write_bytes(file.read_bytes()[:40])
    notices: list[str] = []
    training_run.fit(
        partial(count, 5, str(tmp_path)), name=name, into=tmp_path / "out", listener=RunListener(notice=notices.append)
    )
    assert (tmp_path / "out" / "step").read_text() == "5"
    assert (tmp_path / "starts").read_text() == ("0 " if backup_too else "3 ")
    assert ("starting again from step 0" if backup_too else "continuing from the last one that is complete") in notices[
        0
    ]


def test_a_list_that_cannot_be_read_at_the_moment_is_not_changed(stored_run: Path) -> None:
    before = sorted((path, path.read_bytes()) for path in stored_run.rglob("*") if path.is_file())

    filesystem, folder = checkpoints.filesystem(str(stored_run))

    class Flaky:
        def __getattr__(self, name: str) -> Any:
            return getattr(filesystem, name)

        def open_input_stream(self, path: str) -> Any:
            raise OSError("the network is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "filesystem", lambda address: (Flaky(), folder))
        with pytest.raises(OSError, match="the network is down"):
            checkpoints.repair_snapshot(str(stored_run))
    assert before == sorted((path, path.read_bytes()) for path in stored_run.rglob("*") if path.is_file())


def test_a_backup_that_lists_a_deleted_checkpoint_can_be_used(storage: Path, stored_run: Path, tmp_path: Path) -> None:
    shutil.copytree(stored_run, storage / "stale")
    (storage / "stale" / checkpoints.SNAPSHOT).write_bytes(b"{")
    first, last = sorted(path for path in (storage / "stale").iterdir() if path.is_dir())
    shutil.rmtree(first)
    assert "continuing from the last one that is complete" in (
        checkpoints.repair_snapshot(str(storage / "stale")) or ""
    )
    assert json.loads((storage / "stale" / checkpoints.SNAPSHOT).read_text())["latest_checkpoint_result"][
        "checkpoint_dir_name"
    ] == (last.name)
    assert checkpoints.repair_snapshot(str(storage / "stale")) is None
    counted(tmp_path, "stale", 5)
    assert (tmp_path / "starts").read_text() == "3 "


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(storage: Path, stored_run: Path, tmp_path: Path) -> None:
    shutil.copytree(stored_run, storage / "power")
    last = max(path for path in (storage / "power").iterdir() if path.is_dir())
    (last / "step").write_bytes(b"")
    notices: list[str] = []
    listener = RunListener(notice=notices.append)
    training_run.fit(partial(count, 5, str(tmp_path)), name="power", into=tmp_path / "out", listener=listener)
    assert (tmp_path / "out" / "step").read_text() == "5"
    assert (tmp_path / "starts").read_text() == "2 "
    assert "continuing from the last one that is complete" in notices[0]


def test_workers_are_planned_so_that_they_fit_on_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = [{"CPU": 2.0}]
    gpu_nodes = [{"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    monkeypatch.delenv("DGUNET_CPUS_PER_WORKER", raising=False)
    for workers_asked, nodes, most, expected in (
        (None, laptop, None, resources.WorkerResources(1, 2.0, 0.0, 1)),
        ("4", laptop, None, resources.WorkerResources(4, 0.5, 0.0, 4)),
        ("4", laptop, 2, resources.WorkerResources(2, 1.0, 0.0, 2)),  # a batch of two is enough for two
        ("1:8", laptop, 4, resources.WorkerResources(1, 1.0, 0.0, 4)),
        ("2", gpu_nodes, None, resources.WorkerResources(2, 8.0, 1.0, 2)),
        ("1", [{"CPU": 4.0}, {"CPU": 4.0}], None, resources.WorkerResources(1, 4.0, 0.0, 1)),
        ("64", [{"CPU": 48.0, "GPU": 8.0}] * 8, 16, resources.WorkerResources(16, 6.0, 1.0, 16)),  # 8 to a node
    ):
        if workers_asked:
            monkeypatch.setenv("DGUNET_WORKERS", workers_asked)
        else:
            monkeypatch.delenv("DGUNET_WORKERS", raising=False)
            monkeypatch.setattr(ray, "cluster_resources", dict)
        assert resources.plan_resources(nodes, most) == expected
    monkeypatch.setenv("DGUNET_WORKERS", "3")
    with pytest.raises(ValueError, match=r"3 workers do not fit .* 2 GPUs on 3 nodes: lower DGUNET_WORKERS"):
        resources.plan_resources(gpu_nodes)
    monkeypatch.setenv("DGUNET_WORKERS", "2")
    monkeypatch.setenv("DGUNET_CPUS_PER_WORKER", "9")
    with pytest.raises(ValueError, match="DGUNET_CPUS_PER_WORKER"):
        resources.plan_resources(gpu_nodes)


@pytest.mark.parametrize("address", ["", "head:6379"])
def test_a_run_starts_processes_of_ray_only_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    trainer = training_run._run_trainer(lambda context: None, "run", None, resources.WorkerResources(1, 1.0, 0.0))
    names = [type(callback).__name__ for callback in trainer._create_default_callbacks()]
    assert names[0] == "WorkerGroupCleanup"
    assert "BackendSetupCallback" in names
    assert "DatasetsCallback" not in names
    assert ("PlacementGroupCleanerCallback" in names) == bool(address), "on a cluster it frees what a dead run held"


def test_one_process_at_a_time_holds_the_lock_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LOCKS", tmp_path / "locks")
    with run_lock.hold_run_lock("denoise"):
        with run_lock.hold_run_lock("derain"):
            pass
        with pytest.raises(ValueError, match="another process works on denoise"), run_lock.hold_run_lock("denoise"):
            pass
    with run_lock.hold_run_lock("denoise"):
        pass


def test_a_storage_that_cannot_be_written_is_reported_before_anything_starts(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "file" / "storage"))
    with pytest.raises(errors.StorageLost, match=r"DGUNET_STORAGE.*Not a directory"):
        training_run.fit(
            partial(count, 8, str(tmp_path)), name="nowhere", into=tmp_path / "out", listener=RunListener()
        )


def test_a_run_waits_for_a_storage_until_the_timeout_or_a_stop_request(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Any:
        raise OSError("the storage is gone")

    run_channel = ray.remote(num_cpus=0)(RunChannel).remote()
    stop = threading.Event()
    threading.Timer(2, stop.set).start()
    with pytest.raises(errors.Interrupted):
        training_run._run_and_resume(run, "gone", run_channel, stop)
    assert ray.get(run_channel.poll.remote())["notices"][0] == "storage: the storage is gone; trying again for 600 s"
    monkeypatch.setenv("DGUNET_TIMEOUT_SECONDS", "0")
    with pytest.raises(errors.StorageLost, match=r"DGUNET_STORAGE.*the storage is gone"):
        training_run._run_and_resume(run, "gone", run_channel, threading.Event())


def test_a_run_ends_when_another_driver_has_taken_it_over(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def run(*arguments: Any) -> None:
        other = {"driver": "other", "heartbeat": 5, "host": "elsewhere", "pid": 7}
        (storage / "taken" / "new").write_text(json.dumps(other))
        (storage / "taken" / "new").replace(storage / "taken" / lease.FILE)
        ended.wait()

    monkeypatch.setattr(training_run, "_run_and_resume", run)
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_HEARTBEATS", 0.1)
    with pytest.raises(ValueError, match=r"another process drives the run in .*taken: process 7 on elsewhere"):
        counted(tmp_path, "taken", 3)
    ended.set()


def test_a_run_does_not_start_again_from_step_0_where_its_checkpoints_are_gone(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_TIMEOUT_SECONDS", "0")
    run_channel, runs = ray.remote(num_cpus=0)(RunChannel).remote(), []

    def run() -> Any:
        runs.append(1)
        ray.get(run_channel.report.remote({"step": 1}))
        raise ray.train.WorkerGroupError("lost", {0: RuntimeError("lost")})

    with pytest.raises(errors.StorageLost, match="the checkpoints are no longer in"):
        training_run._run_and_resume(run, "gone", run_channel, threading.Event())
    assert runs == [1]


@pytest.mark.parametrize("most", [0, 2])
def test_a_run_that_ray_cannot_start_is_tried_again_max_failures_times(
    storage: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", str(most))
    run_channel, runs = ray.remote(num_cpus=0)(RunChannel).remote(), []

    def run() -> Any:
        runs.append(1)
        raise ray.train.ControllerError(RuntimeError("the address is in use"))

    with pytest.raises(ray.train.ControllerError, match="in use"):
        training_run._run_and_resume(run, "unstartable", run_channel, threading.Event())
    assert len(runs) == 1 + most
    expected = "the run failed with the address is in use; continuing from the last checkpoint"
    assert ray.get(run_channel.poll.remote())["notices"] == [expected][:most], "a repeated notice is dropped"


def test_a_stop_request_is_seen_however_seldom_a_worker_asks(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.channel.SECONDS_BETWEEN_REQUESTS", 0.0)
    monkeypatch.setattr("pipeline.cluster.channel.MAX_SECONDS_FOR_ANSWER", 60.0)
    run_channel = ray.remote(num_cpus=0)(RunChannel).remote()
    channel = WorkerChannel(run_channel)
    channel.progress(1, {})
    assert not channel.stop_requested()
    ray.get(run_channel.stop.remote())
    channel.progress(2, {})
    assert channel.stop_requested()


def test_a_notice_about_the_same_workers_is_not_repeated() -> None:
    run_channel = RunChannel()
    for _ in range(2):
        run_channel.workers_started()
        for _ in range(3):
            run_channel.workers_gone("worker 0 died")
        run_channel.workers_gone()
    assert run_channel.poll()["notices"] == ["worker 0 died"] * 2
    assert not run_channel.poll()["working"]


def test_an_error_without_a_message_is_described_by_its_name() -> None:
    assert describe_worker_failures({0: EOFError(), 1: EOFError()}) == "worker 0, 1 failed with EOFError"


@pytest.mark.parametrize(
    ("value", "expected"), [("s3://bucket/runs/", "s3://bucket/runs"), ("runs", str(Path("runs").absolute()))]
)
def test_a_storage_is_a_url_without_a_slash_or_a_whole_path(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    monkeypatch.setenv("DGUNET_STORAGE", value)
    assert checkpoints.run_dir("denoise-1") == f"{expected}/denoise-1"


def test_too_many_failures_of_workers_end_a_run_with_one_line(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "0")
    (tmp_path / "1.kill").touch()
    with pytest.raises(errors.WorkersLost, match=r"^training stopped: worker 0 died\. .*DGUNET_MAX_FAILURES"):
        counted(tmp_path, "lost", 3)


@pytest.mark.slow
def test_killed_workers_continue_from_the_last_checkpoint_after_which_failures_are_counted_from_0(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "1")
    for step in (1, 2, 3):
        (tmp_path / f"{step}.kill").touch()
    steps, out = counted(tmp_path, "often", 4)
    assert steps == [1, 2, 3, 4], "no report is repeated"
    assert (out / "step").read_text() == "4"
    assert (tmp_path / "starts").read_text() == "0 1 2 3 "


def test_a_run_says_that_a_batch_is_too_small_for_all_workers_and_its_checkpoints_can_be_deleted(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_WORKERS", "2")
    notices: list[str] = []
    (tmp_path / "1.notice").touch()
    work, listener = partial(count, 1, str(tmp_path)), RunListener(notice=notices.append)
    training_run.fit(work, name="capped", into=tmp_path / "out", listener=listener, most_workers=1)
    assert notices == ["1 workers, not 2: a batch has 1 images (train.batch_size)", "step 1 was counted"]
    assert list((storage / "capped").iterdir())
    checkpoints.delete_checkpoints("capped")
    assert not (storage / "capped").exists()


def test_the_two_signals_of_one_stop_request_do_not_interrupt_the_saving() -> None:
    for first, second in ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)):
        with training_run._stop_signals() as stop:
            signal.raise_signal(first)
            assert stop.is_set()
            signal.raise_signal(second)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


DRIVER = """
    import sys
    from pathlib import Path
    from pipeline.cluster.session import session
    from test_training_run import counted
    with session():
        print(*counted(Path(sys.argv[1]), "driven", int(sys.argv[2])), flush=True)
"""


def driver(folder: Path, last: int) -> AbstractContextManager[subprocess.Popen[str]]:
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "DGUNET_STORAGE": str(folder / "storage"),
    }
    script = [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), str(last)]
    return started(*script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a driver has started; a training worker is among them."""
    found = psutil.Process(process.pid).children(recursive=True)
    assert any(command(each).startswith("ray::RayTrainWorker") for each in found)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_driver_that_was_killed_or_asked_to_stop_leaves_no_process_and_can_be_continued(tmp_path: Path) -> None:
    def made() -> int:
        return len(list(tmp_path.glob("made*")))

    def interrupt(how: signal.Signals) -> str:
        """Run a driver that cannot end by itself, and send it a signal after four more steps."""
        last = tmp_path / f"made{made() + 4}"
        with driver(tmp_path, 100_000) as running:
            until(lambda: last.exists() or running.poll() is not None)
            children = processes_of(running)
            if how == signal.SIGINT:
                os.killpg(running.pid, how)  # Ctrl-C in a terminal goes to all
            else:
                running.send_signal(how)
            output, _ = running.communicate()
        assert running.returncode != 0
        until(lambda: not any(command(each) for each in children))
        return output

    interrupt(signal.SIGKILL)
    saved = []
    for how in (signal.SIGTERM, signal.SIGINT):
        assert "Interrupted" in interrupt(how)
        saved.append(made())
    with driver(tmp_path, saved[-1] + 2) as again:
        output, _ = again.communicate()
    assert again.returncode == 0, output
    first, after_kill, *after_requests = (int(step) for step in (tmp_path / "starts").read_text().split())
    assert first == 0
    assert after_kill >= 2  # the third of four may not have been committed
    assert after_requests == saved, "what was asked to stop has saved its last step"
    assert (tmp_path / "out" / "step").read_text() == str(saved[-1] + 2)


def on_nodes(script: str, folder: Path) -> str:
    """Run a script that starts Ray nodes of its own, and return what it printed."""
    # Without the variables of the session in this process: it has one node, and Ray watches for none that leaves.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {
        "PYTHONPATH": PYTHONPATH,
        "DGUNET_STORAGE": str(folder / "storage"),
        "RAY_AUTH_MODE": "disabled",
    }
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    with started(*command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        output, _ = run.communicate()
    assert run.returncode == 0, output
    return output


def count_together(folder: str, context: WorkerContext) -> None:
    """Counts until there are two workers again; writes how many there were."""
    start = step = step_of(context)
    (Path(folder) / f"{context.world_size}-workers-at-{start}").touch()
    while not (context.world_size == 2 and start > 0 and step >= start + 3):
        step += 1
        checkpoint = Path(folder) / f"made{step}"
        if context.rank == 0:
            checkpoint.mkdir(exist_ok=True)
            (checkpoint / "step").write_text(str(step))
        context.report({"step": step}, checkpoint if context.rank == 0 else None)


ELASTIC = """
    import os, sys
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from pipeline.cluster import training_run
    from pipeline.cluster.session import session
    from pipeline.cluster.channel import RunListener
    from processes import until
    from test_training_run import count_together
    training_run.SECONDS_BETWEEN_RESIZES = 3.0
    folder = Path(sys.argv[1])
    os.environ |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first, second = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes(600)
    os.environ |= {"RAY_ADDRESS": nodes.address, "DGUNET_WORKERS": "1:2"}
    with session():
        work = partial(count_together, str(folder))
        listener = RunListener(notice=lambda text: print(text, flush=True))
        place = folder / "out"
        run = ThreadPoolExecutor().submit(training_run.fit, work, name="elastic", into=place, listener=listener)
        until((folder / "made5").exists)
        nodes.remove_node(second, allow_graceful=False)
        until(lambda: list(folder.glob("1-workers-at-*")))
        nodes.add_node(num_cpus=1)
        run.result()
    nodes.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_shrinks_when_a_node_leaves_and_grows_when_one_joins(tmp_path: Path) -> None:
    output = on_nodes(ELASTIC, tmp_path)
    assert all(line.startswith(("worker ", "waiting for ")) for line in output.splitlines()), output
    assert (tmp_path / "2-workers-at-0").exists()
    shrunk = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("1-workers-at-*")]
    grown = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("2-workers-at-*")]
    assert 3 <= min(shrunk) < max(grown)
    assert int((tmp_path / "out" / "step").read_text()) == max(grown) + 3


def work_until_taken_away(folder: str, context: WorkerContext) -> None:
    """Saves when it is asked to and then never ends; after a restart it ends."""
    place = Path(folder)
    checkpoint = place / "made"
    if first_start := not step_of(context):
        (place / "node").write_text(ray.get_runtime_context().get_node_id())
        until(context.save_requested)
        assert not context.save_requested()
        checkpoint.mkdir()
        (checkpoint / "step").write_text("7")
    context.report({"step": 7}, checkpoint)
    until(lambda: not first_start)


TAKEN_AWAY = """
    import os, subprocess, sys
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from pipeline.cluster.session import session
    from pipeline.cluster.training_run import fit
    from pipeline.cluster.channel import RunListener
    from processes import until
    from test_training_run import work_until_taken_away
    folder = Path(sys.argv[1])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    both = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)]
    nodes.wait_for_nodes(600)
    os.environ |= {"RAY_ADDRESS": nodes.address, "DGUNET_WORKERS": "1"}
    saved = []
    with session():
        work = partial(work_until_taken_away, str(folder))
        listener = RunListener(saved.append, notice=lambda text: print(text, flush=True))
        run = ThreadPoolExecutor().submit(fit, work, name="spot", into=folder / "out", listener=listener)
        until(lambda: (folder / "node").exists() and (folder / "node").read_text() or run.done())
        taken, = (node for node in both if node.node_id == (folder / "node").read_text())
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "sold", "--node-id", taken.node_id]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run(
            [ray, "drain-node", "--address", nodes.address, *notice, "--deadline-remaining-seconds", "500"], check=True
        )
        until(lambda: saved or run.done())
        nodes.remove_node(taken, allow_graceful=False)
        run.result()
    nodes.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_work_is_saved_before_its_node_is_taken_away(tmp_path: Path) -> None:
    output = on_nodes(TAKEN_AWAY, tmp_path)
    assert "the node of worker 0 will be taken away: saving a checkpoint" in output
    assert (tmp_path / "out" / "step").read_text() == "7"
