"""Ray's list of a run's checkpoints, kept twice: Ray writes it in place, and where a disk is full that cuts it off.

Ray then refuses to start the run at all. The copy is made when a report is committed; of the checkpoints that it names,
those that have gone since, or are not what was sealed (cut off when a machine lost power), are passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.fs

from pipeline.cluster.ray_internals import SNAPSHOT
from pipeline.runtime.files import PROJECT

STORAGE = PROJECT / ".cache" / "runs"


def storage() -> str:
    """Return where checkpoints of running work live, as DGUNET_STORAGE or the default says: a URL or a whole path."""
    asked = os.environ.get("DGUNET_STORAGE") or str(STORAGE)
    return asked.rstrip("/") if "://" in asked else str(Path(asked).absolute())


SNAPSHOT_BACKUP = f"{SNAPSHOT}.copy"
CHECKSUMS = "checksums.json"


def place(address: str) -> tuple[Any, str]:
    """Return the file system (pyarrow's) and the folder on it of a run's checkpoints."""
    found: tuple[Any, str] = pyarrow.fs.FileSystem.from_uri(address)
    return found


def create_run_dir(address: str) -> None:
    """Create the run's folder. Raises OSError where it cannot."""
    filesystem, folder = place(address)
    filesystem.create_dir(folder)


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files beside them. Raises OSError where it cannot."""
    sums = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != CHECKSUMS):
        with path.open("rb") as file:
            sums[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums))


def keep(address: str) -> None:
    """Copy the list beside itself. Raises OSError where it cannot."""
    filesystem, folder = place(address)
    filesystem.copy_file(f"{folder}/{SNAPSHOT}", f"{folder}/{SNAPSHOT_BACKUP}.new")
    filesystem.move(f"{folder}/{SNAPSHOT_BACKUP}.new", f"{folder}/{SNAPSHOT_BACKUP}")


def repair_snapshot(address: str, *, must_be_there: bool = False) -> str | None:
    """Put the copy back where the list is cut off, or set the list aside where the copy is no good; say so in a line.

    must_be_there: checkpoints were stored before, so that a folder without a list is not theirs: a mount that is gone.
    Raises OSError, and changes nothing, where the storage cannot be read.
    """
    filesystem, folder = place(address)
    if not filesystem.get_file_info(f"{folder}/{SNAPSHOT}").is_file:
        if must_be_there:
            raise FileNotFoundError(f"the checkpoints are gone from {address}")
        return None
    content, is_whole = _read(filesystem, folder, SNAPSHOT)
    if is_whole:
        return None
    damage = f"the checkpoints in {address} are damaged, as by a full disk or a loss of power"
    content = content or _read(filesystem, folder, SNAPSHOT_BACKUP)[0]
    if content:
        with filesystem.open_output_stream(f"{folder}/{SNAPSHOT}.new") as file:
            file.write(json.dumps(content).encode())
        filesystem.move(f"{folder}/{SNAPSHOT}.new", f"{folder}/{SNAPSHOT}")
        return f"{damage}: going on from the last that is there"
    filesystem.move(f"{folder}/{SNAPSHOT}", f"{folder}/{SNAPSHOT}.damaged")
    return f"{damage}, and so is its copy: starting anew"


def _read(filesystem: Any, folder: str, name: str) -> tuple[dict[str, Any] | None, bool]:
    """Return a list, less the checkpoints that are not there, or not whole (None if none is), and if all were."""
    try:
        with filesystem.open_input_stream(f"{folder}/{name}") as file:
            content = json.loads(file.read())
        results = [(result["checkpoint_dir_name"], result) for result in content["checkpoint_results"]]
        indices = content["checkpoint_report_indices"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None, False
    there = [_is_whole(filesystem, f"{folder}/{checkpoint}") for checkpoint, _ in results]
    if all(there):
        return content, True
    if not any(there):
        return None, False
    content["checkpoint_results"] = [result for (_, result), is_there in zip(results, there, strict=True) if is_there]
    content["checkpoint_report_indices"] = [i for i, is_there in zip(indices, there, strict=True) if is_there]
    content["latest_checkpoint_result"] = content["checkpoint_results"][-1]  # in the order of the reports
    return content, False


def _is_whole(filesystem: Any, checkpoint: str) -> bool:
    try:
        with filesystem.open_input_stream(f"{checkpoint}/{CHECKSUMS}") as file:
            sums = json.loads(file.read())
        for name, expected in sums.items():
            with filesystem.open_input_stream(f"{checkpoint}/{name}") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
    except (FileNotFoundError, ValueError, AttributeError):
        return False
    return True
