"""python -m pipeline.restore_many: killed workers, interruptions, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import pythonpath
from processes import started, until
from restored import expected, member_bytes, save_small_model, write_photos, write_shard_of

from pipeline import restore_many
from pipeline.cluster.lease import hold_lease
from pipeline.restoration.output import CARD
from pipeline.restoration.restorer import Restorer
from pipeline.runtime.entry_point import run_command

NUM_PHOTOS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "denoise")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    return tmp_path


class Dying(Restorer):
    """Kills its process once, after it restored ten photographs, in the middle of a block."""

    count = 0

    def _restored(self, *arguments: Any) -> Any:
        Dying.count += 1
        if Dying.count == 10 and not (marker := Path(self._job.output.address, "killed")).exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._restored(*arguments)


class Waiting(Restorer):
    """Waits for ever before the first photograph of the seventh shard."""

    def _restored(self, origin: str, *arguments: Any) -> Any:
        if "000006.tar" in origin:
            signal.pause()
        return super()._restored(origin, *arguments)


def main_that_waits() -> None:
    restore_many.Restorer = Waiting
    run_command(restore_many.main)


def restored(path: str = "out") -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in Path(path).rglob("*") if p.is_file() and p.name != "killed")


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_folder_is_restored_though_a_worker_is_killed_and_a_file_damaged(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_photos("in", NUM_PHOTOS)
    broken = Path("in", names[7])
    broken.write_bytes(broken.read_bytes()[:-30])
    monkeypatch.setattr(restore_many, "Restorer", Dying)
    arguments = ["in", "out", "--model", str(model), "--block", "8"]
    with pytest.raises(SystemExit) as ended:
        restore_many.main(arguments)
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert Path("out/killed").exists()
    assert "restored again, as its process died" in printed.err
    counted = {name: int(number) for name, number in re.findall(r"^(\w+) +(\d+)", printed.out, re.MULTILINE)}
    assert counted["restored"] + counted["skipped"] == NUM_PHOTOS - 1  # skipped: written by the process that died
    assert counted["refused"] == 1
    assert "  1: damaged or truncated" in printed.out
    assert restored() == sorted([CARD, *names[:7], *names[8:]])
    for name in names[:7] + names[8:]:
        assert Path("out", name).read_bytes() == expected(model, Path("in", name))

    broken.write_bytes(Path("in", names[6]).read_bytes())  # repaired
    Path("out", names[3]).unlink()
    restore_many.main([*arguments, "--json"])
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert (counts["restored"], counts["skipped"], counts["refused"]) == (2, NUM_PHOTOS - 2, 0)


@pytest.mark.cluster
@pytest.mark.slow
def test_shards_that_were_interrupted_are_continued(model: Path) -> None:
    names = write_photos("photos", NUM_PHOTOS)
    for number in range(12):
        write_shard_of(f"in/{number:06d}.tar", [Path("photos", name) for name in names[number * 5 :][:5]])
    arguments = ["in", "out", "--model", str(model)]
    environment = {**os.environ, "DGUNET_WORKERS": "1"}
    waiting = [sys.executable, "-c", "import test_restore_many as test; test.main_that_waits()", *arguments]
    with started(*waiting, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        until(lambda: len(list(Path("out").glob("*.json"))) == 6)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, and twice
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.strip().endswith("interrupted; run the same command again to continue")
    done = {path.stem: path.stat().st_mtime_ns for path in Path("out").glob("*.json")}
    assert {Path("out", f"{name}.tar").exists() for name in done} == {True}
    assert [name for name in restored() if not name.endswith((".tar", ".json"))] == []
    again = [sys.executable, "-m", "pipeline.restore_many", *arguments, "--json"]
    second = subprocess.run(again, env=environment, capture_output=True, text=True, check=True)
    counts = json.loads(second.stdout)["counts"]
    assert (counts["restored"], counts["skipped"]) == (NUM_PHOTOS - 30, 30)
    assert second.stderr == ""
    members = {
        name: content for path in sorted(Path("out").glob("*.tar")) for name, content in member_bytes(str(path)).items()
    }
    assert [name for name in members if not name.endswith(".txt")] == [name.replace("/", "-") for name in names]
    for name in names:
        assert members[name.replace("/", "-")] == expected(model, Path("photos", name))
    assert {name: Path("out", f"{name}.json").stat().st_mtime_ns for name in done} == done


def refused(*arguments: str) -> str:
    """The message of a command that does not start, and leaves nothing behind."""
    with pytest.raises(ValueError) as error:
        restore_many.main(arguments)
    return str(error.value)


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs end where Ray would start; returns the jobs."""
    jobs: list[Any] = []

    def run(job: Any, *_: Any) -> tuple[restore_many.Totals, dict[str, int]]:
        jobs.append(job)
        return restore_many.Totals(done=1), {}

    monkeypatch.setattr(restore_many, "run", run)
    return jobs


def test_what_cannot_be_done_is_refused_in_a_line(model: Path, no_session: list[Any]) -> None:
    write_photos("in", 1)
    Path("no-model").mkdir()
    given = ["--model", str(model)]
    assert "not a model folder" in refused("in", "out", "--model", "no-model")
    assert "this model has stages 1 to 2, not 5" in refused("in", "out", *given, "--stages", "5")
    assert "choose a folder to write to beside" in refused("in", "in/out", *given)
    assert "choose a folder to write to beside" in refused("in", ".", *given)
    assert "no shards there" in refused("in", "more", "out", *given)
    assert not Path("out").exists()
    assert no_session == []


def test_other_models_and_files_are_not_mixed_unless_asked(model: Path, tmp_path: Path, no_session: list[Any]) -> None:
    write_photos("in", 1)
    write_photos("in2", 1)
    another = str(save_small_model(tmp_path / "another", seed=1))
    given = ["in", "out", "--model", str(model)]
    restore_many.main(given)
    restore_many.main(given)
    assert no_session[0].made_by == no_session[1].made_by
    assert "was restored with other model:" in refused("in", "out", "--model", another)
    assert "was restored with other options:" in refused(*given, "--stages", "1")
    assert "was restored with other inputs:" in refused("in2", "out", *given[2:])
    assert "was restored with other to, block:" in refused(*given, "--to", "shards")
    assert len(no_session) == 2
    restore_many.main(["in", "out", "--model", another, "--skip-existing"])
    restore_many.main(["in", "out", "--model", another])
    restore_many.main([*given, "--overwrite"])
    assert [job.existing for job in no_session[2:]] == ["skip", "continue", "replace"]
    Path("mine").mkdir()
    Path("mine/a.png").touch()
    assert "holds files that are not of this command" in refused("in", "mine", *given[2:])
    restore_many.main(["in", "mine", *given[2:], "--skip-existing"])


def test_a_run_that_overwrites_and_was_interrupted_is_not_continued_by_another(
    model: Path, no_session: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos("in", 1)
    given = ["in", "out", "--model", str(model)]
    restore_many.main(given)
    with monkeypatch.context() as patched:
        patched.setattr(restore_many, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            restore_many.main([*given, "--overwrite"])
    assert "--overwrite was interrupted here" in refused(*given)
    restore_many.main([*given, "--overwrite"])
    restore_many.main(given)


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_two_at_once_do_not_write_to_the_same_folder(model: Path, no_session: list[Any]) -> None:
    write_photos("in", 1)
    run_folder = Path("out/.restore_many").absolute()
    run_folder.mkdir(parents=True)
    with hold_lease(str(run_folder)):
        message = refused("in", "out", "--model", str(model))
    assert "another process drives the run" in message
    assert message.endswith("choose another folder")
    restore_many.main(["in", "out", "--model", str(model)])


def test_totals_group_reasons_and_bound_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_many, "MOST_LISTED", 4)
    totals = restore_many.Totals()
    for block in range(3):
        totals.add(restore_many.Result(str(block), done=1, refused=[(f"{block}{n}.png", "damaged") for n in range(2)]))
    assert totals.counts == {"restored": 3, "skipped": 0, "refused": 6}
    assert totals.refused == {"damaged": (6, ["00.png", "01.png", "10.png"])}
    assert len(totals.listed) == 4
