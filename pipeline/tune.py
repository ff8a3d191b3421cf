"""Searches for better values of a task's recipe on the val split and proposes them; `make apply` writes them."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cluster.checkpoints import write_origin
from pipeline.cluster.run_lock import hold_run_lock
from pipeline.cluster.session import session
from pipeline.config.params import load_section, load_task_section
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.fingerprint import fingerprint
from pipeline.runtime.provenance import commit
from pipeline.shards.format import INDEX, checksum, read_index
from pipeline.tracking import runs
from pipeline.tracking.trials import TrialRun
from pipeline.training.job import TrainingJob
from pipeline.training.settings import Train
from pipeline.tuning import report, space
from pipeline.tuning import settings as tuning_settings
from pipeline.tuning.search import FAILURE, METRIC, STEP, Search, forget_trials, search
from pipeline.tuning.trial import Trial

LOGGED = ("loss", "learning_rate", METRIC, "skipped_steps", "images_per_second")
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


@dataclass(frozen=True)
class TrialJobs:
    """Makes the training job of a trial: the task's recipe with the trial's values."""

    job: TrainingJob

    def __call__(self, values: Mapping[str, Any]) -> TrainingJob:
        """Return the training job of a trial."""
        return replace(self.job, recipe=space.changed(self.job.recipe, values))


def main() -> None:
    """Search better values for one task's recipe."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tune", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--shards", required=True, type=Path, help="folder with train/ and val/")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder to write the table, the figure and the proposal to"
    )
    args = parser.parse_args()
    recipe = load_task_section(args.task, "train", Train)
    settings, seed = load_section("tune", tuning_settings.Tune), load_section("seed", int)
    space.check(settings, recipe, args.task)
    data = {split: checksum(args.shards / split / INDEX) for split in ("train", "val")}
    indices = {split: read_index(args.shards / split) for split in ("train", "val")}
    jobs = TrialJobs(
        TrainingJob(recipe, int(indices["train"].recipe["channels"]), args.shards.resolve(), indices, seed)
    )
    name = f"tune-{args.task}-{fingerprint('train', settings.model_dump(), recipe.model_dump(), data, seed)}"
    problem = Search(name, settings, recipe.num_steps, seed, jobs, first=space.current(recipe, settings.search_space))
    params = {"tune": settings.model_dump(), "train": recipe.model_dump(), "seed": seed}

    with (
        hold_run_lock(name),
        session(dashboard=True) as dashboard,
        runs.run(args.task, name, {"fingerprint": name}, params, system_metrics=False) as run,
    ):
        run.tag({"commit": commit(), "data": data["train"]})
        write_origin(name, commit(), {shard.sha256 for index in indices.values() for shard in index.shards})
        print(f"tune {args.task}: {run.places(dashboard)}", file=sys.stderr, flush=True)
        progress = TrialProgress(args.task, problem, run.id)
        try:
            trials = search(problem, progress.add_report)
        except BaseException:
            progress.mark_killed()
            raise
        progress.close(trials)
        report.write(args.out, args.task, name, problem.first, trials)
        run.log_files(args.out, "tune")
        if best := report.best(trials):
            run.log({METRIC: best.best_psnr}, best.number)
            forget_trials(name, trials)
    print(report.table(trials))
    if not best:
        raise ValueError(
            f"none of {len(trials)} trials has a result; error of the first: {trials[0].failure or 'none'}"
        )
    print(f"\nmake apply RECIPE={args.out / report.PROPOSAL}    shows the changes and asks before it writes")


class TrialProgress:
    """Handles each report of a trial: prints a line and logs to the trial's MLflow run."""

    def __init__(self, task: str, problem: Search, parent: str) -> None:
        self.task, self.problem, self.parent = task, problem, parent
        self.runs: dict[str, TrialRun] = {}
        self.best, self.best_number, self.started = -math.inf, 0, time.monotonic()

    def add_report(self, number: int, trial: str, values: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Print a report and log it.

        Args:
            number: the trial's number from 1.
            trial: its id.
            values: the values as they were sampled, before rounding.
            metrics: the reported metrics.
        """
        if trial not in self.runs:
            tried = space.rounded(self.problem.settings.search_space, values)
            self.runs[trial] = TrialRun(self.task, self.parent, f"{self.problem.name}-{trial}", tried)
        known = {name: metrics[name] for name in LOGGED if math.isfinite(metrics.get(name, math.nan))}
        self.runs[trial].log(known, int(metrics[STEP]))
        if metrics[METRIC] > self.best:
            self.best, self.best_number = metrics[METRIC], number
        result = "diverged" if FAILURE in metrics else f"val {metrics[METRIC]:.2f} dB"
        print(
            f"tune {self.task}: trial {number}/{self.problem.settings.num_trials} step {metrics[STEP]}/"
            f"{self.problem.num_steps}, {result}, best {self.best:.2f} dB (trial {self.best_number}), "
            f"{(time.monotonic() - self.started) / 60:.1f} of {self.problem.settings.time_budget_minutes:g} minutes",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def close(self, trials: Sequence[Trial]) -> None:
        """End the MLflow runs of all trials with their outcomes."""
        for trial in trials:
            name = f"{self.problem.name}-{trial.id}"
            run = self.runs.get(trial.id) or TrialRun(self.task, self.parent, name, trial.values)
            run.end(STATUS[trial.outcome], {"outcome": trial.outcome, "best_psnr": f"{trial.best_psnr:.4f}"})

    def mark_killed(self) -> None:
        """End the runs of all trials as killed."""
        for run in self.runs.values():
            run.end("KILLED", {})


if __name__ == "__main__":
    run_command(main)
