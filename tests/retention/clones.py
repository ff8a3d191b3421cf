"""Clones of a project that share a DVC remote, shards, checkpoints and a registry."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

import fsspec
from dvc.cli import main

from pipeline.shards import store

WEEK = 7 * 24 * 3600
OLD = time.time() - WEEK - 3600
STAGES = """
stages:
  build:
    cmd: mkdir -p data/shards models && cp -r source/shards data/shards/denoise && cp -r source/model models/denoise
    deps: [source]
    outs: [data/shards/denoise, models/denoise]
"""


class Clone:
    """A checkout with git and DVC, whose one stage copies files that a test writes into `source`."""

    def __init__(self, folder: Path, remote: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "dvc.yaml").write_text(STAGES)
        (folder / "params.yaml").write_text("tasks: []\nseed: 1\n")
        (folder / ".gitignore").write_text("/source/\n/.cache/\n/data/\n/models/\n/mlflow.db\n")
        self.run("git", "init", "--quiet")
        self.dvc("init", "--quiet")
        self.dvc("remote", "add", "--quiet", "--default", "cluster", remote)
        self.commit()

    def run(self, *command: str) -> str:
        user = {f"GIT_{role}_{name}": "t" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")}
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | user, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def dvc(self, *arguments: str) -> None:
        """Run a command of DVC in this process: it takes seconds to start another one."""
        with chdir(self.folder):
            assert main([*arguments]) == 0, arguments

    def commit(self, *paths: str) -> str:
        """Commit everything, dvc.lock only where it is named; return the commit."""
        self.run("git", "add", ".", ":!dvc.lock")
        if paths:
            self.run("git", "add", *paths)
        self.run("git", "commit", "--quiet", "--allow-empty", "-m", "c")
        return self.run("git", "rev-parse", "HEAD")

    def build(self, shards: Mapping[str, bytes], model: Mapping[str, bytes], *, push: bool = True) -> str:
        """Store shards at DGUNET_SHARDS, run the stage, push; return the sha256 of the index of the shards."""
        self.run("rm", "-rf", "source", "data", "models")
        entries = []
        for name, content in shards.items():
            (self.folder / name).write_bytes(content)
            entries.append({"name": name, "sha256": sha256(content), "samples": 1, "bytes": 1, "min_side": 1})
            store.put(self.folder / name, sha256(content))
            (self.folder / name).unlink()
        index = json.dumps({"recipe": {}, "shards": entries}).encode()
        for name, content in {"shards/train/index.json": index, **{f"model/{n}": c for n, c in model.items()}}.items():
            (self.folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "source" / name).write_bytes(content)
        store.put_record({"train": sha256(index)}, {entry["sha256"] for entry in entries})
        self.dvc("repro")
        if push:
            self.dvc("push", "--run-cache", "--quiet")
        return sha256(index)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def age(*folders: Path) -> None:
    """Let all files of folders be older than a week."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                os.utime(path, (OLD, OLD))


def contents(address: str) -> set[bytes]:
    """The contents of all files of a folder or URL."""
    filesystem, path = fsspec.core.url_to_fs(address)
    filesystem.invalidate_cache()
    return {filesystem.cat_file(name) for name in filesystem.find(path)}
