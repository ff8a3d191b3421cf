"""Reads what refers to stored data from git: commits, and all present and past dvc.lock and .dvc files."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pipeline.runtime.provenance import reason_of_git

HASH = re.compile(r"\bmd5: ['\"]?([0-9a-f]{32}(?:\.dir)?)\b")
OUT = re.compile(r"\bpath: (\S+)\s+hash: md5\s+md5: ['\"]?([0-9a-f]{32}(?:\.dir)?)\b")
LOCKS = ("dvc.lock", "*.dvc")
NO_BLOB = "0" * 40


def commits(root: Path) -> set[str]:
    """Return all commits of the repository of a checkout: of branches, tags, stashes, experiments, and the reflog.

    Raises ValueError if git cannot list all of them.
    """
    if _git(root, "rev-parse", "--is-shallow-repository") == "true":
        raise ValueError("nothing is deleted: this clone has only part of the history; run `git fetch --unshallow`")
    return set(_git(root, "rev-list", "--all", "--reflog", *(["HEAD"] if _has_commit(root) else [])).split())


def lock_files(root: Path) -> list[str]:
    """Return the contents of all dvc.lock and .dvc files: of all commits, and of all work trees, changed ones included.

    Raises ValueError if git cannot list them.
    """
    raw = _git(
        root, "log", "--all", "--reflog", "-m", "--raw", "--no-abbrev", "--no-renames", "--format=", "--",
        *(f":(top,glob)**/{name}" for name in LOCKS),
    )  # fmt: skip
    changes = (line.split("\t")[0].split() for line in raw.splitlines() if line.startswith(":"))
    blobs = sorted({blob for change in changes for blob in change[2:4]} - {NO_BLOB})
    texts = [_git(root, "cat-file", "blob", blob) for blob in blobs]
    trees = _git(root, "worktree", "list", "--porcelain").splitlines()
    folders = [Path(line.removeprefix("worktree ")) for line in trees if line.startswith("worktree ")]
    experiments = [path for folder in folders for path in folder.glob(".dvc/tmp/exps/*") if path.is_dir()]
    for folder in {root.resolve(), *folders, *experiments}:
        listed = _git(folder, "ls-files", "--", *LOCKS).splitlines() if (folder / ".git").exists() else []
        paths = {folder / "dvc.lock", *(folder / name for name in listed)}
        texts += [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    return texts


def hashes(texts: Iterable[str]) -> set[str]:
    """Return the DVC objects, by md5, that lock files or entries of the run cache name."""
    return {found for text in texts for found in HASH.findall(text)}


def names(texts: Iterable[str]) -> dict[str, str]:
    """Return the path of each output or dependency that lock files name, by md5."""
    return {md5: path for text in texts for path, md5 in OUT.findall(text)}


def _has_commit(root: Path) -> bool:
    try:
        _git(root, "rev-parse", "--verify", "HEAD")
    except ValueError:
        return False
    return True


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True,
            check=True, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise ValueError("nothing is deleted: git is not installed, and references are read with it") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"nothing is deleted: git cannot read this checkout: {reason_of_git(error.stderr)}") from None
    return done.stdout.strip()
