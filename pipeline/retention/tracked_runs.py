"""Finds runs in MLflow that no commit, registered version or live driver refers to, and what the versions need."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.retention.items import YOUNG, Item, Place, reachable
from pipeline.tracking.runs import LOCK_FILE, SYSTEM_METRICS
from pipeline.tracking.trials import PARENT

OWN = ({"fingerprint"}, {"model", "code"}, {"trial", PARENT})  # tags of the runs that this pipeline makes
CHANGES = "+changes"  # suffix of the commit of a checkout with uncommitted changes
UNKNOWN = "unknown"  # in place of the commit, if git could not be read
SHA256 = re.compile(r"\b[0-9a-f]{64}\b")
PAGE = 1000


@dataclass(frozen=True)
class Versions:
    """What the registered versions refer to.

    Attributes:
        runs: ids of their runs.
        origins: for each version, its commit and the sha256 of the index of its training shards.
        data: every sha256 in their tags, including those of indices of shards.
        locks: contents of dvc.lock at the time when they were registered.
    """

    runs: set[str]
    origins: set[tuple[str, str]]
    data: set[str]
    locks: list[str]


def versions() -> Versions:
    """Return what the registered versions refer to. MLflow must be connected; raises ValueError if it fails."""
    found = Versions(set(), set(), set(), [])
    client = mlflow.MlflowClient()
    with reachable("the registry of MLflow"):
        for version in _pages(lambda token: client.search_model_versions(max_results=PAGE, page_token=token)):
            found.data.update(SHA256.findall(" ".join(map(str, version.tags.values()))))
            if {"commit", "data"} <= version.tags.keys():
                found.origins.add((version.tags["commit"], version.tags["data"]))
            if version.run_id:
                found.runs.add(version.run_id)
        for run in sorted(found.runs):
            found.locks.extend(_lock_file(client, run))
    return found


def collect(known: Versions, commits: set[str], live: set[str], oldest: float) -> tuple[Place, set[str]]:
    """Find the runs that nothing refers to.

    Args:
        known: what the registered versions refer to.
        commits: all commits of this clone, and those whose results are stored.
        live: names of the runs in DGUNET_STORAGE that a driver is training, and of those with young checkpoints.
        oldest: time in seconds since 1970; everything that was changed later is kept.

    Returns:
        The place, and the sha256 of the indices of the shards that young and training runs read.

    Raises:
        ValueError: MLflow cannot be read.
    """
    client = mlflow.MlflowClient()
    place = Place("runs", mlflow.get_tracking_uri(), lambda ids: _delete(client, ids))
    data = set[str]()
    with reachable(f"MLflow at {mlflow.get_tracking_uri()}"):
        own = [run for run in _all_runs(client) if any(tags <= run.data.tags.keys() for tags in OWN)]
        changed = {run.info.run_id: _changed(client, run, oldest) for run in own}
        for run in own:  # a search is as young as its youngest trial
            parent = run.data.tags.get(PARENT)
            if parent in changed:
                changed[parent] = max(changed[parent], changed[run.info.run_id])
        reasons = {
            run.info.run_id: YOUNG
            if changed[run.info.run_id] > oldest
            else _reason(run.info.run_id, run.data.tags, known, commits, live)
            for run in own
        }
        for run in own:
            reason = reasons.get(run.data.tags.get(PARENT, run.info.run_id), "") or reasons[run.info.run_id]
            if reason:
                place.keep(reason, 0)
                if reason in (YOUNG, "being trained"):
                    data.update(SHA256.findall(run.data.tags.get("data", "")))
            else:
                name = f"{run.data.tags.get('mlflow.runName', '')} {run.info.run_id[:8]}"
                size, modified = _size(client, run.info.run_id), changed[run.info.run_id]
                place.items.append(Item(name, (run.info.run_id,), size, modified))
    return place, data


def _reason(run: str, tags: Mapping[str, str], known: Versions, commits: set[str], live: set[str]) -> str:
    commit = tags.get("commit", "")
    if run in known.runs or (commit, tags.get("data", "")) in known.origins:
        return "of a registered version"
    if tags.get("fingerprint") in live:
        return "being trained"
    # dvc.lock is often committed after the run, so uncommitted changes at the time of the run are no reason to delete.
    if commit == UNKNOWN or commit in commits or commit.removesuffix(CHANGES) in commits:
        return "made by an existing commit" if commit != UNKNOWN else "made by an unknown commit"
    return ""


def _changed(client: Any, run: Run, oldest: float) -> float:
    """Return when a run last changed, in seconds since 1970; for an ended run, when it ended."""
    latest: float = max(run.info.start_time or 0, run.info.end_time or 0)
    if latest / 1000 <= oldest and run.info.end_time is None:
        names = sorted(run.data.metrics, key=lambda name: name.startswith(SYSTEM_METRICS))
        for name in {*names[:1], *names[-1:]}:
            latest = max([latest, *(point.timestamp for point in client.get_metric_history(run.info.run_id, name))])
    return latest / 1000


def _all_runs(client: Any) -> Iterator[Run]:
    pages = _pages(lambda token: client.search_experiments(max_results=PAGE, page_token=token))
    experiments = [experiment.experiment_id for experiment in pages]
    yield from _pages(lambda token: client.search_runs(experiments, max_results=PAGE, page_token=token))


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _lock_file(client: Any, run: str) -> list[str]:
    """Return the dvc.lock that was stored with a run, if there is one."""
    try:
        if all(file.path != LOCK_FILE for file in client.list_artifacts(run)):
            return []
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    with tempfile.TemporaryDirectory() as folder:
        return [Path(client.download_artifacts(run, LOCK_FILE, folder)).read_text(encoding="utf-8")]


def _size(client: Any, run: str, folder: str | None = None) -> int:
    """Return the bytes of a run's artifacts."""
    files = client.list_artifacts(run, folder)
    return sum(_size(client, run, file.path) if file.is_dir else file.file_size or 0 for file in files)


def _delete(client: Any, ids: Sequence[str]) -> None:
    """Delete artifacts, then mark the runs as deleted; `mlflow gc` on the server removes the rest."""
    for run in ids:
        get_artifact_repository(client.get_run(run).info.artifact_uri).delete_artifacts()
        client.delete_run(run)
