"""Checkpoints of a run in the storage: their checksums, and a backup of Ray's list of them.

Ray writes its list (the snapshot) in place: if the disk is full, the list is truncated, and Ray then refuses to start
the run. A backup is written at each report. Checkpoints that no longer exist, or whose checksums differ (for example
after a power failure), are removed from the list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.fs

from pipeline.cluster.ray_internals import SNAPSHOT
from pipeline.runtime.environment import read_environment

LOCKS = "locks"  # folder of copies of dvc.lock: LOCKS/COMMIT/dvc.lock
SNAPSHOT_BACKUP = f"{SNAPSHOT}.copy"
CHECKSUMS = "checksums.json"
ORIGIN = "origin.json"


def run_dir(name: str) -> str:
    """Return the folder or URL of the checkpoints of the run `name`."""
    return f"{read_environment().storage}/{name}"


def filesystem(address: str) -> tuple[Any, str]:
    """Return the file system (of pyarrow) of a run's folder, and the path of the folder on it."""
    found: tuple[Any, str] = pyarrow.fs.FileSystem.from_uri(address)
    return found


def create_run_dir(address: str) -> None:
    """Create the run's folder. Raises OSError if that fails."""
    files, folder = filesystem(address)
    files.create_dir(folder)


def write_origin(name: str, commit: str, shards: Iterable[str]) -> None:
    """Write the origin of the run `name` into its folder, so that `make gc` keeps what an unfinished run needs.

    Args:
        name: name of the run.
        commit: commit of the code, as returned by `pipeline.runtime.provenance.commit`.
        shards: sha256 of each shard that it reads.

    Raises:
        OSError: the storage cannot be used.
    """
    address = run_dir(name)
    create_run_dir(address)
    files, folder = filesystem(address)
    with files.open_output_stream(f"{folder}/{ORIGIN}") as file:
        file.write(json.dumps({"commit": commit, "shards": sorted(shards)}).encode())


def delete_checkpoints(name: str) -> None:
    """Delete the checkpoints of the run `name`. Raises FileNotFoundError if there are none."""
    files, folder = filesystem(run_dir(name))
    files.delete_dir(folder)


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files beside them. Raises OSError if that fails."""
    sums = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != CHECKSUMS):
        with path.open("rb") as file:
            sums[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums))


def backup_snapshot(address: str) -> None:
    """Write a backup of Ray's list of checkpoints beside it. Raises OSError if that fails."""
    files, folder = filesystem(address)
    files.copy_file(f"{folder}/{SNAPSHOT}", f"{folder}/{SNAPSHOT_BACKUP}.new")
    files.move(f"{folder}/{SNAPSHOT_BACKUP}.new", f"{folder}/{SNAPSHOT_BACKUP}")


def repair_snapshot(address: str, *, must_exist: bool = False) -> str | None:
    """Remove missing and damaged checkpoints from Ray's list of them.

    If none is left, the list is replaced with its backup; if the backup has none either, the list is moved away.

    Args:
        address: the run's folder.
        must_exist: checkpoints were stored before, so a folder without a list means that the storage is not mounted.

    Returns:
        One line that describes the damage, or None if there is none.

    Raises:
        OSError: the storage cannot be read; nothing is changed.
    """
    files, folder = filesystem(address)
    if not files.get_file_info(f"{folder}/{SNAPSHOT}").is_file:
        if must_exist:
            raise FileNotFoundError(f"the checkpoints are no longer in {address}")
        return None
    content, is_complete = _read(files, folder, SNAPSHOT)
    if is_complete:
        return None
    damage = f"the checkpoints in {address} are damaged, for example by a full disk or a power failure"
    content = content or _read(files, folder, SNAPSHOT_BACKUP)[0]
    if content:
        with files.open_output_stream(f"{folder}/{SNAPSHOT}.new") as file:
            file.write(json.dumps(content).encode())
        files.move(f"{folder}/{SNAPSHOT}.new", f"{folder}/{SNAPSHOT}")
        return f"{damage}: continuing from the last one that is complete"
    files.move(f"{folder}/{SNAPSHOT}", f"{folder}/{SNAPSHOT}.damaged")
    return f"{damage}, and so is the backup of their list: starting again from step 0"


def _read(files: Any, folder: str, name: str) -> tuple[dict[str, Any] | None, bool]:
    """Return the list without missing and damaged checkpoints (None if none is left), and whether all were complete."""
    try:
        with files.open_input_stream(f"{folder}/{name}") as file:
            content = json.loads(file.read())
        results = [(result["checkpoint_dir_name"], result) for result in content["checkpoint_results"]]
        indices = content["checkpoint_report_indices"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None, False
    complete = [_is_complete(files, f"{folder}/{checkpoint}") for checkpoint, _ in results]
    if all(complete):
        return content, True
    if not any(complete):
        return None, False
    content["checkpoint_results"] = [result for (_, result), good in zip(results, complete, strict=True) if good]
    content["checkpoint_report_indices"] = [i for i, good in zip(indices, complete, strict=True) if good]
    content["latest_checkpoint_result"] = content["checkpoint_results"][-1]  # in the order of the reports
    return content, False


def _is_complete(files: Any, checkpoint: str) -> bool:
    try:
        with files.open_input_stream(f"{checkpoint}/{CHECKSUMS}") as file:
            sums = json.loads(file.read())
        for name, expected in sums.items():
            with files.open_input_stream(f"{checkpoint}/{name}") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
    except (FileNotFoundError, ValueError, AttributeError):
        return False
    return True
