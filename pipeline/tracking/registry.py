"""Registered models in MLflow: versions of a task's network, and the alias `champion` on the best of them.

An alias keeps no history in MLflow, so each version says in its tags when and why it became the champion, and whom it
followed.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.runtime.files import PROJECT

CHAMPION = "champion"
CONTENT = "content"  # tag: digest of the model folder
SERVED_CODE = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = ["torch>=2.13", "numpy>=2", "opencv-python>=4.10", "pillow>=11", "safetensors>=0.5", "jaxtyping>=0.3"]
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's words for no such model, no such alias


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
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise
    return Version(task, int(found.version), found.tags)


def registered(task: str, content: str) -> Version | None:
    """Return the first version whose model folder has the digest `content`, None if there is none."""
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{task}'")
    same = [found for found in versions if found.tags.get(CONTENT) == content and found.status == "READY"]
    first = min(same, key=lambda found: int(found.version), default=None)
    return Version(task, int(first.version), first.tags) if first else None


def register(task: str, folder: Path, content: str, tags: Mapping[str, str]) -> Version:
    """Store the model folder with the code that runs it, no pickle, as a new version made by the active run."""
    client, tags = mlflow.MlflowClient(), {CONTENT: content, **tags}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example was not provided")  # the signature is given
        stored = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_CODE),
            code_paths=[str(PROJECT / "dgunet")],
            artifacts={"model": str(folder)},
            signature=_signature(),
            pip_requirements=REQUIREMENTS,
        )
    try:
        client.create_registered_model(task)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        task, stored.model_uri, run_id=stored.run_id, tags=tags, model_id=stored.model_id
    )
    return Version(task, int(made.version), tags)


def describe(version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of `version`."""
    for name, value in tags.items():
        mlflow.MlflowClient().set_model_version_tag(version.task, str(version.number), name, value)


def set_champion(version: Version, reason: str, after: Version | None) -> None:
    """Move the alias to `version`, and write down why and whom it follows."""
    describe(
        version,
        {
            "champion_since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "champion_because": reason,
            "champion_after": str(after.number) if after else "none",
        },
    )
    mlflow.MlflowClient().set_registered_model_alias(version.task, CHAMPION, str(version.number))


def _signature() -> ModelSignature:
    images = Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, -1))])
    return ModelSignature(inputs=images, outputs=images)
