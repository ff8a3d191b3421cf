"""The log of trials of a number of operations."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from factories import PROJECT

from benchmarks import speedrun
from benchmarks.speedrun import add_row, operations_of_step, trial_params
from pipeline.config.params import merged_section, read_params, validated
from pipeline.evaluation.benchmarks import Benchmark
from pipeline.sources.registry import data_set
from pipeline.training.settings import Train


def params(*changes: str) -> dict:
    return trial_params(read_params(PROJECT / "params.yaml"), "denoise", "bsds500", "CBSD68 σ 25", changes)


def test_a_trial_changes_values_of_the_task_alone() -> None:
    found = params("synthesize.degradation.sigma=[25, 25]", "train.network.width=8", "train.average_decay=0.999")
    assert found["tasks"] == ["denoise"]
    assert found["prepare"]["sources"] == [{"kind": "dataset", "name": "bsds500", "without": ["cbsd68"]}]
    assert found["denoise"]["evaluate"]["benchmarks"] == ["CBSD68 σ 25"]
    assert found["denoise"]["synthesize"]["degradation"]["sigma"] == [25, 25]
    recipe = validated(merged_section(found, "denoise", "train"), Train)
    assert (recipe.network.width, recipe.average_decay, recipe.batch_size) == (8, 0.999, 8)
    assert found["derain"] == read_params(PROJECT / "params.yaml")["derain"]


@pytest.mark.parametrize("change", ["train.learning_rate", "learning_rate=1"])
def test_a_change_of_another_form_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match=r"write it as train\.learning_rate="):
        params(change)


def test_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no task 'denoyse'; available: denoise"):
        trial_params(read_params(PROJECT / "params.yaml"), "denoyse", "bsds500", "CBSD68 σ 25", ())


def test_a_data_set_that_is_not_published_is_refused() -> None:
    with pytest.raises(ValueError, match="no data set `cbsd400`; available: bsds500"):
        trial_params(read_params(PROJECT / "params.yaml"), "denoise", "cbsd400", "CBSD68 σ 25", ())


def test_the_example_names_a_published_set() -> None:
    (name,) = re.findall(r"--dataset (\S+)", str(speedrun.__doc__))
    assert data_set(name).use == "training"


def test_matrix_products_of_the_optimizer_are_counted() -> None:
    adamw, muon = (operations_of_step(params(f"train.optimizer={name}"), "denoise") for name in ("adamw", "muon"))
    assert 1.001 * adamw < muon < 1.05 * adamw


def test_a_step_of_the_default_denoiser_takes_as_many_operations_as_were_published() -> None:
    """10,000 steps are 183 TFLOP."""
    assert operations_of_step(params(), "denoise") == pytest.approx(0.0183, abs=5e-5)


def test_every_trial_is_a_row_the_best_first_and_those_that_failed_last(tmp_path: Path) -> None:
    log = tmp_path / "speedrun.jsonl"
    row = {"task": "denoise", "benchmark": "CBSD68 σ 25", "num_steps": 100, "tflop": 1.83, "date": "2026-01-02"}
    numbers = {"degraded": 20.17, "baseline": 27.0}
    add_row(log, row | {"change": "as it stands", "set": [], "restored": 28.0} | numbers)
    add_row(log, row | {"change": "no stage", "set": ["train.network.num_stages=0"], "failed": "train exited with 1"})
    add_row(log, row | {"change": "longer average", "set": ["train.average_decay=0.999"], "restored": 28.5} | numbers)
    assert [json.loads(line)["tflop"] for line in log.read_text().splitlines()] == [1.83] * 3
    rows = [line for line in log.with_suffix(".md").read_text().splitlines() if line.startswith("| 1.8 ")]
    assert [line.split(" | ")[4:6] for line in rows] == [
        ["28.50", "longer average"],
        ["28.00", "as it stands"],
        ["failed: train exited with 1", "no stage"],
    ]


@pytest.mark.parametrize(
    "change", ["operator_loss={degradation: 0.1, adjoint: 0.0}", "compute.recompute_activations=true"]
)
def test_a_recipe_whose_operations_are_not_counted_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match="are not counted"):
        operations_of_step(params(f"train.{change}"), "denoise")


def test_as_many_steps_are_made_as_the_operations_allow() -> None:
    assert speedrun.steps_within(1.0, 0.3) == 3
    assert speedrun.steps_within(0.3, 0.3) == 1
    with pytest.raises(ValueError, match=r"--tflop 0\.2: one step takes 0\.3 TFLOP"):
        speedrun.steps_within(0.2, 0.3)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the log and the trial, where the benchmark has its images."""
    monkeypatch.setattr(Benchmark, "absent", lambda benchmark: None)
    monkeypatch.setattr(speedrun, "LOG", tmp_path / "speedrun.jsonl")
    return tmp_path


def trial(folder: Path, *options: str) -> None:
    names = ["--task", "denoise", "--dataset", "bsds500", "--benchmark", "CBSD68 σ 25", "--change", "none"]
    speedrun.main([*names, "--tflop", "0.1", "--folder", str(folder / "trial"), *options])


def stages(monkeypatch: pytest.MonkeyPatch, fails: str = "", status: int = 1, metrics: str = "") -> list[str]:
    """Have the stages note their names, and write `metrics`, instead of running."""
    ran: list[str] = []

    def stage(command: list[str], folder: Path, _: object) -> None:
        ran.append(command[2])
        if command[2] == fails:
            raise subprocess.CalledProcessError(status, command)
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "metrics.json").write_text(metrics)

    monkeypatch.setattr(speedrun, "run_stage", stage)
    monkeypatch.setattr(speedrun, "commit", lambda: "abc")  # asks git, in a process
    return ran


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "speedrun.jsonl").read_text().splitlines()]


def test_a_trial_runs_the_stages_with_its_seed_and_steps(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {kind: {"psnr": psnr} for kind, psnr in (("degraded", 20.0), ("baseline", 26.0), ("restored", 28.1234))}
    ran = stages(monkeypatch, metrics=json.dumps({"benchmarks": {"CBSD68 σ 25": numbers}, "not_measured": {}}))
    trial(images, "--seed", "7")
    assert ran == ["pipeline.prepare", "pipeline.synthesize", "pipeline.train", "pipeline.evaluate"]
    found = read_params(images / "trial" / "params.yaml")
    assert (found["seed"], found["denoise"]["train"]["num_steps"]) == (7, 5)
    (row,) = rows(images)
    assert (row["seed"], row["num_steps"], row["restored"], row["commit"]) == (7, 5, 28.123, "abc")
    assert row["tflop"] == pytest.approx(5 * 0.0183, abs=1e-3)


@pytest.mark.parametrize(
    ("fails", "metrics", "reason"),
    [
        ("pipeline.train", "", "train exited with 1"),
        ("", "not JSON", "JSONDecodeError: "),
        ("", '{"benchmarks": {}, "not_measured": {"CBSD68 σ 25": {"reason": "seen"}}}', "was not measured: seen"),
    ],
)
def test_a_trial_that_fails_is_a_row(
    images: Path, monkeypatch: pytest.MonkeyPatch, fails: str, metrics: str, reason: str
) -> None:
    stages(monkeypatch, fails=fails, metrics=metrics)
    with pytest.raises(ValueError, match="the trial failed"):
        trial(images)
    assert reason in rows(images)[0]["failed"]


@pytest.mark.parametrize(
    "signals",
    [
        "os.kill(os.getppid(), signal.SIGTERM)",
        "os.kill(os.getppid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)",  # Ctrl-C in a terminal
        "os.kill(os.getppid(), signal.SIGINT); time.sleep(0.5); os.kill(os.getppid(), signal.SIGINT)",
    ],
)
@pytest.mark.parametrize("status", [0, 130])
def test_a_stage_saves_its_work_before_the_trial_ends(tmp_path: Path, signals: str, status: int) -> None:
    stage = (
        "import os, pathlib, signal, sys, time\n"
        f"def save(*_): time.sleep(0.2); pathlib.Path('saved').touch(); sys.exit({status})\n"
        "for number in signal.SIGTERM, signal.SIGINT: signal.signal(number, save)\n"
        f"{signals}\n"
        "time.sleep(60)\n"
    )
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        speedrun.run_stage([sys.executable, "-c", stage], tmp_path, os.environ)
    assert (tmp_path / "saved").exists()
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_a_stage_that_fails_is_an_error(tmp_path: Path) -> None:
    speedrun.run_stage([sys.executable, "-c", ""], tmp_path, os.environ)
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        speedrun.run_stage([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, os.environ)


@pytest.mark.parametrize("status", [130, -15])
def test_an_interrupted_trial_is_no_row(images: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    stages(monkeypatch, fails="pipeline.train", status=status)
    with pytest.raises(KeyboardInterrupt):
        trial(images)
    assert not (images / "speedrun.jsonl").exists()
