"""The trials of a search in MLflow: runs below the run of the search, begun when their first report gets through.

A tracking server that goes away stops no trial: what it missed is kept, and sent with the next report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from pipeline.tracking import runs

PARENT = "mlflow.parentRunId"


class Trial:
    """One trial's run: new, or the one that was begun before the search was killed."""

    def __init__(self, experiment: str, parent: str, name: str, values: Mapping[str, Any]) -> None:
        self.experiment, self.name, self.values = experiment, name, values
        self.key = {PARENT: parent, "trial": name}
        self._run: runs.Run | None = None
        self._unsent: list[tuple[Mapping[str, float], int]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`, now or when the server answers."""
        self._unsent.append((metrics, step))
        try:
            self._run = self._run or self._begun()
        except MlflowException:
            return
        for line in self._unsent:
            self._run.log(*line)
        self._unsent.clear()

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """Close the run as FINISHED, KILLED or FAILED; a server that does not answer is left alone."""
        with contextlib.suppress(MlflowException):
            self._run = self._run or self._begun()
            self._run.tag(tags)
            if self._run.send():
                mlflow.MlflowClient().set_terminated(self._run.id, status)

    def _begun(self) -> runs.Run:
        client = mlflow.MlflowClient()
        found = runs.find(self.experiment, self.key)
        if found is not None:
            client.update_run(found, "RUNNING")
            return runs.Run(found)
        experiment = client.get_experiment_by_name(self.experiment).experiment_id
        run = client.create_run(experiment, run_name=self.name, tags=self.key).info.run_id
        params = [mlflow.entities.Param(name, str(value)) for name, value in self.values.items()]
        client.log_batch(run, params=params)
        return runs.Run(run)
