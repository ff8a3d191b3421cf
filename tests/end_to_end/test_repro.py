"""`dvc repro` in a fresh checkout with small values, with real Ray and MLflow: results, interruptions, changes.

The checkout's path has characters that mean something in URLs, shells and patterns.
"""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkout import Checkout
from processes import command, until

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]
FOLDER = "100% #1 what? ü&a=b [x]"


def shrink(params: dict[str, Any]) -> None:
    params["tasks"] = ["denoise"]
    params["denoise"]["synthesize"] |= {"tile_size": 64, "stride": 256, "held_out_tile_size": 160}
    train = params["denoise"]["train"]
    train |= {"num_steps": 12, "warmup_steps": 2, "validate_every": 6, "patch_size": 32, "batch_size": 2}
    train.setdefault("network", {}).update(width=8, growth=4, num_stages=2)
    # Each statistic that is tried measures the val split again.
    params["denoise"]["evaluate"] |= {"gallery_images": 2, "local_statistics": [{"window": 96, "of": ["norm"]}]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which `dvc repro` has run. Each test leaves it in a state that the next ones can start from."""
    folder = tmp_path_factory.mktemp("checkout") / FOLDER
    folder.mkdir()
    built = Checkout(folder, shrink, {"XDG_CACHE_HOME": str(folder.parent / "cache")})
    built.run("dvc", "repro")
    return built


def test_repro_makes_a_model_a_report_and_a_registered_version(checkout: Checkout) -> None:
    assert checkout.read("reports/denoise/promote.json")["version"] == 1
    assert checkout.read("models/denoise/config.json")["task"] == "denoise"
    assert checkout.read("reports/denoise/metrics.json")["num_images"] >= 1
    assert (checkout.folder / "reports/denoise/gallery.html").stat().st_size > 50_000
    assert (checkout.folder / "mlflow.db").exists()
    assert not list((checkout.folder / ".cache" / "runs").iterdir())
    summary = checkout.run(sys.executable, "-m", "pipeline.summary")
    assert "denoise" in summary


def test_a_checkout_in_a_path_of_special_characters_keeps_its_files(checkout: Checkout) -> None:
    assert list((checkout.folder / "mlartifacts").rglob("model.safetensors"))
    assert "task: denoise" in checkout.run(sys.executable, "-m", "dgunet", "info", "models:/denoise/1")
    assert {path.name for path in checkout.folder.parent.iterdir()} == {FOLDER, "cache"}


def test_without_a_change_only_prepare_runs(checkout: Checkout) -> None:
    output = checkout.run("dvc", "repro")
    assert "Running stage 'prepare'" in output
    assert output.count("Running stage") == 1


FIRST_FILES = {  # what a stage writes first
    "prepare": ".cache/prepare/inspections.sqlite",
    "synthesize@denoise": ".cache/synthesize/*/*/*/*.tar*",
    "train@denoise": ".cache/runs/*/checkpoint_2*",
    "evaluate@denoise": "reports/denoise/.*.partial/*",
    "promote@denoise": "reports/denoise/promote.json",
}


# Python runs it at its start. A stage then waits with its second file until it is killed, however fast it is.
WAIT_AT_THE_SECOND_FILE = """
import fnmatch, glob, os, sys, time

def wait(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        pattern, path = os.environ["FIRST_FILES"], os.path.abspath(arguments[0])
        if fnmatch.fnmatch(path, pattern) and any(other != path for other in glob.glob(pattern)):
            time.sleep(600)

sys.addaudithook(wait)
"""


def kill_at_work(checkout: Checkout, stage: str, folder: Path) -> None:
    """Run a stage and kill it when it has written its first file."""
    pattern = f"{glob.escape(str(checkout.folder))}/{FIRST_FILES[stage]}"
    written = partial(glob.glob, pattern)
    for path in written():
        Path(path).unlink()
    (folder / "sitecustomize.py").write_text(WAIT_AT_THE_SECOND_FILE)
    variables = {"PYTHONPATH": str(folder), "FIRST_FILES": pattern}
    with checkout.started("dvc", "repro", "--force", "--single-item", stage, **variables) as dvc:
        until(lambda: written() or dvc.poll() is not None)
        assert dvc.poll() is None, f"{stage} ended before {pattern} was there: is that still what it writes first?"
        processes = psutil.Process(dvc.pid).children(recursive=True)
        os.killpg(dvc.pid, signal.SIGKILL)
        until(lambda: not any(command(each) for each in processes))
        assert dvc.wait() == -signal.SIGKILL, f"{stage} had ended already"


def test_every_stage_run_again_after_a_kill_writes_the_same_bytes_and_lock(checkout: Checkout, tmp_path: Path) -> None:
    before, lock = checkout.digests(), (checkout.folder / "dvc.lock").read_text()
    for stage in FIRST_FILES:
        kill_at_work(checkout, stage, tmp_path)
        checkout.run("dvc", "repro", "--force", "--single-item", stage)  # without --force DVC takes its cache
        assert checkout.digests() == before, stage
    assert (checkout.folder / "dvc.lock").read_text() == lock
    assert checkout.read("reports/denoise/promote.json")["version"] == 1


def test_a_training_whose_dvc_is_terminated_saves_a_checkpoint_and_ends(checkout: Checkout) -> None:
    before, short = checkout.digests(), checkout.read_params()["denoise"]["train"]["num_steps"]
    checkout.change(lambda params: params["denoise"]["train"].update(num_steps=100_000))  # cannot end by itself
    runs = checkout.folder / ".cache" / "runs"
    with checkout.started(
        "dvc", "repro", "--single-item", "train@denoise", stderr=subprocess.PIPE, DGUNET_LOADER_PROCESSES="1"
    ) as dvc:
        until(lambda: list(runs.glob("*/checkpoint_manager_snapshot.json")) or dvc.poll() is not None)
        assert dvc.poll() is None, "training was over before dvc could be killed"
        processes = psutil.Process(dvc.pid).children(recursive=True)
        for part in ("pipeline.train", "ray::RayTrainWorker", "multiprocessing.forkserver"):
            assert any(part in command(each) for each in processes), part
        dvc.terminate()
        assert dvc.stderr
        output = dvc.stderr.read()  # until the training ends, which writes to the same pipe
        until(lambda: not any(command(each) for each in processes))
    assert "train denoise: MLflow run: `make ui`\n" in output, output
    assert "run the same command again to continue" in output
    assert list(runs.glob("*/checkpoint_*/*"))
    shutil.rmtree(runs)
    checkout.change(lambda params: params["denoise"]["train"].update(num_steps=short))
    checkout.run("dvc", "repro")
    assert checkout.digests() == before


def test_a_change_of_code_runs_its_stage_and_not_the_ones_before(checkout: Checkout) -> None:
    with (checkout.folder / "pipeline" / "promote.py").open("a") as file:
        file.write("# changed\n")
    output = checkout.run("dvc", "repro")
    assert "Running stage 'promote@denoise'" in output
    assert "Running stage 'train@denoise'" not in output


def stored_step(runs: Path) -> int:
    """The step of the last checkpoint in Ray's snapshot; 0 without one, and while Ray writes it."""
    steps = [0]
    for snapshot in runs.glob("denoise-*/checkpoint_manager_snapshot.json"):
        with suppress(ValueError, OSError):
            steps.append(json.loads(snapshot.read_text())["latest_checkpoint_result"]["metrics"].get("step", 0))
    return max(steps)


def test_a_killed_training_continues_from_its_checkpoint(checkout: Checkout) -> None:
    checkout.change(lambda params: params["denoise"]["train"].update(num_steps=120, validate_every=4))
    with checkout.started("dvc", "repro", "train@denoise") as first:
        until(lambda: stored_step(checkout.folder / ".cache" / "runs") >= 24 or first.poll() is not None)
        assert first.poll() is None, "training was over before it could be killed"
        processes = psutil.Process(first.pid).children(recursive=True)
        os.killpg(first.pid, signal.SIGKILL)
        until(lambda: not any(command(each) for each in processes))
    output = checkout.run("dvc", "repro", "train@denoise")
    steps = [int(step) for step in re.findall(r"train denoise: step (\d+)/120", output)]
    # Killed at step 24 or later. The kill may damage Ray's snapshot; its copy is one checkpoint older.
    assert min(steps) > 14, "it started again from step 0"
    curve = (checkout.folder / "reports/denoise/train.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in curve[1:]] == list(range(4, 124, 4))


def test_a_typo_in_params_ends_repro_before_any_stage_and_changes_no_output(checkout: Checkout) -> None:
    before = checkout.digests()
    checkout.change(lambda params: params["promote"].update(margindb=1))
    output = checkout.run("dvc", "repro", fails=True)
    assert "promote.margindb: no such key" in output
    assert checkout.digests() == before
