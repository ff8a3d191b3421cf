"""Fingerprints of everything that decides a result: unfinished work is continued only by a run with the same one.

DVC knows which results are stale, but not which unfinished work may be continued. Both depend on the same code: the
`deps` that dvc.yaml lists for a stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import yaml

from pipeline.runtime.files import PROJECT

CODE = ("dgunet", "pipeline")


def fingerprint(stage: str, *parts: Any) -> str:
    """Return 16 hexadecimal digits of the sha256 over `parts` (plain JSON) and the code of `stage`."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    digest.update(code_digest(stage_code(stage)).encode())
    return digest.hexdigest()[:16]


def stage_code(stage: str) -> list[str]:
    """Return the files and folders of code among the deps of a DVC stage, as dvc.yaml lists them."""
    body = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    return [dep for dep in body.get("do", body).get("deps", ()) if dep.partition("/")[0] in CODE]


def code_digest(paths: Iterable[str]) -> str:
    """Return the sha256 over names and contents of source files, and of all source files in folders.

    paths: relative to the checkout.
    """
    digest = hashlib.sha256()
    given = [PROJECT / path for path in paths]
    files = {file for path in given for file in (path.rglob("*") if path.is_dir() else [path])}
    for file in sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts):
        name = file.relative_to(PROJECT).as_posix()
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
