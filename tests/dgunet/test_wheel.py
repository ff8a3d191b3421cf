"""The wheel holds all of dgunet and nothing else; it works where the pipeline is not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from factories import PROJECT


def test_the_wheel_holds_all_of_dgunet_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=PROJECT, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "unpacked")
    files = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "dgunet").rglob("*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    assert {"dgunet/py.typed", "dgunet/demo.html"} <= names
    code = "import sys; sys.path[:0] = sys.argv[1:]; import dgunet; print(dgunet.__file__, 'pipeline' in sys.modules)"
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "unpacked")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path / "unpacked" / "dgunet" / "__init__.py"), "False"]
