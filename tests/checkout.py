"""A copy of the project's tracked files where DVC runs, for tests of whole commands."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from factories import PROJECT
from processes import started


class Checkout:
    """A copy of the project's tracked files, committed, with small values in params.yaml.

    Args:
        folder: an empty folder for the copy.
        edit: changes the content of params.yaml in place.
        environment: variables of the commands that run in the copy, beside those of this process.
    """

    def __init__(self, folder: Path, edit: Callable[[dict[str, Any]], object], environment: dict[str, str]) -> None:
        self.folder = folder
        listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (PROJECT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
        self.change(edit)
        omitted = ("MLFLOW_", "DGUNET_", "RAY_", "GIT_", "PYTHONPATH")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(omitted)}
        self.environment = inherited | environment | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SHELL": "/bin/sh",  # DVC's choice without a login, as in CI; Debian's waits for its child processes
            "DVC_NO_ANALYTICS": "true",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }  # fmt: skip
        self.run("git", "init", "--quiet")
        self.run("git", "add", ".")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "start")

    def read_params(self) -> dict[str, Any]:
        """The content of params.yaml."""
        read: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return read

    def change(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Rewrite params.yaml as `edit` changes its content in place."""
        params = self.read_params()
        edit(params)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command that must succeed, or must fail; return what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def started(
        self, *command: str, stderr: int | None = None, **environment: str
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """Start a command; it is killed with all its child processes at the end of the context."""
        return started(*command, cwd=self.folder, env=self.environment | environment, stderr=stderr)

    def digests(self) -> dict[str, str]:
        """The sha256 of every file below data, models and reports, by its path in the checkout."""
        built = [path for name in ("data", "models", "reports") for path in (self.folder / name).rglob("*")]
        return {str(path.relative_to(self.folder)): sha256(path) for path in built if path.is_file()}

    def read(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads((self.folder / name).read_text())


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
