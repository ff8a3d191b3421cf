"""The road end to end, as a newcomer takes it: `dvc repro` in a fresh checkout, tiny, with real Ray and MLflow."""

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

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def shrink(params: dict[str, Any]) -> None:
    params["tasks"] = ["denoise"]
    params["denoise"]["synthesize"] |= {"tile_size": 64, "stride": 256, "held_out_tile_size": 160}
    train = params["denoise"]["train"]
    train |= {"num_steps": 12, "warmup_steps": 2, "validate_every": 6, "patch_size": 32, "batch_size": 2}
    train.setdefault("network", {}).update(width=8, growth=4, num_stages=2)
    params["denoise"]["evaluate"]["gallery_images"] = 2


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("checkout"), shrink, {})
    made.run("dvc", "repro")
    return made


def test_the_road_ends_with_a_model_a_report_and_a_receipt(checkout: Checkout) -> None:
    assert checkout.read("reports/denoise/promote.json")["version"] == 1
    assert checkout.read("models/denoise/config.json")["task"] == "denoise"
    assert checkout.read("reports/denoise/metrics.json")["num_images"] >= 1
    assert (checkout.folder / "reports/denoise/gallery.html").stat().st_size > 50_000
    assert (checkout.folder / "mlflow.db").exists()
    assert not list((checkout.folder / ".cache" / "runs").iterdir())
    shown = checkout.run(sys.executable, "-m", "pipeline.summary")
    assert "denoise" in shown


def test_when_nothing_changed_only_prepare_looks_again(checkout: Checkout) -> None:
    said = checkout.run("dvc", "repro")
    assert "Running stage 'prepare'" in said
    assert said.count("Running stage") == 1


def test_forcing_everything_twice_gives_the_same_bytes_and_lock(checkout: Checkout) -> None:
    before, lock = checkout.digests(), (checkout.folder / "dvc.lock").read_text()
    checkout.run("dvc", "repro", "--force")
    assert checkout.digests() == before
    assert (checkout.folder / "dvc.lock").read_text() == lock
    assert checkout.read("reports/denoise/promote.json")["version"] == 1


BEGUN = {  # what is seen first of a stage's work
    "prepare": ".cache/prepare/looks.sqlite",
    "synthesize@denoise": ".cache/synthesize/*/*/*.tar*",
    "train@denoise": ".cache/runs/*/checkpoint_2*",
    "evaluate@denoise": "reports/denoise/.*.partial/*",
    "promote@denoise": "reports/denoise/promote.json",
}


def killed_at_work(checkout: Checkout, stage: str) -> bool:
    """Run a stage, and kill it once its work has begun; return whether it was killed, and not over before."""
    seen = partial(glob.glob, str(checkout.folder / BEGUN[stage]))
    for path in seen():
        Path(path).unlink()
    with checkout.started("dvc", "repro", "--force", "--single-item", stage) as dvc:
        until(lambda: seen() or dvc.poll() is not None)
        if dvc.poll() is None:
            ours = psutil.Process(dvc.pid).children(recursive=True)
            os.killpg(dvc.pid, signal.SIGKILL)
            until(lambda: not any(command(each) for each in ours))
        return dvc.wait() == -signal.SIGKILL


def test_killed_in_any_stage_the_next_run_ends_as_if_nothing_had_been(checkout: Checkout) -> None:
    before = checkout.digests()
    for stage in BEGUN:
        until(partial(killed_at_work, checkout, stage))
        checkout.run("dvc", "repro", "--force", "--single-item", stage)  # else DVC fetches what it made another time
        assert checkout.digests() == before, stage
    assert checkout.read("reports/denoise/promote.json")["version"] == 1


def test_a_training_whose_dvc_was_killed_saves_and_leaves(checkout: Checkout) -> None:
    before, short = checkout.digests(), checkout.read_params()["denoise"]["train"]["num_steps"]
    checkout.change(lambda params: params["denoise"]["train"].update(num_steps=100_000))  # cannot end by itself
    runs = checkout.folder / ".cache" / "runs"
    with checkout.started(
        "dvc", "repro", "--single-item", "train@denoise", stderr=subprocess.PIPE, DGUNET_LOADER_PROCESSES="1"
    ) as dvc:
        until(lambda: list(runs.glob("*/checkpoint_manager_snapshot.json")) or dvc.poll() is not None)
        assert dvc.poll() is None, "training was over before dvc could be killed"
        ours = psutil.Process(dvc.pid).children(recursive=True)
        for part in ("pipeline.train", "ray::RayTrainWorker", "multiprocessing.forkserver"):
            assert any(part in command(each) for each in ours), part
        dvc.terminate()
        assert dvc.stderr
        said = dvc.stderr.read()  # to the end of the training, which shares it
        until(lambda: not any(command(each) for each in ours))
    assert "the same command goes on" in said
    assert list(runs.glob("*/checkpoint_*/*"))
    shutil.rmtree(runs)
    checkout.change(lambda params: params["denoise"]["train"].update(num_steps=short))
    checkout.run("dvc", "repro")
    assert checkout.digests() == before


def test_touching_the_code_of_a_stage_runs_it_and_what_follows(checkout: Checkout) -> None:
    with (checkout.folder / "pipeline" / "promote.py").open("a") as file:
        file.write("# touched\n")
    said = checkout.run("dvc", "repro")
    assert "Running stage 'promote@denoise'" in said
    assert "Running stage 'train@denoise'" not in said


def stored_step(runs: Path) -> int:
    """The step of the last checkpoint that Ray has listed; 0 without any, and while it writes the list."""
    steps = [0]
    for listed in runs.glob("denoise-*/checkpoint_manager_snapshot.json"):
        with suppress(ValueError, OSError):
            steps.append(json.loads(listed.read_text())["latest_checkpoint_result"]["metrics"].get("step", 0))
    return max(steps)


def test_training_killed_in_the_middle_goes_on_from_its_checkpoint(checkout: Checkout) -> None:
    checkout.change(lambda params: params["denoise"]["train"].update(num_steps=200, validate_every=4))
    with checkout.started("dvc", "repro", "train@denoise") as first:
        until(lambda: stored_step(checkout.folder / ".cache" / "runs") >= 60 or first.poll() is not None)
        assert first.poll() is None, "training was over before it could be killed"
        ours = psutil.Process(first.pid).children(recursive=True)
        os.killpg(first.pid, signal.SIGKILL)
        until(lambda: not any(command(each) for each in ours))
    said = checkout.run("dvc", "repro", "train@denoise")
    shown = [int(step) for step in re.findall(r"train denoise: step (\d+)/200", said)]
    assert min(shown) > 50, "it began anew"  # the list may have been cut off, the copy be one checkpoint older
    curve = (checkout.folder / "reports/denoise/train.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in curve[1:]] == list(range(4, 204, 4))


def test_a_typo_stops_before_anything_is_built_and_loses_nothing(checkout: Checkout) -> None:
    before = checkout.digests()
    checkout.change(lambda params: params["promote"].update(margindb=1))
    said = checkout.run("dvc", "repro", fails=True)
    assert "promote.margindb: no such key" in said
    assert checkout.digests() == before
