"""Ray starts workers of an environment whose path has a space."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import PROJECT

TASK = """
import ray, sys
from pipeline.cluster.session import session
with session():
    executable = ray.remote(runtime_env={"env_vars": {"A": "1"}})(lambda: __import__("sys").executable)
    print(ray.get(executable.remote(), timeout=120))
"""


@pytest.mark.cluster
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment to link to")
def test_workers_start_where_the_path_of_the_environment_has_a_space(tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space" / "venv").symlink_to(sys.prefix)
    python = tmp_path / "with space" / "venv" / "bin" / "python"
    done = subprocess.run(
        [str(python), "-c", TASK], env={**os.environ, "PYTHONPATH": str(PROJECT)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(python), done.stderr
