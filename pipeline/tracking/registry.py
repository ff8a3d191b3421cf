"""Registered models in MLflow: versions of a task's network, and the alias `champion` on the best of them.

MLflow keeps no history of an alias. Each version therefore says in its tags when and why it became the champion, and
which version was champion before.
"""

from __future__ import annotations

import datetime
import hashlib
import tomllib
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
from pipeline.runtime.fingerprint import code_digest

CHAMPION = "champion"
CONTENT, CODE = "content", "code"  # tags: digest of the model folder, digest of what is stored with it
CHAMPION_SINCE, CHAMPION_BECAUSE, CHAMPION_AFTER = "champion_since", "champion_because", "champion_after"  # tags
PYFUNC_MODEL = Path(__file__).with_name("pyfunc_model.py")
PACKAGE = PROJECT / "dgunet"
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's error codes for no such model or alias


@dataclass(frozen=True)
class Version:
    """One registered version of a task's network."""

    task: str
    number: int
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The address from which MLflow loads it."""
        return f"models:/{self.task}/{self.number}"

    @property
    def was_champion(self) -> bool:
        """Whether it is or was the champion."""
        return CHAMPION_SINCE in self.tags


def champion(task: str) -> Version | None:
    """Return the version that has the alias, None if there is none."""
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(task, CHAMPION)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise
    return Version(task, int(found.version), found.tags)


def registered(task: str, content: str) -> Version | None:
    """Return the first version of the model folder with the digest `content` and today's code, None if there is none.

    A version stores the code that restores with it. Where that code has changed since, the version does not count.
    """
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{task}'")
    tags = {CONTENT: content, CODE: stored_code_digest()}
    same = [found for found in versions if tags.items() <= found.tags.items() and found.status == "READY"]
    first = min(same, key=lambda found: int(found.version), default=None)
    return Version(task, int(first.version), first.tags) if first else None


def register(task: str, folder: Path, content: str, tags: Mapping[str, str]) -> Version:
    """Store a model folder, without pickle, as a new version that belongs to the active run.

    Args:
        task: name of the registered model.
        folder: model folder; stored with it are the package `dgunet`, the pyfunc model and the requirements.
        content: digest of `folder`.
        tags: further tags of the version.
    """
    client, tags = mlflow.MlflowClient(), {CONTENT: content, CODE: stored_code_digest(), **tags}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*input example was not provided")  # the signature stands in for it
        stored = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PYFUNC_MODEL),
            code_paths=[str(PACKAGE)],
            artifacts={"model": str(folder)},
            signature=_signature(),
            pip_requirements=requirements(),
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


def requirements() -> list[str]:
    """Return what the package `dgunet` needs, without extras: `dependencies` of pyproject.toml.

    The checkout's pyproject.toml belongs to the code that is stored; the installed package may be an older one.
    """
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def stored_code_digest() -> str:
    """Return the sha256 over all that a version stores beside the model folder: code and requirements."""
    code = code_digest([str(path.relative_to(PROJECT)) for path in (PACKAGE, PYFUNC_MODEL)])
    return hashlib.sha256("\n".join([code, *requirements()]).encode()).hexdigest()


def set_tags(version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    for name, value in tags.items():
        mlflow.MlflowClient().set_model_version_tag(version.task, str(version.number), name, value)


def set_champion(version: Version, reason: str, previous: Version | None) -> None:
    """Move the alias to `version`; its tags say when, why, and which version was champion before."""
    set_tags(
        version,
        {
            CHAMPION_SINCE: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            CHAMPION_BECAUSE: reason,
            CHAMPION_AFTER: str(previous.number) if previous else "none",
        },
    )
    mlflow.MlflowClient().set_registered_model_alias(version.task, CHAMPION, str(version.number))


def _signature() -> ModelSignature:
    images = Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1, -1))])
    return ModelSignature(inputs=images, outputs=images)
