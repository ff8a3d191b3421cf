"""Ray with real processes: what is killed is done again, what was asked to stop saves first, errors come home."""

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

from pipeline.cluster import checkpoints, errors, resources, run_lock, session, tasks, training_run
from pipeline.cluster.channel import RunChannel, RunListener, WorkerChannel
from pipeline.cluster.failures import describe_worker_failures
from pipeline.training import context

PYTHONPATH = pythonpath(__file__)
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours to mend


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("DGUNET_STORAGE", str(folder))
        with session.session():
            yield folder


def square_unless_killed(folder: Path, number: int) -> int:
    """Dies the first time it is asked about 3."""
    mark = folder / str(number)
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def refuse(number: int) -> int:
    raise ValueError(f"no square of {number}")


def test_a_task_whose_process_is_killed_is_done_again(storage: Path, tmp_path: Path) -> None:
    squares = tasks.map_unordered(partial(square_unless_killed, tmp_path), iter(range(6)))
    assert sorted(squares) == [0, 1, 4, 9, 16, 25]


def test_items_are_drawn_as_they_are_worked_off(storage: Path, tmp_path: Path) -> None:
    sampled: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            sampled.append(number)
            yield number

    results = tasks.map_unordered(partial(square_unless_killed, tmp_path), items())
    next(results)
    assert len(sampled) < 20


def test_the_error_of_a_task_is_raised_as_it_was(storage: Path) -> None:
    with pytest.raises(ValueError, match="no square of 7") as error:
        list(tasks.map_unordered(refuse, [7]))
    assert str(error.value) == "no square of 7"  # and not Ray's traceback


def count(last: int, folder: str, worker: context.Worker) -> None:
    """Counts to `last`, a checkpoint each; a file in `folder` says what befalls it on the way."""
    wounds = Path(folder)
    step = step_of(worker)
    with (wounds / "starts").open("a") as file:
        file.write(f"{step} ")
    while step < last:
        step += 1
        worker.progress(step, {"loss": 1.0})
        checkpoint = wounds / f"made{step}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "step").write_text(str(step))
        worker.report({"step": step}, checkpoint)
        for wound in wounds.glob(f"{step}.*"):
            kind = wound.suffix
            wound.unlink()
            if kind == ".kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == ".error":
                raise ValueError("the recipe is wrong")
        if worker.stop_requested():
            return


def counted(folder: Path, name: str, last: int) -> tuple[list[int], Path]:
    heard: list[int] = []
    folder.mkdir(exist_ok=True)
    training_run.fit(
        partial(count, last, str(folder)), name=name, into=folder / "out",
        listener=RunListener(lambda metrics: heard.append(int(metrics["step"]))),
    )  # fmt: skip
    return heard, folder / "out"


def test_a_killed_worker_goes_on_from_the_last_checkpoint_and_no_report_is_heard_twice(
    storage: Path, tmp_path: Path
) -> None:
    (tmp_path / "2.kill").touch()
    heard, out = counted(tmp_path, "killed", 4)
    assert (out / "step").read_text() == "4"
    assert heard == [1, 2, 3, 4]
    assert (tmp_path / "starts").read_text() == "0 2 "


def test_an_error_that_a_retry_cannot_mend_is_raised_at_once(storage: Path, tmp_path: Path) -> None:
    (tmp_path / "1.error").touch()
    with pytest.raises(ValueError, match="the recipe is wrong"):
        counted(tmp_path, "wrong", 3)
    assert (tmp_path / "starts").read_text() == "0 "


@pytest.mark.slow
@pytest.mark.parametrize("copy_too", [False, True])
def test_a_list_of_checkpoints_that_was_cut_off_does_not_stop_a_run(
    storage: Path, tmp_path: Path, copy_too: bool
) -> None:
    name = f"cut-{copy_too}"
    counted(tmp_path, name, 3)
    for file in (storage / name).glob("checkpoint_manager_snapshot.json*" if copy_too else "*.json"):
        file.write_bytes(file.read_bytes()[:40])
    notices: list[str] = []
    training_run.fit(
        partial(count, 5, str(tmp_path)), name=name, into=tmp_path / "out", listener=RunListener(notice=notices.append)
    )
    assert (tmp_path / "out" / "step").read_text() == "5"
    assert (tmp_path / "starts").read_text() == ("0 0 " if copy_too else "0 3 ")
    assert ("starting anew" if copy_too else "going on from the last that is there") in notices[0]


def test_a_list_that_cannot_be_read_at_the_moment_is_left_alone(storage: Path, tmp_path: Path) -> None:
    counted(tmp_path, "flaky", 3)
    before = sorted((path, path.read_bytes()) for path in (storage / "flaky").rglob("*") if path.is_file())

    filesystem, place = checkpoints.place(str(storage / "flaky"))

    class Flaky:
        def __getattr__(self, name: str) -> Any:
            return getattr(filesystem, name)

        def open_input_stream(self, path: str) -> Any:
            raise OSError("the network is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "place", lambda address: (Flaky(), place))
        with pytest.raises(OSError, match="the network is down"):
            checkpoints.repair_snapshot(str(storage / "flaky"))
    assert before == sorted((path, path.read_bytes()) for path in (storage / "flaky").rglob("*") if path.is_file())


def test_a_copy_that_names_a_checkpoint_too_many_still_serves(storage: Path, tmp_path: Path) -> None:
    counted(tmp_path, "stale", 3)
    (storage / "stale" / RECORD).write_bytes(b"{")
    first, last = sorted(path for path in (storage / "stale").iterdir() if path.is_dir())
    shutil.rmtree(first)
    assert "going on from the last that is there" in (checkpoints.repair_snapshot(str(storage / "stale")) or "")
    assert json.loads((storage / "stale" / RECORD).read_text())["latest_checkpoint_result"]["checkpoint_dir_name"] == (
        last.name
    )
    assert checkpoints.repair_snapshot(str(storage / "stale")) is None
    counted(tmp_path, "stale", 5)
    assert (tmp_path / "starts").read_text() == "0 3 "


@pytest.mark.slow
def test_a_checkpoint_cut_off_by_a_loss_of_power_is_passed_over_for_the_one_before(
    storage: Path, tmp_path: Path
) -> None:
    counted(tmp_path, "power", 3)
    last = max(path for path in (storage / "power").iterdir() if path.is_dir())
    (last / "step").write_bytes(b"")
    notices: list[str] = []
    listener = RunListener(notice=notices.append)
    training_run.fit(partial(count, 5, str(tmp_path)), name="power", into=tmp_path / "out", listener=listener)
    assert (tmp_path / "out" / "step").read_text() == "5"
    assert (tmp_path / "starts").read_text() == "0 2 "
    assert "going on from the last that is there" in notices[0]


def test_a_share_fits_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    share = resources.plan_resources
    laptop = [{"CPU": 2.0}]
    gpu_nodes = [{"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    monkeypatch.delenv("DGUNET_CPUS_PER_WORKER", raising=False)
    for workers_asked, nodes, most, expected in (
        (None, laptop, None, resources.WorkerResources(1, 2.0, 0.0, 1)),
        ("4", laptop, None, resources.WorkerResources(4, 0.5, 0.0, 4)),
        ("4", laptop, 2, resources.WorkerResources(2, 1.0, 0.0, 2)),  # a batch of two feeds two
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
        assert share(nodes, most) == expected
    monkeypatch.setenv("DGUNET_WORKERS", "3")
    with pytest.raises(ValueError, match=r"3 workers do not fit .* 2 GPUs on 3 nodes: lower DGUNET_WORKERS"):
        share(gpu_nodes)
    monkeypatch.setenv("DGUNET_WORKERS", "2")
    monkeypatch.setenv("DGUNET_CPUS_PER_WORKER", "9")
    with pytest.raises(ValueError, match="DGUNET_CPUS_PER_WORKER"):
        share(gpu_nodes)


def test_one_process_at_a_time_is_at_work_on_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LOCKS", tmp_path / "locks")
    with run_lock.alone("denoise"):
        with run_lock.alone("derain"):
            pass
        with pytest.raises(ValueError, match="another process is at work on denoise"), run_lock.alone("denoise"):
            pass
    with run_lock.alone("denoise"):
        pass


def test_a_storage_that_cannot_be_written_is_told_before_anything_starts(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "file" / "storage"))
    with pytest.raises(errors.StorageLost, match=r"DGUNET_STORAGE.*Not a directory"):
        training_run.fit(
            partial(count, 8, str(tmp_path)), name="nowhere", into=tmp_path / "out", listener=RunListener()
        )


def test_a_storage_that_stays_away_is_given_up_and_the_wait_ends_when_asked_to_stop(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Any:
        raise OSError("the storage is gone")

    run_channel = ray.remote(num_cpus=0)(RunChannel).remote()
    stop = threading.Event()
    threading.Timer(2, stop.set).start()
    with pytest.raises(errors.Interrupted):
        training_run._run_and_resume(run, "gone", run_channel, stop)
    assert ray.get(run_channel.listen.remote())["notices"][0] == "storage: the storage is gone; trying again for 600 s"
    monkeypatch.setenv("DGUNET_PATIENCE", "0")
    with pytest.raises(errors.StorageLost, match=r"DGUNET_STORAGE.*the storage is gone"):
        training_run._run_and_resume(run, "gone", run_channel, threading.Event())


def test_a_run_is_not_begun_anew_where_its_checkpoints_have_gone(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_PATIENCE", "0")
    run_channel, runs = ray.remote(num_cpus=0)(RunChannel).remote(), []

    def run() -> Any:
        runs.append(1)
        ray.get(run_channel.report.remote({"step": 1}))
        raise ray.train.WorkerGroupError("lost", {0: RuntimeError("lost")})

    with pytest.raises(errors.StorageLost, match="the checkpoints are gone from"):
        training_run._run_and_resume(run, "gone", run_channel, threading.Event())
    assert runs == [1]


@pytest.mark.parametrize("most", [0, 2])
def test_a_run_that_ray_cannot_start_is_tried_again_as_often_as_losses_are_survived(
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
    expected = "the run failed with the address is in use; back to the last checkpoint"
    assert ray.get(run_channel.listen.remote())["notices"] == [expected][:most], "the same is told once"


def test_a_wish_to_stop_is_heard_however_seldom_a_worker_looks(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.channel.SECONDS_BETWEEN_QUESTIONS", 0.0)
    monkeypatch.setattr("pipeline.cluster.channel.MOST_SECONDS_TO_ANSWER", 60.0)
    run_channel = ray.remote(num_cpus=0)(RunChannel).remote()
    channel = WorkerChannel(run_channel)
    channel.progress(1, {})
    assert not channel.stop_requested()
    ray.get(run_channel.stop.remote())
    channel.progress(2, {})
    assert channel.stop_requested()


def test_a_farewell_is_told_once_of_the_same_workers() -> None:
    run_channel = RunChannel()
    for _ in range(2):
        run_channel.enter()
        for _ in range(3):
            run_channel.leave("worker 0 died")
        run_channel.leave()
    assert run_channel.listen()["notices"] == ["worker 0 died"] * 2
    assert not run_channel.listen()["working"]


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert describe_worker_failures({0: EOFError(), 1: EOFError()}) == "worker 0, 1 failed with EOFError"


@pytest.mark.parametrize(
    ("given", "meant"), [("s3://bucket/runs/", "s3://bucket/runs"), ("runs", str(Path("runs").absolute()))]
)
def test_a_storage_is_a_url_without_a_slash_or_a_whole_path(
    monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.setenv("DGUNET_STORAGE", given)
    assert checkpoints.storage() == meant


def test_losses_too_many_are_told_in_a_line(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "0")
    (tmp_path / "1.kill").touch()
    with pytest.raises(errors.WorkersLost, match=r"^training stopped: worker 0 died\. .*DGUNET_MAX_FAILURES"):
        counted(tmp_path, "lost", 3)


def test_losses_are_counted_anew_where_checkpoints_lie_between(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_MAX_FAILURES", "1")
    for step in (1, 2, 3):
        (tmp_path / f"{step}.kill").touch()
    heard, _ = counted(tmp_path, "often", 4)
    assert heard == [1, 2, 3, 4]
    assert (tmp_path / "starts").read_text() == "0 1 2 3 "


def test_a_run_says_that_a_batch_is_too_small_for_all_workers(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_WORKERS", "2")
    notices: list[str] = []
    work, listener = partial(count, 1, str(tmp_path)), RunListener(notice=notices.append)
    training_run.fit(work, name="capped", into=tmp_path / "out", listener=listener, most_workers=1)
    assert notices == ["1 workers, not 2: a batch has 1 images (train.batch_size)"]


def test_a_finished_run_leaves_no_checkpoints_once_it_is_forgotten(storage: Path, tmp_path: Path) -> None:
    counted(tmp_path, "finished", 2)
    assert list((storage / "finished").iterdir())
    training_run.delete_checkpoints("finished")
    assert not (storage / "finished").exists()


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


def at_work(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What a driver has started, a training worker among it."""
    ours = psutil.Process(process.pid).children(recursive=True)
    assert any(command(each).startswith("ray::RayTrainWorker") for each in ours)
    return ours


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_killed_in_the_middle_goes_on_when_started_again(tmp_path: Path) -> None:
    with driver(tmp_path, 100_000) as first:  # cannot end by itself
        until((tmp_path / "made4").exists)
        ours = at_work(first)
        first.kill()
        first.wait()
        until(lambda: not any(command(each) for each in ours))
    with driver(tmp_path, len(list(tmp_path.glob("made*"))) + 4) as second:
        output, _ = second.communicate()
    assert second.returncode == 0, output
    begun, resumed = (int(step) for step in (tmp_path / "starts").read_text().split())
    assert begun == 0
    assert resumed >= 2  # the third of four may have been on its way
    assert int((tmp_path / "out" / "step").read_text()) > resumed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_asked_to_stop_saves_first_and_leaves_no_process(tmp_path: Path, how: signal.Signals) -> None:
    with driver(tmp_path, 100_000) as asked:  # cannot end by itself
        until((tmp_path / "made3").exists)
        ours = at_work(asked)
        if how == signal.SIGINT:
            os.killpg(asked.pid, how)  # Ctrl-C in a terminal goes to all
        else:
            asked.send_signal(how)
        output, _ = asked.communicate()
    assert asked.returncode != 0
    assert "Interrupted" in output
    until(lambda: not any(command(each) for each in ours))
    steps = len(list(tmp_path.glob("made*")))
    with driver(tmp_path, steps + 2) as again:
        output, _ = again.communicate()
    assert again.returncode == 0, output
    assert (tmp_path / "starts").read_text() == f"0 {steps} "


def on_nodes(script: str, folder: Path) -> str:
    """Run a script that starts Ray nodes of its own, and return what it printed."""
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "DGUNET_STORAGE": str(folder / "storage"),
        "RAY_AUTH_MODE": "disabled",
    }
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    with started(*command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        output, _ = run.communicate()
    assert run.returncode == 0, output
    return output


def count_together(folder: str, worker: context.Worker) -> None:
    """Counts with everyone who is there, until there are two again; says how many they were."""
    start = step = step_of(worker)
    (Path(folder) / f"{worker.num_workers}-workers-at-{start}").touch()
    while not (worker.num_workers == 2 and start > 0 and step >= start + 3):
        step += 1
        checkpoint = Path(folder) / f"made{step}"
        if worker.rank == 0:
            checkpoint.mkdir(exist_ok=True)
            (checkpoint / "step").write_text(str(step))
        worker.report({"step": step}, checkpoint if worker.rank == 0 else None)


ELASTIC = """
    import os, sys
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from pipeline.cluster.session import session
    from pipeline.cluster.training_run import fit
    from pipeline.cluster.channel import Ears, Line
    from processes import until
    from test_training_run import count_together
    folder = Path(sys.argv[1])
    os.environ |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first, second = nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes(600)
    os.environ |= {"RAY_ADDRESS": nodes.address, "DGUNET_WORKERS": "1:2"}
    with session():
        work = partial(count_together, str(folder))
        ears = Ears(notice=lambda line: print(line, flush=True))
        run = ThreadPoolExecutor().submit(fit, work, name="elastic", into=folder / "out", ears=ears)
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
    on_nodes(ELASTIC, tmp_path)
    assert (tmp_path / "2-workers-at-0").exists()
    shrunk = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("1-workers-at-*")]
    grown = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("2-workers-at-*")]
    assert 3 <= min(shrunk) < max(grown)
    assert int((tmp_path / "out" / "step").read_text()) == max(grown) + 3


def work_until_taken_away(folder: str, worker: context.Worker) -> None:
    """Saves when it is asked to and works on without an end; once it has started again it is done."""
    place = Path(folder)
    checkpoint = place / "made"
    if begun_anew := not step_of(worker):
        (place / "node").write_text(ray.get_runtime_context().get_node_id())
        until(worker.save_requested)
        assert not worker.save_requested()
        checkpoint.mkdir()
        (checkpoint / "step").write_text("7")
    worker.report({"step": 7}, checkpoint)
    until(lambda: not begun_anew)


TAKEN_AWAY = """
    import os, subprocess, sys
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial
    from pathlib import Path
    from ray.cluster_utils import Cluster
    from pipeline.cluster.session import session
    from pipeline.cluster.training_run import fit
    from pipeline.cluster.channel import Ears
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
        ears = Ears(saved.append, notice=lambda line: print(line, flush=True))
        run = ThreadPoolExecutor().submit(fit, work, name="spot", into=folder / "out", ears=ears)
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
def test_a_node_that_is_to_be_taken_away_has_its_work_saved_before(tmp_path: Path) -> None:
    output = on_nodes(TAKEN_AWAY, tmp_path)
    assert "the node of worker 0 is to be taken away: a checkpoint is saved before" in output
    assert (tmp_path / "out" / "step").read_text() == "7"
