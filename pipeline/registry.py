"""Registered models in MLflow: versions of a task's network, and the alias `champion` on the best of them.

An alias keeps no history in MLflow, so each version says in its tags when and why it became the champion, and whom it
followed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

PROJECT = Path(__file__).parents[1]
CHAMPION = "champion"
SERVED_CODE = Path(__file__).with_name("served.py")
REQUIREMENTS = ["torch>=2.13", "numpy>=2", "opencv-python>=4.10", "pillow>=11", "safetensors>=0.5", "jaxtyping>=0.3"]


@dataclass(frozen=True)
class Version:
    """One registered version of a task's network."""

    task: str
    number: int
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """Return where it can be pulled from."""
        return f"models:/{self.task}/{self.number}"


def champion(task: str) -> Version | None:
    """Return the version that bears the alias, None if there is none."""
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(task, CHAMPION)
    except MlflowException:
        return None
    return Version(task, int(found.version), found.tags)


def registered(task: str, content: str) -> Version | None:
    """Return the version whose model folder has the digest `content`, None if there is none."""
    for found in mlflow.MlflowClient().search_model_versions(f"name = '{task}'"):
        if found.tags.get("content") == content and found.status == "READY":
            return Version(task, int(found.version), found.tags)
    return None


def register(task: str, folder: Path, run_id: str, tags: Mapping[str, str]) -> Version:
    """Store the model folder with the code that runs it, no pickle, as a new version with `tags`."""
    with mlflow.start_run(run_id=run_id):
        stored = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_CODE),
            code_paths=[str(PROJECT / "dgunet")],
            artifacts={"model": str(folder)},
            signature=_signature(),
            pip_requirements=REQUIREMENTS,
        )
    made = mlflow.register_model(stored.model_uri, task, tags=dict(tags))
    return Version(task, int(made.version), dict(tags))


def crown(version: Version, reason: str) -> None:
    """Move the alias to `version`, and write down why."""
    client, previous = mlflow.MlflowClient(), champion(version.task)
    record = {
        "champion_since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "champion_because": reason,
        "champion_after": str(previous.number) if previous else "none",
    }
    for name, value in record.items():
        client.set_model_version_tag(version.task, str(version.number), name, value)
    client.set_registered_model_alias(version.task, CHAMPION, str(version.number))


def _signature() -> ModelSignature:
    images = Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, -1))])
    return ModelSignature(inputs=images, outputs=images)
