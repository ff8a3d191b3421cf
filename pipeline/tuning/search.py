"""Hyper-parameter search with Ray Tune; each trial is a training run on the cluster.

Optuna's sampler proposes values, asynchronous successive halving (ASHA; Li et al., MLSys 2020) stops trials that
are worse than others at the same step. The reports of all trials are stored in DGUNET_STORAGE: a search that was killed
continues under its name, and its trials continue from their last checkpoints.

Population based training is not offered: it exchanges checkpoints through Tune, which does not store the checkpoints
here. Ray's dashboard must run: Ray Train releases the resources of a stopped trial through it; without it the search
never ends.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from pipeline.cluster import checkpoints, errors, resources, training_run
from pipeline.cluster.channel import RunListener
from pipeline.cluster.ray_internals import refresh_tuner, without_lines_of_nodes
from pipeline.runtime.environment import read_environment, restored_environ
from pipeline.training import loop, trainer
from pipeline.training.context import WorkerContext
from pipeline.tuning.settings import Choice, Dimension, Integer, LogUniform, Tune
from pipeline.tuning.space import rounded
from pipeline.tuning.trial import Trial

METRIC, STEP, FAILURE, SECONDS = "val_psnr", "step", "failure", "time_total_s"
WORST_PSNR = 0.0  # dB, of a white image where the clean one is black; reported for a recipe that diverges
TUNE_DEFAULTS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `_saved_on_stop` handles Ctrl-C and SIGTERM
    "RAY_AIR_NEW_OUTPUT": "0",  # the listener prints instead
}
Values = Mapping[str, Any]
Reports = dict[str, list[dict[str, Any]]]  # by the id of the trial
Listener = Callable[[int, str, Values, Mapping[str, float]], None]
"""Called at each report with the trial's number from 1, its id, its values and its metrics."""


@dataclass(frozen=True)
class Search:
    """A search: `train_fn_of` turns values into the function that each worker of a trial runs.

    first: values of the first trial; None to sample them as well.
    """

    name: str
    settings: Tune
    num_steps: int
    seed: int
    train_fn_of: Callable[[Values], Callable[[WorkerContext], None]]
    first: Values | None


def search(problem: Search, listener: Listener) -> list[Trial]:
    """Run the search, or resume the one of the same name; return its trials in the order of their start.

    On SIGTERM and Ctrl-C the state is saved, and cluster.errors.Interrupted is raised.
    """
    trial_resources = resources_of_trial(problem.settings)
    at_once = trials_at_once(trial_resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    # The driver of a trial only waits. If it reserved a CPU, drivers would hold the CPUs that their own workers need.
    waiting = tune.PlacementGroupFactory([{"memory": 1}])
    trainable = tune.with_resources(TrialRunner(problem.name, trial_resources, problem), waiting)
    trial_reports = TrialReports(listener)
    folder = checkpoints.run_dir(problem.name)
    if tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable, resume_errored=True)
        scheduler = refresh_tuner(tuner, max_concurrent_trials=at_once, callbacks=[trial_reports])
        scheduler.earlier = trial_reports.reports
    else:
        tuner = _tuner(problem, trainable, at_once, trial_reports)
    with restored_environ(), without_lines_of_nodes(), _saved_on_stop() as stopped, warnings.catch_warnings():
        for name, value in TUNE_DEFAULTS.items():
            os.environ.setdefault(name, value)
        # A restarted trial counts its reports from 1 again; Optuna's sampler does not use the number.
        warnings.filterwarnings("ignore", message="The reported value is ignored", category=UserWarning)
        grid = tuner.fit()
    if stopped:
        raise errors.Interrupted
    return sorted((_trial(result, trial_reports.reports, problem) for result in grid), key=lambda trial: trial.number)


def forget_trials(name: str, trials: list[Trial]) -> None:
    """Delete the checkpoints of the trials of the search `name`; their reports stay."""
    for trial in trials:
        with suppress(FileNotFoundError):  # it stored no checkpoint, or they are deleted already
            checkpoints.delete_checkpoints(f"{name}-{trial.id}")


def resources_of_trial(settings: Tune) -> resources.WorkerResources:
    """Return the resources of one trial: one worker per whole GPU, else one worker."""
    count = max(1, math.floor(settings.gpus_per_trial))
    return resources.WorkerResources(count, settings.cpus_per_trial / count, settings.gpus_per_trial / count)


def trials_at_once(trial_resources: resources.WorkerResources, nodes: list[dict[str, float]]) -> int:
    """Return how many trials fit on `nodes` at once; ValueError if none fits.

    If more trials ran, each would hold a part of its resources and wait for the rest.

    Args:
        trial_resources: what one trial uses.
        nodes: the resources of each node, by name.
    """
    capacity = resources.num_workers_that_fit(trial_resources, nodes)
    if capacity < trial_resources.num_workers:
        has = ", ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
        raise ValueError(
            f"a trial needs {trial_resources.num_workers} workers of {trial_resources.cpus_per_worker:g} CPUs and "
            f"{trial_resources.gpus_per_worker:g} GPUs each, but the cluster has {has}: lower "
            "tune.cpus_per_trial or tune.gpus_per_trial"
        )
    return capacity // trial_resources.num_workers


def _tuner(problem: Search, trainable: Any, at_once: int, trial_reports: TrialReports) -> tune.Tuner:
    settings = problem.settings
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = OptunaSearch(
        {name: _distribution(dimension) for name, dimension in settings.search_space.items()},
        metric=METRIC, mode="max", sampler=optuna.samplers.TPESampler(seed=problem.seed),
        points_to_evaluate=[dict(problem.first)] if problem.first else None,
    )  # fmt: skip
    # ASHA compares steps, not numbers of reports: a restarted trial counts its reports from 1.
    scheduler = ResumableASHA(
        time_attr=STEP, max_t=problem.num_steps, grace_period=settings.grace_steps,
        reduction_factor=settings.reduction_factor, earlier=trial_reports.reports,
    )  # fmt: skip
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", num_samples=settings.num_trials, search_alg=sampler, scheduler=scheduler,
            max_concurrent_trials=at_once, time_budget_s=settings.time_budget_minutes * 60,
            trial_dirname_creator=_folder,
        ),
        run_config=tune.RunConfig(
            name=problem.name, storage_path=read_environment().storage, verbose=0, callbacks=[trial_reports],
            failure_config=tune.FailureConfig(max_failures=read_environment().max_failures),
        ),
    )  # fmt: skip


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if isinstance(dimension, Integer):
        return optuna.distributions.IntDistribution(dimension.low, dimension.high)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))


class TrialRunner:
    """The function that Tune runs for each trial: a training run on the cluster with its own name."""

    def __init__(self, name: str, trial_resources: resources.WorkerResources, problem: Search) -> None:
        self.__name__ = "trial"
        self.name, self.trial_resources, self.problem = name, trial_resources, problem

    def __call__(self, sampled: Values) -> None:
        """Train with the sampled values and report each validation to Tune."""
        reported_steps: list[float] = []

        def report(metrics: Mapping[str, float]) -> None:
            reported_steps.append(metrics[STEP])
            tune.report(dict(metrics))

        train_fn = self.problem.train_fn_of(rounded(self.problem.settings.search_space, sampled))
        run = f"{self.name}-{tune.get_context().get_trial_id()}"
        with tempfile.TemporaryDirectory() as folder:
            try:
                training_run.fit(
                    train_fn, name=run, into=Path(folder), listener=RunListener(report), resources=self.trial_resources
                )
            except loop.TrainingFailed as error:
                tune.report({STEP: self.problem.num_steps, METRIC: WORST_PSNR, FAILURE: str(error)})
                return
            history = trainer.history(Path(folder))
        if history[-1][STEP] not in reported_steps:  # the search was killed between the last step and its report
            for line in history:
                tune.report(dict(line))


class ResumableASHA(ASHAScheduler):  # type: ignore[misc]
    """ASHA that receives all earlier reports again in a resumed search, because Tune does not store them."""

    def __init__(self, *, earlier: Reports, **settings: Any) -> None:
        super().__init__(**settings)
        self.earlier = earlier

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "earlier": {}}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial, and in a resumed search its earlier reports."""
        super().on_trial_add(tune_controller, trial)
        for report in self.earlier.get(trial.trial_id, ()):
            super().on_trial_result(tune_controller, trial, report)


class TrialReports(tune.Callback):  # type: ignore[misc]
    """Stores each report and calls the listener. Tune saves the reports with the search, but not the listener."""

    def __init__(self, listener: Listener | None) -> None:
        self.listener = listener
        self.reports: Reports = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"listener": None, "reports": {}}

    def get_state(self) -> Reports:
        """Return the reports, which Tune saves with the search."""
        return self.reports

    def set_state(self, state: Reports) -> None:
        """Restore the reports that Tune saved."""
        self.reports.update(state)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Store a report and call the listener."""
        kept = {name: result[name] for name in (STEP, METRIC, FAILURE, SECONDS) if name in result}
        self.reports.setdefault(trial.trial_id, []).append(kept)
        if self.listener is not None:
            number, _, name = _folder(trial).partition("-")
            self.listener(int(number), name, trial.config, result)


def _folder(trial: Any) -> str:
    """Return a trial's folder name: its number, from 1, and its id. The order of Tune's lists changes on resuming."""
    return f"{trial.experiment_tag.partition('_')[0]}-{trial.trial_id}"


def _trial(result: Any, reports: Reports, problem: Search) -> Trial:
    number, _, name = Path(result.path).name.partition("-")
    of_trial = reports.get(name, [])
    failure = next((report[FAILURE] for report in of_trial if FAILURE in report), "")
    measured = [report for report in of_trial if FAILURE not in report]
    steps = max((int(report[STEP]) for report in measured), default=0)
    finished = "finished" if steps >= problem.num_steps else "stopped"
    return Trial(
        number=int(number),
        id=name,
        values=rounded(problem.settings.search_space, result.config),
        outcome="diverged" if failure else "failed" if result.error else finished,
        best_psnr=max((report[METRIC] for report in measured), default=math.nan),
        steps=steps,
        seconds=max((report[SECONDS] for report in of_trial), default=0.0),
        failure=failure or str(result.error or ""),
    )


@contextmanager
def _saved_on_stop() -> Iterator[list[int]]:
    """Make Tune save its state and stop on the first SIGTERM or Ctrl-C; the second raises KeyboardInterrupt.

    Yields the list of the received signals.
    """
    signals: list[int] = []

    def stop_search(number: int, frame: Any) -> None:
        save_and_stop = signal.getsignal(signal.SIGUSR1)
        if signals or not callable(save_and_stop):
            raise KeyboardInterrupt
        signals.append(number)
        save_and_stop(signal.SIGUSR1, frame)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in (*numbers, signal.SIGUSR1)}
    for number in numbers:
        signal.signal(number, stop_search)
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
