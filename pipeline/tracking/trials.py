"""The trials of a search in MLflow: child runs of the search's run.

A tracking server that does not answer does not stop a trial: metrics are kept and sent with the next report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from pipeline.tracking import runs

PARENT = "mlflow.parentRunId"


class TrialRun:
    """The run of one trial. The first report creates it; a search that was killed and continued reuses it.

    Args:
        experiment: name of the experiment; it exists.
        parent: id of the search's run.
        name: name of the trial; it stays the same when the search is continued.
        values: the sampled values of the trial, logged as parameters.
    """

    def __init__(self, experiment: str, parent: str, name: str, values: Mapping[str, Any]) -> None:
        self.experiment, self.name, self.values = experiment, name, values
        self.key = {PARENT: parent, "trial": name}
        self._run: runs.Run | None = None
        self._unsent: list[tuple[Mapping[str, float], int]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`, now or when the server answers."""
        self._unsent.append((metrics, step))
        with contextlib.suppress(MlflowException):
            self._log_unsent()

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """Close the run as FINISHED, KILLED or FAILED; do nothing if the server does not answer."""
        with contextlib.suppress(MlflowException):
            run = self._log_unsent()
            run.tag(tags)
            if run.send():
                mlflow.MlflowClient().set_terminated(run.id, status)

    def _log_unsent(self) -> runs.Run:
        self._run = self._run or self._find_or_create_run()
        for metrics, step in self._unsent:
            self._run.log(metrics, step)
        self._unsent.clear()
        return self._run

    def _find_or_create_run(self) -> runs.Run:
        client = mlflow.MlflowClient()
        found = runs.find_run(self.experiment, self.key)
        if found is not None:
            client.update_run(found, "RUNNING")
            return runs.Run(found)
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        run = client.create_run(experiment, run_name=self.name, tags=self.key).info.run_id
        params = [mlflow.entities.Param(name, str(value)) for name, value in self.values.items()]
        client.log_batch(run, params=params)
        return runs.Run(run)
