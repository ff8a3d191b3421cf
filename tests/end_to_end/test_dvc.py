"""DVC in a small checkout: stages without an activated environment, and `dvc exp run -S` on tasks and defaults."""

import os
import sys
from typing import Any

import numpy as np
import pytest
import yaml
from checkout import Checkout
from factories import PROJECT
from PIL import Image

from pipeline.config.params import merged_section

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STARTER = "    - kind: starter  # photographs from the scikit-image and scikit-learn wheels"
GIT_USER = {f"GIT_{role}_{name}": "t" for role in ("AUTHOR", "COMMITTER") for name in ("NAME", "EMAIL")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose dvc.lock says that all stages were run.

    Its environment is `.venv`, which is not activated; the `python` on the PATH fails. The shell finds no other Python.
    """
    folder = tmp_path_factory.mktemp("dvc") / "checkout"
    folder.mkdir()
    built = Checkout(folder, lambda params: None, GIT_USER)
    (folder / "photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (100, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    text = (PROJECT / "params.yaml").read_text()
    (start,) = [line for line in text.splitlines() if line.startswith(STARTER)]
    text = text.replace(start, "    - {kind: folder, path: photos}").replace("seed: 1\n", "seed: 0\n")
    (folder / "params.yaml").write_text(text)
    (folder / ".venv").symlink_to(sys.prefix)
    bin_folder = folder.parent / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").write_text("#!/bin/sh\necho another python >&2\nexit 3\n")
    (bin_folder / "python").chmod(0o755)
    built.environment.pop("VIRTUAL_ENV", None)
    built.environment["PATH"] = os.pathsep.join([str(bin_folder), "/usr/bin", "/bin"])
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    for stage in stages.values():
        body = stage.get("do", stage)
        for out in [out for kind in ("outs", "metrics", "plots") for out in body.get(kind, ())]:
            for task in ("denoise", "derain"):
                path = folder / (out if isinstance(out, str) else next(iter(out))).replace("${item}", task)
                (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
                (path if path.suffix else path / "file").touch()
    dvc(built, "commit", "--force", "--quiet")
    commit(built)
    return built


def dvc(checkout: Checkout, *arguments: str, fails: bool = False) -> str:
    return checkout.run(sys.executable, "-m", "dvc", *arguments, fails=fails)


def commit(checkout: Checkout) -> None:
    (checkout.folder / ".git" / "info" / "exclude").write_text(".venv\n")  # .gitignore names folders, not links
    checkout.run("git", "add", ".")
    checkout.run("git", "commit", "--quiet", "-m", "built")


def restore(checkout: Checkout) -> None:
    """Undo what a run has changed."""
    checkout.run("git", "checkout", "--quiet", ".")
    dvc(checkout, "checkout", "--force", "--quiet")


def stale_stages(checkout: Checkout) -> set[str]:
    code = "import json, dvc.repo; print(json.dumps(dvc.repo.Repo().status()))"
    status = yaml.safe_load(checkout.run(sys.executable, "-c", code).splitlines()[-1])
    return {name for name, why in status.items() if "changed deps" in str(why)}


def merged(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task: merged_section(params, task, "train") for task in ("denoise", "derain")}


def test_stages_run_in_the_environment_of_the_checkout_where_none_is_activated(checkout: Checkout) -> None:
    printed = dvc(checkout, "repro", "--single-item", "prepare")
    assert "another python" not in printed
    assert len((checkout.folder / "data" / "manifest.jsonl").read_text().splitlines()) == 8
    restore(checkout)


@pytest.mark.parametrize(
    ("override", "changed", "stale"),
    [
        ("denoise.train.num_steps=999", {"denoise": {"num_steps": 999}}, {"train@denoise"}),
        ("+denoise.train.mixup_alpha=0.6", {"denoise": {"mixup_alpha": 0.6}}, {"train@denoise"}),
        (
            "defaults.train.gradient_clip=2.0",
            {"denoise": {"gradient_clip": 2.0}, "derain": {"gradient_clip": 2.0}},
            {"train@denoise", "train@derain"},
        ),
    ],
)
def test_an_experiment_changes_a_value_of_a_task_or_of_the_defaults(
    checkout: Checkout, override: str, changed: dict[str, Any], stale: set[str]
) -> None:
    before = merged(checkout.read_params())
    dvc(checkout, "exp", "run", "-S", override, "prepare")  # prepare validates params.yaml
    try:
        assert merged(checkout.read_params()) == {
            task: values | changed.get(task, {}) for task, values in before.items()
        }
        # Manifest and thumbnails were empty, which synthesize and evaluate depend on.
        others = {f"{stage}@{task}" for stage in ("synthesize", "evaluate") for task in ("denoise", "derain")}
        assert stale_stages(checkout) - others == stale
        text = (checkout.folder / "params.yaml").read_text()
        assert "# blind: one network for every σ" in text  # DVC rewrites the file and keeps the comments of keys
    finally:
        restore(checkout)


def test_an_experiment_in_a_copy_leaves_params_yaml_as_it_is(checkout: Checkout) -> None:
    before = (checkout.folder / "params.yaml").read_text()
    printed = dvc(checkout, "exp", "run", "--temp", "-S", "+denoise.train.mixup_alpha=0.6", "prepare")
    assert "Ran experiment" in printed
    assert "another python" not in printed
    assert (checkout.folder / "params.yaml").read_text() == before


def test_an_override_that_the_task_takes_from_the_defaults_needs_a_plus(checkout: Checkout) -> None:
    before = (checkout.folder / "params.yaml").read_text()
    printed = dvc(checkout, "exp", "run", "-S", "denoise.train.mixup_alpha=0.6", "prepare", fails=True)
    assert "+denoise.train.mixup_alpha=0.6" in printed
    assert (checkout.folder / "params.yaml").read_text() == before


def test_an_experiment_with_a_value_that_is_not_valid_builds_nothing(checkout: Checkout) -> None:
    dvc(checkout, "repro", "--single-item", "prepare")
    manifest = checkout.digests()["data/manifest.jsonl"]
    printed = dvc(checkout, "exp", "run", "-S", "+denoise.train.num_step=9", "prepare", fails=True)
    assert "denoise.train.num_step: no such key" in printed
    assert checkout.digests()["data/manifest.jsonl"] == manifest
    restore(checkout)
