"""A search proposes better values, resumes where it was killed, and does not change params.yaml itself."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from factories import PROJECT, RECIPE, recipe, small_params
from processes import until

from pipeline.cluster.resources import WorkerResources
from pipeline.config.params import ParamsError, validated
from pipeline.shards.format import Index, Pair, write_index, write_shard
from pipeline.tuning import report, space
from pipeline.tuning import settings as tuning_settings
from pipeline.tuning.search import ResumableASHA, resources_of_trial, trials_at_once
from pipeline.tuning.trial import Trial

RATE = {"kind": "log_uniform", "low": 1e-6, "high": 1e-2}
TUNE: dict[str, Any] = {
    "num_trials": 4, "grace_steps": 10, "reduction_factor": 2, "time_budget_minutes": 60.0, "cpus_per_trial": 1.0,
    "gpus_per_trial": 0.0, "search_space": {"learning_rate": RATE},
}  # fmt: skip


def settings(**changes: Any) -> tuning_settings.Tune:
    return validated({**TUNE, **changes}, tuning_settings.Tune, "tune")


def trial(number: int, rate: float, psnr: float, outcome: str = "finished") -> Trial:
    return Trial(number, f"id{number}", {"learning_rate": rate, "network.width": 8}, outcome, psnr, 40, 1.0, "")


# ---- the space


@pytest.mark.parametrize(
    ("dimensions", "says"),
    [
        ({"learning_rat": RATE}, r"search_space\.learning_rat: .* no such value"),
        ({"network": RATE}, r"search_space\.network: .* no such value"),
        ({"network.depth": RATE}, r"search_space\.network\.depth: .* no such value"),
        ({"num_steps": {"kind": "integer", "low": 1, "high": 2}}, "cannot be compared"),
        ({"learning_rate": {**RATE, "low": 0.1}}, r"low \(0\.1\) must be smaller than high"),
        ({"learning_rate": {**RATE, "low": 0.0}}, "greater than 0"),
        ({"learning_rate": {"kind": "normal", "mean": 0}}, "log_uniform"),
        ({"loss": {"kind": "choice", "values": ["charbonnier"]}}, "at least 2"),
        ({}, "at least 1"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_with_its_place(dimensions: dict[str, Any], says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        settings(search_space=dimensions)


def test_part_of_a_second_gpu_is_refused() -> None:
    with pytest.raises(ParamsError, match="gpus_per_trial"):
        settings(gpus_per_trial=1.5)


def test_values_go_to_their_places_and_the_rest_stays() -> None:
    changed = space.changed(recipe(), {"learning_rate": 1e-3, "network.width": 12})
    assert changed == recipe(learning_rate=1e-3, network={**RECIPE["network"], "width": 12})


def test_a_space_with_an_invalid_corner_is_refused_before_anything_is_trained() -> None:
    wide = settings(grace_steps=4, search_space={"learning_rate": RATE, "final_learning_rate": {**RATE, "low": 1e-8}})
    with pytest.raises(ParamsError, match=r"learning_rate=1e-06, final_learning_rate=0\.01 .*must not exceed"):
        space.check(wide, recipe(), "denoise")
    kind = settings(grace_steps=4, search_space={"loss": {"kind": "choice", "values": ["charbonnier", "l1"]}})
    with pytest.raises(ParamsError, match="loss=l1"):
        space.check(kind, recipe(), "denoise")
    space.check(settings(grace_steps=4), recipe(), "denoise")


def test_grace_beyond_the_training_is_refused() -> None:
    with pytest.raises(ParamsError, match="grace_steps"):
        space.check(settings(grace_steps=9), recipe(num_steps=8), "denoise")


def test_tried_values_have_three_digits_and_stay_inside() -> None:
    uniform, integer = {"kind": "uniform", "low": -1.0, "high": 1.0}, {"kind": "integer", "low": 8, "high": 1000}
    low = {**RATE, "low": 0.00123456}
    dimensions = settings(
        search_space={"learning_rate": low, "weight_decay": uniform, "network.width": integer}
    ).search_space
    sampled = {"learning_rate": 0.001234567, "weight_decay": 0.123456, "network.width": 999}
    assert space.rounded(dimensions, sampled) == {
        "learning_rate": 0.00123456, "weight_decay": 0.123, "network.width": 999,
    }  # fmt: skip


def test_the_present_values_are_tried_first_only_where_the_space_holds_them() -> None:
    assert space.current(recipe(learning_rate=1e-6), settings().search_space) == {"learning_rate": 1e-6}
    assert space.current(recipe(learning_rate=0.1), settings().search_space) is None
    losses = settings(search_space={"loss": {"kind": "choice", "values": ["charbonnier", "mse_clamped"]}}).search_space
    assert space.current(recipe(), losses) == {"loss": "charbonnier"}


# ---- the cluster


def test_as_many_trials_run_as_fit_on_the_nodes() -> None:
    laptop = [{"CPU": 2.0}]
    assert trials_at_once(WorkerResources(1, 1.0, 0.0), laptop) == 2
    assert trials_at_once(WorkerResources(1, 0.1, 0.0), laptop) == 20
    nodes = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 6.0, "GPU": 8.0}, {"CPU": 64.0}]
    assert (
        trials_at_once(WorkerResources(1, 4.0, 1.0), nodes) == 8 + 1
    )  # the second has CPUs for one only, the third no GPU
    assert trials_at_once(WorkerResources(2, 4.0, 1.0), nodes) == 4
    assert trials_at_once(WorkerResources(1, 2.0, 0.5), nodes) == 16 + 3


def test_a_trial_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the cluster has 2 CPUs, 0 GPUs: lower tune\.cpus_per_trial"):
        trials_at_once(WorkerResources(1, 1.0, 1.0), [{"CPU": 2.0}])


def test_a_trial_has_a_worker_per_whole_gpu_and_shares_one_otherwise() -> None:
    assert resources_of_trial(settings()) == WorkerResources(1, 1.0, 0.0)
    assert resources_of_trial(settings(gpus_per_trial=0.25)) == WorkerResources(1, 1.0, 0.25)
    assert resources_of_trial(settings(gpus_per_trial=2.0, cpus_per_trial=8.0)) == WorkerResources(2, 4.0, 1.0)


class Known:
    """The attribute of a trial that the scheduler reads."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def test_a_resumed_scheduler_knows_the_reports_of_earlier_trials() -> None:
    def reports(psnr: float) -> list[dict[str, Any]]:
        return [{"step": 10, "val_psnr": psnr}]

    def stops(earlier: dict[str, list[dict[str, Any]]]) -> bool:
        scheduler = ResumableASHA(
            time_attr="step", metric="val_psnr", mode="max", max_t=40, grace_period=10, reduction_factor=2,
            earlier=earlier,
        )  # fmt: skip
        for name in (*earlier, "late"):
            scheduler.on_trial_add(None, Known(name))
        return bool(scheduler.on_trial_result(None, Known("late"), reports(20.0)[0]) == "STOP")

    assert stops({"first": reports(30.0), "second": reports(29.0)})
    assert not stops({"first": reports(10.0), "second": reports(11.0)})
    assert not stops({})


# ---- the findings


def test_the_proposal_is_a_recipe_of_the_best_trial_that_says_what_it_was_compared_with(tmp_path: Path) -> None:
    trials = [trial(1, 1e-6, 20.0, "stopped"), trial(2, 7.1e-4, 25.5), trial(3, 1e-2, math.nan, "failed")]
    report.write(tmp_path, "denoise", "tune-denoise-0", trials[0].values, trials)
    text = (tmp_path / "proposal.yaml").read_text()
    assert yaml.safe_load(text) == {"denoise": {"train": {"learning_rate": 7.1e-4, "network": {"width": 8}}}}
    assert "25.50 dB" in text
    assert "The values of params.yaml (trial 1): 20.00 dB (stopped)" in text
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["1", "2", "3"]
    assert float(rows[1]["learning_rate"]) == 7.1e-4
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_without_a_result_proposes_nothing_not_even_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "proposal.yaml").write_text("derain: {}")
    failed = [trial(1, 1e-2, math.nan, "failed")]
    report.write(tmp_path, "denoise", "tune-denoise-0", None, failed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trials.csv", "tune.png"]
    assert report.best(failed) is None


def test_the_table_has_the_best_first_and_what_failed_last() -> None:
    done = [
        trial(1, 1e-6, math.nan, "failed"),
        trial(2, 1e-3, 20.0),
        trial(3, 1e-2, 25.0),
        trial(4, 1.0, 26.0, "diverged"),
    ]
    assert [line.split()[0] for line in report.table(done).split("\n")] == ["trial", "3", "2", "1", "4"]


def test_what_a_trial_reached_before_it_diverged_is_not_proposed(tmp_path: Path) -> None:
    trials = [trial(1, 1e-3, 20.0), trial(2, 1.0, 25.0, "diverged"), trial(3, 0.5, 24.0, "failed")]
    report.write(tmp_path, "denoise", "tune-denoise-0", None, trials)
    assert "trial 1 of 3" in (tmp_path / "proposal.yaml").read_text()


# ---- for real


def real(test: Any) -> Any:
    """Mark a test that searches with real Ray: about a minute and a half on two idle cores, many on busy ones."""
    for mark in (
        pytest.mark.timeout(1500),
        pytest.mark.slow,
        pytest.mark.cluster,
        pytest.mark.filterwarnings("ignore"),
    ):
        test = mark(test)
    return test


def smooth_pair(number: int) -> Pair:
    """Waves with noise of σ = 40 grey levels: something that can be learned in a few steps."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:48, :48] / 48
    waves = [127 + 100 * np.sin(6 * (rng.normal() * x + rng.normal() * y) + rng.normal()) for _ in range(3)]
    clean = np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8)
    noisy = np.clip(clean + rng.normal(0, 40, clean.shape), 0, 255).astype(np.uint8)
    return Pair(f"pair{number:04d}", clean, noisy, {"number": number})


class Checkout:
    """A folder with params.yaml and shards, where `python -m pipeline.tune` runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = {"degradation": {"kind": "gaussian_noise", "sigma": [40.0, 40.0], "per_channel": True}, "channels": 3}
        for split, numbers in (("train", range(24)), ("val", range(100, 104))):
            (folder / "shards" / split).mkdir(parents=True)
            entry = write_shard(folder / "shards" / split / "000000.tar", [smooth_pair(n) for n in numbers])
            write_index(folder / "shards" / split, Index({**made, "online": False, "seed": 1}, (entry,)))
        params = small_params()
        params["denoise"]["train"] = {
            **RECIPE, "num_steps": 40, "validate_every": 10, "learning_rate": 1e-6, "patch_size": 32, "batch_size": 8,
        }  # fmt: skip
        params["tune"] = TUNE
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        self.tracking = f"sqlite:///{folder}/mlflow.db"
        self.run_command: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DGUNET_"))}
        environment |= {
            "MLFLOW_TRACKING_URI": self.tracking, "DGUNET_STORAGE": str(self.folder / "runs"),
            "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "pipeline.tune", "--task", "denoise", "--shards", "shards", "--out", "out"]
        self.run_command = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return self.run_command

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / "out" / "trials.csv").read_text().splitlines()))

    def proposed(self) -> float:
        content = yaml.safe_load((self.folder / "out" / "proposal.yaml").read_text())
        return float(content["denoise"]["train"]["learning_rate"])

    def runs(self) -> list[Any]:
        client = mlflow.MlflowClient(self.tracking)
        return list(client.search_runs([client.get_experiment_by_name("denoise").experiment_id]))


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path)
    yield made
    if made.run_command is not None:
        with made.run_command:
            made.run_command.kill()


def finished(run_command: subprocess.Popen[str]) -> str:
    said, _ = run_command.communicate()
    assert run_command.returncode == 0, said
    return said


def reported_steps(said: str, number: int) -> list[int]:
    return [int(step) for step in re.findall(rf"trial {number}/4 step (\d+)/40", said)]


ANOTHER_SESSION = """
    import ray
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    print("up", flush=True)
    input()
"""


@pytest.fixture
def another_session() -> Iterator[None]:
    """The Ray session of another user on this machine."""
    command = [sys.executable, "-c", textwrap.dedent(ANOTHER_SESSION)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        until(lambda: other.stdout and other.stdout.readline().strip() == "up")
        yield
        other.communicate("\n")


@real
def test_a_search_beside_another_session_finds_a_better_learning_rate_than_a_bad_one(
    another_session: None, checkout: Checkout
) -> None:
    params = (checkout.folder / "params.yaml").read_text()
    said = finished(checkout.start())
    assert (checkout.folder / "params.yaml").read_text() == params
    rows = checkout.rows()
    psnr = {float(row["learning_rate"]): float(row["best_psnr"]) for row in rows}
    assert len(rows) == 4
    assert float(rows[0]["learning_rate"]) == 1e-6
    assert checkout.proposed() > 1e-5
    assert psnr[checkout.proposed()] == max(psnr.values()) > float(rows[0]["best_psnr"]) + 1
    assert "make apply RECIPE=out/proposal.yaml" in said
    runs = checkout.runs()
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {float(run.data.params["learning_rate"]) for run in trials} == set(psnr)
    assert all(run.info.status == "FINISHED" for run in runs)
    (kept,) = (
        checkout.folder / "runs"
    ).iterdir()  # the reports of the search; the checkpoints of its trials are deleted
    assert kept.name.startswith("tune-denoise-")


def is_saved(runs: Path, trial: int) -> bool:
    """Whether Tune saved the search after the start of the trial, and is not saving now; it does every 10 s."""
    states = list(runs.glob("tune-denoise-*/experiment_state*"))
    if not states or not re.search(rf'"experiment_tag\W+{trial}_', states[0].read_text()):
        return False
    changed = max(path.stat().st_mtime for path in states[0].parent.iterdir() if path.is_file())
    return time.time() - changed > 1


@real
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_search_that_was_interrupted_resumes_where_it_stopped(checkout: Checkout, how: signal.Signals) -> None:
    run_command = checkout.start()
    assert run_command.stdout is not None
    said = ""
    for line in run_command.stdout:
        said += line
        if "step 20/40" in line:
            break
    number = next(n for n in (1, 2) if 20 in reported_steps(said, n))
    until(lambda: is_saved(checkout.folder / "runs", number) or run_command.poll() is not None)
    assert run_command.poll() is None, "the search was over before it could be interrupted"
    run_command.send_signal(how)
    said += run_command.communicate()[0]
    assert not (checkout.folder / "out").exists()
    assert run_command.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), said

    again = finished(checkout.start())
    assert min(reported_steps(again, number), default=40) > 20, "the trial began from the start"
    rows = checkout.rows()
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4"]
    assert checkout.proposed() > 1e-5
    assert len(checkout.runs()) == 1 + 4, "a trial has two runs in MLflow"
