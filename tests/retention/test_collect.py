"""`make gc` with real stores: git, DVC, shards, checkpoints with leases, and MLflow on SQLite."""

import io
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import s3fs
from clones import OLD, WEEK, Clone, age, contents, sha256
from processes import S3Server

from pipeline import collect
from pipeline.cluster import checkpoints, lease
from pipeline.retention import collection
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import readable_size
from pipeline.shards import store as shard_store
from pipeline.tracking import runs

pytestmark = pytest.mark.filterwarnings("ignore")  # those of MLflow, DVC and SQLAlchemy, on import
FINGERPRINT = "0123456789abcdef"


@dataclass(frozen=True)
class World:
    """Two clones and what they share."""

    first: Clone
    second: Clone
    remote: Path
    shards: Path
    storage: Path


@pytest.fixture(scope="module")
def empty_clones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clones on one remote, to be copied: DVC takes seconds to make one."""
    folder = tmp_path_factory.mktemp("clones")
    for name in ("first", "second"):
        Clone(folder / name, "../remote")
    return folder


@pytest.fixture
def world(empty_clones: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(empty_clones, tmp_path, dirs_exist_ok=True)
    clones = []
    for name in ("first", "second"):
        clones.append(Clone.__new__(Clone))
        clones[-1].folder = tmp_path / name
    for name in ("runs", "shards"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "runs"))
    monkeypatch.setenv("DGUNET_SHARDS", f"file://{tmp_path / 'shards'}")
    monkeypatch.chdir(tmp_path / "first")
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_HEARTBEATS", 0.1)
    monkeypatch.setattr(lease, "SECONDS_TO_WATCH", 1.0)
    monkeypatch.setattr(lease, "SECONDS_TO_SETTLE", 0.2)
    return World(clones[0], clones[1], tmp_path / "remote", tmp_path / "shards", tmp_path / "runs")


def everything(world: World) -> dict[str, set[bytes]]:
    """What is stored in each place."""
    places = (world.remote, world.first.folder / ".dvc/cache", world.shards, world.storage)
    return {str(place): contents(str(place)) for place in places}


def test_of_two_clones_on_one_remote_gc_in_one_deletes_nothing_of_the_other(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.first.build({"a": b"shard 1"}, {"weights": b"weights 1", "card": b"card 1"})
    age(world.remote, world.first.folder / ".dvc/cache", world.shards)
    world.first.build({"a": b"shard 2"}, {"weights": b"weights 2"})
    # Of what the other clone pushes, DVC finds weights 1 in the remote and does not upload them again.
    world.second.build({"a": b"shard 3"}, {"weights": b"weights 1", "card": b"card 3"})
    collect.main(["--yes"])
    printed = capsys.readouterr().out
    assert "models/denoise" in printed and "DVC remote" in printed, "objects have the names of outputs"
    left = everything(world)
    assert left[str(world.remote)] >= {b"weights 1", b"card 3", b"weights 2"}
    assert b"card 1" not in left[str(world.remote)]
    assert b"card 1" not in left[str(world.first.folder / ".dvc/cache")]
    shards = {content for content in left[str(world.shards)] if content.startswith(b"shard")}
    assert shards == {b"shard 2", b"shard 3"}
    shutil.rmtree(world.second.folder / ".dvc/cache")
    shutil.rmtree(world.second.folder / "models")
    world.second.dvc("pull", "--quiet")
    assert (world.second.folder / "models/denoise/weights").read_bytes() == b"weights 1"
    collect.main(["--yes"])
    assert "there is nothing to delete" in capsys.readouterr().out
    world.first.build({"a": b"shard 1"}, {"weights": b"weights 1", "card": b"card 1"})
    assert b"card 1" in contents(str(world.remote)), "DVC does not take what was deleted for stored"


@pytest.mark.parametrize("young", ["directories", "run cache"])
def test_old_objects_that_another_clone_has_pushed_again_are_kept(world: World, young: str) -> None:
    world.second.build({"a": b"shard 1"}, {"weights": b"weights 1"})
    for path in world.remote.rglob("*"):
        is_young = path.suffix == ".dir" if young == "directories" else "runs" in path.relative_to(world.remote).parts
        if path.is_file() and not is_young:
            os.utime(path, (OLD, OLD))
    before = contents(str(world.remote))
    collect.main(["--yes"])
    assert contents(str(world.remote)) == before


def test_what_a_commit_or_a_copy_of_dvc_lock_names_is_kept_however_old(world: World) -> None:
    world.first.build({"a": b"shard 1"}, {"weights": b"weights 1"})
    world.first.commit("dvc.lock")
    world.first.build({"a": b"shard 2"}, {"weights": b"weights 2"})
    copy = world.storage / "locks" / "elsewhere" / "dvc.lock"
    copy.parent.mkdir(parents=True)
    shutil.copy(world.first.folder / "dvc.lock", copy)
    world.first.build({"a": b"shard 3"}, {"weights": b"weights 3"})
    world.first.build({"a": b"shard 4"}, {"weights": b"weights 4"})
    age(world.remote, world.first.folder / ".dvc/cache", world.shards, world.storage)
    collect.main(["--yes"])
    left = everything(world)
    for number, is_kept in ((1, True), (2, True), (3, False), (4, True)):
        assert (f"weights {number}".encode() in left[str(world.remote)]) == is_kept
        assert (f"weights {number}".encode() in left[str(world.first.folder / ".dvc/cache")]) == is_kept
        assert (f"shard {number}".encode() in left[str(world.shards)]) == is_kept
    assert copy.exists()


def test_nothing_is_deleted_without_consent_or_if_it_was_referred_to_in_the_meantime(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.first.build({"a": b"shard 1"}, {"weights": b"weights 1"})
    lock = (world.first.folder / "dvc.lock").read_bytes()
    world.first.build({"a": b"shard 2"}, {"weights": b"weights 2"})
    age(world.remote, world.first.folder / ".dvc/cache", world.shards)
    before = everything(world)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # no terminal
    collect.main([])
    assert "nothing is deleted; to delete without a question: `make gc YES=1`" in capsys.readouterr().out
    shown = collection.collect(world.first.folder, time.time())
    assert any(place.items for place in shown)
    copy = world.storage / "locks" / "elsewhere" / "dvc.lock"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(lock)
    collection.delete(shown, world.first.folder, time.time())
    copy.unlink()
    assert everything(world) == before


def test_shards_of_live_runs_and_registered_versions_are_kept(world: World) -> None:
    registered = world.second.build({"a": b"registered"}, {"m": b"1"}, push=False)
    world.second.build({"a": b"read by a run"}, {"m": b"2"}, push=False)
    tracked = world.second.build({"a": b"tracked"}, {"m": b"3"}, push=False)
    world.second.build({"a": b"nobody's"}, {"m": b"4"}, push=False)
    age(world.shards)
    name = f"denoise-{FINGERPRINT}"
    checkpoints.write_origin(name, "elsewhere", [sha256(b"read by a run")])
    register(world, {"data": registered})
    with runs.run("denoise", "other", {"fingerprint": "other"}, {}, system_metrics=False) as run:
        run.tag({"data": tracked})
    collect.main(["--yes"])
    shards = {content for content in contents(str(world.shards)) if not content.startswith(b"{")}
    assert shards == {b"registered", b"read by a run", b"tracked"}


def register(world: World, tags: dict[str, str], lock: Path | None = None) -> str:
    """Register a version with tags; return the id of its run."""
    with runs.run("denoise", "denoise", {"model": "x", "code": "y"}, {}, system_metrics=False) as run:
        if lock:
            run.log_lock_file(lock)
    with runs.connected():
        client = mlflow.MlflowClient()
        client.create_registered_model("denoise")
        client.create_model_version("denoise", "source", run.id, tags)
    return run.id


def test_the_dvc_lock_of_a_registered_version_keeps_its_objects(world: World) -> None:
    world.first.build({"a": b"shard 1"}, {"weights": b"weights 1"})
    register(world, {}, world.first.folder / "dvc.lock")
    world.first.build({"a": b"shard 2"}, {"weights": b"weights 2"})
    age(world.remote, world.first.folder / ".dvc/cache", world.shards)
    collect.main(["--yes"])
    assert contents(str(world.remote)) >= {b"weights 1", b"weights 2"}
    assert contents(str(world.shards)) >= {b"shard 1", b"shard 2"}


def test_no_shard_is_deleted_where_an_index_is_not_known(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.second.build({"a": b"shard 1"}, {"weights": b"weights 1"}, push=False)
    copy = world.storage / "locks" / "elsewhere" / "dvc.lock"
    copy.parent.mkdir(parents=True)
    shutil.copy(world.second.folder / "dvc.lock", copy)
    age(world.shards)
    collect.main(["--yes"])
    assert "no shard is deleted: the index of data/shards/denoise is neither in" in capsys.readouterr().out
    assert b"shard 1" in contents(str(world.shards))


def test_checkpoints_are_kept_while_a_driver_a_commit_or_a_week_keeps_them(world: World) -> None:
    commit = world.first.commit()
    names = ("live", "committed", "changed", "abandoned", "tune-denoise", "young")
    for name in names:
        origin = {"committed": commit, "changed": f"{commit}+changes"}.get(name, "elsewhere")
        checkpoints.write_origin(f"{name}-{FINGERPRINT}", origin, [])
    trial = world.storage / f"tune-denoise-{FINGERPRINT}-12ab_00003"
    others = [world.storage / "photographs", world.storage / f"x-{FINGERPRINT[:5]}"]
    for folder in (trial, *others):
        folder.mkdir()
        (folder / "file").touch()
    held = world.storage / f"live-{FINGERPRINT}"
    (held / "checkpoint").write_bytes(bytes(5000))
    later = time.time() + 2 * WEEK  # the clock of the storage may be wrong: a heartbeat counts, not its time
    os.utime(world.storage / f"young-{FINGERPRINT}" / "origin.json", (later, later))
    with lease.hold_lease(str(held)):
        shown = collection.collect(world.first.folder, later)
        collection.delete(shown, world.first.folder, later)
    printed = collect.report(shown)
    assert "1 being trained" in printed and "1 unfinished run of an existing commit" in printed
    assert "1 changed within a week" in printed
    left = {path.name.removesuffix(f"-{FINGERPRINT}") for path in world.storage.iterdir()}
    assert left == {"live", "committed", "young", *(folder.name for folder in others)}
    age(world.storage)
    collect.main(["--yes"])
    assert not held.exists(), "its driver has gone"


def test_runs_are_kept_while_a_commit_a_version_a_driver_or_a_week_keeps_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = world.first.commit()
    ids = {}
    tags = {
        "committed": {"commit": commit}, "with changes": {"commit": f"{commit}+changes"},
        "elsewhere": {"commit": "f" * 40}, "never ended": {}, "unknown": {"commit": "unknown"},
        "candidate": {"commit": "e" * 40, "data": "d" * 64},
    }  # fmt: skip
    for name, values in tags.items():
        with runs.run("denoise", name, {"fingerprint": f"{name}-1"}, {}, system_metrics=False) as run:
            run.tag(values)
            ids[name] = run.id
    with runs.connected():
        client = mlflow.MlflowClient()
        foreign = client.create_run("0", run_name="of another project").info.run_id
        client.log_text(ids["elsewhere"], "x" * 1000, "report/big.txt")
        artifacts = Path(client.get_run(ids["elsewhere"]).info.artifact_uri.removeprefix("file://"))
    ids["version"] = register(world, {"commit": "e" * 40, "data": "d" * 64})
    assert (artifacts / "report/big.txt").exists()

    def active() -> set[str]:
        with runs.connected():
            client = mlflow.MlflowClient()
            return {name for name, run in ids.items() if client.get_run(run).info.lifecycle_stage == "active"}

    collect.main(["--yes"])
    assert active() == set(ids), "all are young"
    later = time.time() + WEEK + 60
    shown = collection.collect(world.first.folder, later)
    (tracked,) = [place for place in shown if place.kind == "runs"]
    assert max(item.size for item in tracked.items) == 1000
    collection.delete(shown, world.first.folder, later)
    assert active() == set(ids) - {"elsewhere", "never ended"}
    assert not (artifacts / "report").exists()
    with runs.connected():
        assert mlflow.MlflowClient().get_run(foreign).info.lifecycle_stage == "active"


def test_a_run_that_still_writes_is_kept_and_a_search_is_as_young_as_its_trials(world: World) -> None:
    started = int((time.time() - 30 * 24 * 3600) * 1000)
    with runs.connected():
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("denoise", artifact_location=(world.storage / "artifacts").as_uri())

        def run(tags: dict[str, str]) -> str:
            return str(client.create_run(experiment, start_time=started, tags=tags).info.run_id)

        writing, silent, search = (run({"fingerprint": name}) for name in ("writing", "silent", "search"))
        trial = run({"trial": "t", "mlflow.parentRunId": search})
        ended = run({"trial": "e", "mlflow.parentRunId": search})
        client.set_terminated(ended, end_time=started)
        for each, when in ((writing, time.time()), (silent, OLD), (trial, time.time())):
            client.log_metric(each, "loss", 1.0, int(when * 1000))
    collect.main(["--yes"])
    with runs.connected():
        stages = {each: client.get_run(each).info.lifecycle_stage for each in (writing, silent, search, trial, ended)}
    assert stages == {writing: "active", silent: "deleted", search: "active", trial: "active", ended: "active"}


def failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The line with which the command fails."""
    monkeypatch.setattr(sys, "argv", ["collect", "--yes"])
    with pytest.raises(SystemExit) as error:
        run_command(collect.main)
    capsys.readouterr()
    line = str(error.value)
    assert line.startswith("error: ") and "\n" not in line, line
    return line


@pytest.mark.parametrize("fault", ["git", "shallow", "registry", "storage", "remote", "shards", "dvc"])
def test_nothing_is_deleted_where_references_cannot_be_known(
    world: World, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.first.build({"a": b"shard 1"}, {"weights": b"weights 1"})
    world.first.build({"a": b"shard 2"}, {"weights": b"weights 2"})
    checkpoints.write_origin(f"abandoned-{FINGERPRINT}", "elsewhere", [])
    age(world.remote, world.first.folder / ".dvc/cache", world.shards, world.storage)
    before = everything(world)
    aside = world.first.folder.parent / "aside"
    expected = {
        "git": "it is not a git repository", "shallow": "git fetch --unshallow",
        "registry": "does not answer", "storage": "it does not exist", "remote": "the DVC remote .* cannot be read",
        "shards": "DGUNET_SHARDS=memory", "dvc": "no .dvc folder",
    }  # fmt: skip
    if fault == "git":
        (world.first.folder / ".git").rename(aside)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(world.first.folder.parent))
    elif fault == "dvc":
        (world.first.folder / ".dvc").rename(aside)
    elif fault == "shallow":
        (world.first.folder / ".git" / "shallow").write_text(world.first.run("git", "rev-parse", "HEAD") + "\n")
    elif fault == "registry":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    elif fault == "storage":
        monkeypatch.setenv("DGUNET_STORAGE", str(aside))
    elif fault == "remote":
        world.first.dvc("remote", "modify", "cluster", "url", "s3://bucket/dvc")
        world.first.dvc("remote", "modify", "cluster", "endpointurl", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    else:
        monkeypatch.setenv("DGUNET_SHARDS", "nonsense://shards")
        expected["shards"] = "DGUNET_SHARDS=nonsense://shards"
    with pytest.MonkeyPatch.context() as quick:
        quick.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        line = failure(capsys, monkeypatch)
    assert re.search(expected[fault], line), line
    if aside.exists():
        aside.rename(world.first.folder / (".git" if fault == "git" else ".dvc"))
    assert everything(world) == before


@pytest.mark.slow
def test_in_buckets_too(
    s3_server: S3Server, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    client = s3_server.client()
    monkeypatch.setenv("DGUNET_STORAGE", "s3://bucket/runs")
    monkeypatch.setenv("DGUNET_SHARDS", "s3://bucket/shards")
    first, second = (Clone(tmp_path / name, "s3://bucket/dvc") for name in ("first", "second"))
    first.build({"a": b"shard 1"}, {"weights": b"weights 1"})
    first.build({"a": b"shard 2"}, {"weights": b"weights 2"})
    second.build({"a": b"shard 3"}, {"weights": b"weights 3"})
    checkpoints.write_origin(f"abandoned-{FINGERPRINT}", "elsewhere", [])
    monkeypatch.chdir(first.folder)
    before = contents("s3://bucket")
    collect.main(["--yes"])
    assert contents("s3://bucket") == before, "all of it is young"
    client.put_object(
        Bucket="bucket", Key="runs/locks/elsewhere/dvc.lock", Body=(second.folder / "dvc.lock").read_bytes()
    )
    later = time.time() + WEEK + 60
    shown = collection.collect(first.folder, later)
    assert collection.delete(shown, first.folder, later) > 0
    left = contents("s3://bucket")
    assert {f"{what} {n}".encode() for what in ("shard", "weights") for n in (2, 3)} <= left
    assert not left & {b"shard 1", b"weights 1"}
    assert not client.list_objects_v2(Bucket="bucket", Prefix="runs/abandoned").get("Contents")
    s3_server.stop()
    monkeypatch.setattr(shard_store, "WAITS", ())
    assert "cannot be read" in failure(capsys, monkeypatch)


def test_sizes_are_read_by_people() -> None:
    assert [readable_size(size) for size in (0, 999, 1000, 123_456, 999_960, 5e9, 7e15)] == [
        "0 B", "999 B", "1.0 kB", "123.5 kB", "1.0 MB", "5.0 GB", "7000.0 TB",
    ]  # fmt: skip


def test_a_record_of_another_form_is_no_index() -> None:
    from pipeline.retention.shards import of_indices

    assert of_indices([b"{", b"[]", json.dumps({"shards": [{"sha256": "x"}]}).encode()]) == {"x"}
