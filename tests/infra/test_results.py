"""Results of a cluster in another clone: a real DVC remote, dvc.lock by commit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import Checkout
from processes import started

from pipeline import results

STAGE = """
stages:
  make:
    cmd: mkdir -p models && cp params.yaml models/weights
    deps: [params.yaml]
    outs: [models]
"""


@pytest.fixture
def made(tmp_path: Path) -> Checkout:
    """A checkout in which a stage has run, with a storage and a remote."""
    folder = tmp_path / "made"
    built = Checkout(folder, lambda params: params, {})
    (folder / "dvc.yaml").write_text(STAGE)
    built.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-am", "a stage")
    built.environment |= {"DGUNET_STORAGE": str(tmp_path / "runs"), "DGUNET_REMOTE": str(tmp_path / "remote")}
    return built


def run(made: Checkout, folder: Path, action: str) -> tuple[int, str]:
    command = ["python", "-m", "pipeline.results", action]
    done = subprocess.run(command, cwd=folder, env=made.environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def clone(made: Checkout, name: str) -> Path:
    folder = made.folder.with_name(name)
    subprocess.run(["git", "clone", "--quiet", str(made.folder), str(folder)], check=True)
    return folder


@pytest.mark.slow
def test_a_clone_of_the_same_commit_gets_the_results(made: Checkout) -> None:
    assert run(made, made.folder, "prepare")[0] == 0
    made.run("dvc", "repro")
    assert run(made, made.folder, "store") == (0, "")

    folder = clone(made, "clone")
    (folder / "dvc.lock").write_text("of an earlier run\n")
    status, output = run(made, folder, "fetch")
    assert status == 0, output
    assert "the former dvc.lock is .cache/dvc.lock.former" in output
    assert (folder / ".cache" / "dvc.lock.former").read_text() == "of an earlier run\n"
    assert (folder / "models" / "weights").read_bytes() == (made.folder / "models" / "weights").read_bytes()
    assert (folder / "dvc.lock").read_bytes() == (made.folder / "dvc.lock").read_bytes()

    # a new driver, in a clone without dvc.lock: the run cache knows the stage
    driver = clone(made, "driver")
    assert run(made, driver, "prepare")[0] == 0
    done = subprocess.run(
        ["dvc", "repro", "--pull"], cwd=driver, env=made.environment, capture_output=True, text=True, check=True
    )
    assert "is cached - skipping run" in done.stdout

    with (made.folder / "params.yaml").open("a") as file:
        file.write("# another commit\n")
    made.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-am", "more")
    status, output = run(made, clone(made, "newer"), "fetch")
    assert status == 1
    assert "has no results for commit" in output
    assert output.count("\n") == 1


def test_a_remote_that_cannot_be_read_stops_a_driver(made: Checkout) -> None:
    made.environment |= {"DGUNET_REMOTE": "s3://bucket/dvc", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    made.environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    status, output = run(made, made.folder, "prepare")
    assert status == 1
    assert output.startswith("error: dvc fetch --run-cache --quiet: "), output
    assert output.count("\n") == 1


def test_without_a_remote_nothing_is_fetched(made: Checkout) -> None:
    del made.environment["DGUNET_REMOTE"]
    status, output = run(made, made.folder, "fetch")
    assert (status, output) == (
        1,
        "error: there is no DVC remote: set DGUNET_REMOTE to a URL, such as s3://bucket/dvc\n",
    )


def test_results_of_changed_code_are_fetched_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGUNET_STORAGE", str(tmp_path / "runs"))
    monkeypatch.setenv("DGUNET_REMOTE", str(tmp_path / "remote"))
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(results, "_dvc", lambda *arguments, **_: commands.append(arguments) or "")
    monkeypatch.setattr(results, "commit", lambda: "0123abcd+changes")
    (tmp_path / "dvc.lock").write_text("of changed code\n")
    results.main(["store"])
    (tmp_path / "dvc.lock").unlink()
    monkeypatch.setattr(results, "commit", lambda: "0123abcd")
    results.main(["fetch"])
    assert "with changes that were not committed" in capsys.readouterr().err
    assert (tmp_path / "dvc.lock").read_text() == "of changed code\n"
    assert [command[0] for command in commands] == ["push", "remote", "pull"]


def test_a_new_driver_releases_the_locks_of_killed_processes_alone(tmp_path: Path) -> None:
    (tmp_path / "dvc").write_text("import time; time.sleep(600)")
    locks = tmp_path / "rwlock"
    with (
        started(sys.executable, str(tmp_path / "dvc"), "repro") as running,
        started("sleep", "600") as other,
        started("true") as ended,
    ):
        ended.wait()

        def held(process: subprocess.Popen[str]) -> dict[str, object]:
            return {"pid": process.pid, "cmd": "dvc repro"}

        content = {
            "read": {"/a": [held(other), held(running)], "/b": [held(ended)]},
            "write": {"/c": held(other), "/d": held(running)},
        }
        locks.write_text(json.dumps(content))
        results._release_locks(locks)
        assert json.loads(locks.read_text()) == {"read": {"/a": [held(running)]}, "write": {"/d": held(running)}}
        locks.write_text(locks.read_text()[:20])  # killed as it was written
        results._release_locks(locks)
        assert json.loads(locks.read_text()) == {"read": {}, "write": {}}
    locks.unlink()
    results._release_locks(locks)
    assert not locks.exists()
