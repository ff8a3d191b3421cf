"""Registered models in MLflow: versions of a task's network, and aliases on some of them.

    champion     the version to use
    previous     the former champion, for a rollback
    challenger   the newest version that did not become champion or waits for approval

MLflow keeps no history of an alias. Each version therefore says in its tags when and why it became the champion, and
which version was champion before.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

from pipeline.runtime.files import PROJECT
from pipeline.runtime.fingerprint import code_digest

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"  # aliases
CONTENT, CODE = "content", "code"  # tags: digest of the model folder, digest of what is stored with it
CHAMPION_SINCE, CHAMPION_BECAUSE, CHAMPION_AFTER = "champion_since", "champion_because", "champion_after"  # tags
CHAMPION_GAIN, NO_GAIN = "champion_gain", "none"  # tag: gain that made it champion, as JSON, or "none"
ROLLED_BACK = "rolled_back"  # tag: when a person rolled it back; such a version is not promoted automatically again
CLAIM = "promotion_by"  # tag of a registered model while a process moves its aliases
TEST_SCORES = "test_scores"  # folder of artifacts of a version's run: a file for each test set and protocol
SECONDS_TO_SETTLE = 2.0  # longer than a registry takes to set a tag
SECONDS_OF_A_CLAIM = 1800.0  # an older claim belongs to a process that died on another machine
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
    """Return the champion, None if there is none."""
    return with_alias(task, CHAMPION)


def with_alias(task: str, alias: str) -> Version | None:
    """Return the version that has the alias, None if there is none."""
    try:
        found = mlflow.MlflowClient().get_model_version_by_alias(task, alias)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise
    return Version(task, int(found.version), found.tags)


def version(task: str, number: int) -> Version:
    """Return a version. Raises ValueError, which lists the registered versions, if it is not registered."""
    client = mlflow.MlflowClient()
    try:
        found = client.get_model_version(task, str(number))
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        numbers = sorted(int(known.version) for known in client.search_model_versions(f"name = '{task}'"))
        known = ", ".join(map(str, numbers)) or "none"
        raise ValueError(f"{task} has no version {number} in the registry; available: {known}") from None
    return Version(task, int(found.version), found.tags)


def registered(task: str, content: str) -> Version | None:
    """Return the first version with the model folder of digest `content` and the current code, None if there is none.

    A version stores the code that restores with it. If that code has changed since, the version does not count.
    """
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{task}'")
    tags = {CONTENT: content, CODE: stored_code_digest()}
    same = [found for found in versions if tags.items() <= found.tags.items() and found.status == "READY"]
    first = min(same, key=lambda found: int(found.version), default=None)
    return Version(task, int(first.version), first.tags) if first else None


def register(task: str, folder: Path, content: str, tags: Mapping[str, str], card: str = "") -> Version:
    """Store a model folder, without pickle, as a new version that belongs to the active run.

    Args:
        task: name of the registered model.
        folder: model folder; stored with it are the package `dgunet`, the pyfunc model and the requirements.
        content: digest of `folder`.
        tags: further tags of the version.
        card: the model card in Markdown: the description of the version, and README.md in its model folder.
    """
    client, tags = mlflow.MlflowClient(), {CONTENT: content, CODE: stored_code_digest(), **tags}
    with _without_warnings_of_type_hints(), tempfile.TemporaryDirectory() as temporary:
        stored_folder = Path(shutil.copytree(folder, Path(temporary) / "model"))
        if card:
            (stored_folder / "README.md").write_text(card, encoding="utf-8")
        stored = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(PYFUNC_MODEL),
            code_paths=[str(PACKAGE)],
            artifacts={"model": str(stored_folder)},
            signature=_signature(),
            input_example=[_example()],
            pip_requirements=requirements(),
        )
    try:
        client.create_registered_model(task)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        task, stored.model_uri, run_id=stored.run_id, tags=tags, model_id=stored.model_id, description=card or None
    )
    return Version(task, int(made.version), tags)


@contextmanager
def _without_warnings_of_type_hints() -> Iterator[None]:
    """Suppress MLflow's warning about the type hint of the pyfunc model, which cannot be narrower.

    A warnings filter does not help: `log_model` puts its own filter before the existing ones.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_others(message: Warning | str, *arguments: Any, **named: Any) -> None:
            if "type hint" not in str(message):
                show(message, *arguments, **named)

        warnings.showwarning = show_others
        yield


def requirements() -> list[str]:
    """Return what the package `dgunet` needs, without extras: `dependencies` of pyproject.toml.

    The checkout's pyproject.toml belongs to the stored code; the installed package may be older.
    """
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def stored_code_digest() -> str:
    """Return the sha256 of what a version stores beside the model folder: code and requirements."""
    code = code_digest([str(path.relative_to(PROJECT)) for path in (PACKAGE, PYFUNC_MODEL)])
    return hashlib.sha256("\n".join([code, *requirements()]).encode()).hexdigest()


def set_tags(version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    for name, value in tags.items():
        mlflow.MlflowClient().set_model_version_tag(version.task, str(version.number), name, value)


def store_scores(version: Version, test: str, psnrs: Mapping[str, float]) -> None:
    """Store the PSNRs of a version on a test set with its run. Do nothing if they are stored, or if it has no run.

    Args:
        version: the version.
        test: test set, protocol and measuring code.
        psnrs: PSNR in dB of each image, by the key of the image.
    """
    run_id = _run_id(version)
    if run_id and scores(version, test) != psnrs:
        mlflow.MlflowClient().log_dict(run_id, {"test": test, "psnr": dict(psnrs)}, scores_file(test))


def scores(version: Version, test: str) -> dict[str, float] | None:
    """Return the PSNRs that `store_scores` stored for the same `test`, None if there are none."""
    run_id, file = _run_id(version), scores_file(test)
    files = [found.path for found in mlflow.MlflowClient().list_artifacts(run_id, TEST_SCORES)] if run_id else []
    if file not in files:
        return None
    psnrs: dict[str, float] = mlflow.artifacts.load_dict(f"runs:/{run_id}/{file}")["psnr"]
    return psnrs


def scores_file(test: str) -> str:
    """Return the path of the artifact with the scores on a test set; other protocols and code give other paths."""
    return f"{TEST_SCORES}/{hashlib.sha256(test.encode()).hexdigest()[:16]}.json"


def _run_id(version: Version) -> str | None:
    """Return the id of the run that registered a version; None if there was none, or if it was deleted."""
    client = mlflow.MlflowClient()
    run_id: str | None = client.get_model_version(version.task, str(version.number)).run_id or None
    try:
        if run_id is not None:
            client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None
    return run_id


def set_champion(
    version: Version, reason: str, previous: Version | None, gain: Mapping[str, Any] | None = None
) -> None:
    """Make `version` the champion, and the former one `previous`; tags of `version` say when, why and after which one.

    Args:
        version: the new champion.
        reason: why.
        previous: the champion before it, None if there was none.
        gain: the gain that made it champion, as `Gain.as_json` returns it; None if no gain did.
    """
    set_tags(
        version,
        {
            CHAMPION_SINCE: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            CHAMPION_BECAUSE: reason,
            CHAMPION_GAIN: NO_GAIN if gain is None else json.dumps(gain, sort_keys=True),
            CHAMPION_AFTER: str(previous.number) if previous else "none",
        },
    )
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(version.task, CHAMPION, str(version.number))
    if previous is not None and previous.number != version.number:
        client.set_registered_model_alias(version.task, PREVIOUS, str(previous.number))
    challenger = with_alias(version.task, CHALLENGER)
    if challenger is not None and challenger.number == version.number:
        client.delete_registered_model_alias(version.task, CHALLENGER)


def set_challenger(version: Version) -> None:
    """Move the alias `challenger` to `version`."""
    mlflow.MlflowClient().set_registered_model_alias(version.task, CHALLENGER, str(version.number))


def roll_back(task: str) -> tuple[Version, Version]:
    """Exchange champion and previous champion; return both, the new champion first.

    Raises:
        ValueError: there is no champion, or no previous one.
    """
    now, before = champion(task), with_alias(task, PREVIOUS)
    if now is None:
        raise ValueError(f"{task} has no champion in the registry")
    if before is None:
        raise ValueError(f"{task} has no previous champion: version {now.number} is the first")
    set_tags(now, {ROLLED_BACK: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")})
    set_champion(before, f"version {now.number} was rolled back by hand", now)
    return before, now


@contextmanager
def exclusive(task: str) -> Iterator[None]:
    """Let only one process at a time move the aliases of a registered model, on any kind of registry.

    MLflow has no transactions. A process writes its claim into a tag, waits longer than another process needs to write
    one, and continues if the tag still holds its own claim (Fischer's algorithm; Lamport, "A Fast Mutual Exclusion
    Algorithm", 1987).
    """
    client, own = mlflow.MlflowClient(), f"{socket.gethostname()} {os.getpid()} {time.time():.3f}"

    def claim() -> str | None:
        tag: str | None = client.get_registered_model(task).tags.get(CLAIM)
        return tag

    is_announced = False
    while True:
        other = claim()
        if other is not None and _is_alive(other):
            if not is_announced:
                print(f"{task}: waiting for another promotion, by {' '.join(other.split()[:2])}", file=sys.stderr)
            is_announced = True
            time.sleep(SECONDS_TO_SETTLE / 4)
            continue
        try:
            client.set_registered_model_tag(task, CLAIM, own)
        except MlflowException:
            # If two processes write at the same time, a database may refuse one: the other then has the claim.
            if claim() is None:
                raise
            continue
        time.sleep(SECONDS_TO_SETTLE)
        if claim() == own:
            break
    try:
        yield
    finally:
        if claim() == own:
            client.delete_registered_model_tag(task, CLAIM)


def _is_alive(claim: str) -> bool:
    """Whether the process of a claim may still be running: not if it ended on this machine, or if the claim is old."""
    host, pid, since = claim.split()
    if time.time() - float(since) > SECONDS_OF_A_CLAIM:
        return False
    return host != socket.gethostname() or psutil.pid_exists(int(pid))


def _signature() -> ModelSignature:
    """A list of images of any form (pyfunc_model.py): MLflow has no type for encoded images or arrays of any shape."""
    return ModelSignature(inputs=Schema([ColSpec(AnyType())]), outputs=Schema([ColSpec(AnyType())]))


def _example() -> str:
    """Return a small photograph in the form that JSON needs: a PNG in base64."""
    from dgunet.images import Photo  # here, because loading the decoders changes the environment
    from dgunet.images.encode import encode

    across = np.linspace(0, 255, 32, dtype=np.uint8)
    pixels = np.stack([np.tile(across, (32, 1)), np.tile(across[:, None], 32), np.full((32, 32), 96, np.uint8)], axis=2)
    return base64.b64encode(encode(Photo(pixels), "PNG")[0]).decode()
