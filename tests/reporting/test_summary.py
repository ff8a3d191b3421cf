"""The summary lists the tasks that params.yaml builds, prints commands to copy, and imports no heavy library."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from factories import PROJECT

from pipeline import summary

MODEL = "models:/derain@champion"


@pytest.fixture
def reports(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"tasks": ["derain", "denoise", "deblur"]}))
    for task in ("denoise", "derain", "no_longer_built"):
        folder = tmp_path / "reports" / task
        folder.mkdir(parents=True)
        numbers = {kind: {"psnr": 20.0 + len(kind), "ssim": 0.5} for kind in ("degraded", "baseline", "restored")}
        (folder / "metrics.json").write_text(json.dumps({**numbers, "gain_db": 0.0}))
    promotion = {"champion_version": 7, "alias_moved": True, "reason": "the first"}
    (tmp_path / "reports" / "derain" / "promote.json").write_text(json.dumps(promotion))
    return Path("reports")


def test_only_tasks_that_are_built_and_have_results_are_listed_in_the_order_of_params(reports, capsys):
    summary.main(["--reports", str(reports)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["derain", "denoise"]
    assert lines[4] == ""
    assert len({len(line) for line in lines[:4]}) == 1, "columns are aligned"


def test_the_command_restores_a_photograph_that_exists(reports, capsys):
    summary.main(["--reports", str(reports)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "dgunet restore" in line]
    program, verb, photo, out, option, model = shlex.split(line.removeprefix("restore a photo:"))
    assert (program, verb, out, option, model) == (".venv/bin/dgunet", "restore", "restored/", "--model", MODEL)
    assert Path(photo).is_file()


def test_without_reports_it_says_what_to_run(reports, tmp_path):
    with pytest.raises(ValueError, match="make repro"):
        summary.main(["--reports", str(tmp_path / "elsewhere")])


def test_the_summary_imports_no_heavy_library(reports):
    heavy = ["torch", "mlflow", "sklearn", "skimage", "ray", "numpy", "pandas", "matplotlib", "cv2", "pyarrow", "dvc"]
    code = (
        "import runpy, sys; sys.argv = ['summary']\n"
        "runpy.run_module('pipeline.summary', run_name='__main__')\n"
        f"assert not (found := set({heavy}) & sys.modules.keys()), found"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "derain" in done.stdout
