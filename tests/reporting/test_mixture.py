"""The table of what a training on the mixture learns of each degradation."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from factories import PROJECT

from benchmarks import mixture
from pipeline.config.params import read_params
from pipeline.degradations import degrade
from pipeline.degradations.parsing import parse_degradation


def row(recipe: str, step: int, restored: float) -> dict:
    measured = {"all": [3, 20.0, restored], "haze": [1, 12.0, restored - 8]}
    return {"recipe": recipe, "step": step, "tflop": 4.0, "psnr": measured, "commit": "abc", "hardware": "a CPU"}


def test_every_degradation_of_the_mixture_has_its_kind() -> None:
    choices = read_params(PROJECT / "params.yaml")["mixed"]["synthesize"]["degradation"]["choices"]
    image = np.full((32, 32, 3), 0.5, np.float32)
    kinds = [
        {mixture.kind_of(degrade(image, parse_degradation(choice), [seed]).record) for seed in range(20)}
        for choice in choices
    ]
    assert kinds == [{"rain_streaks"}, {"haze"}, {"camera_shake"}, {"low_light"}, {"file"}]


def test_rows_are_in_the_order_of_the_recipes_below_the_degraded_images() -> None:
    measured = [row("psnr/muon", 500, 21.5), row("psnr/muon", 250, 21.0), row("charbonnier_edge/adamw", 250, 20.5)]
    lines = [line for line in mixture.table(measured).splitlines() if line.startswith("| ")]
    assert lines == [
        "| loss / optimizer | TFLOP | step | all (3) | haze (1) |",
        "| the degraded images | | | 20.00 | 12.00 |",
        "| charbonnier_edge/adamw | 4.0 | 250 | 20.50 | 12.50 |",
        "| psnr/muon | 4.0 | 250 | 21.00 | 13.00 |",
        "| psnr/muon | 4.0 | 500 | 21.50 | 13.50 |",
    ]


def test_a_recipe_that_was_interrupted_is_trained_again_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "ROWS", tmp_path / "mixture.jsonl")
    monkeypatch.setattr(mixture, "run_stages", lambda *_: None)
    interrupted, trained = [True], []

    def train(name: str, params: dict) -> Iterator[dict]:
        trained.append(name)
        yield row(name, 250, 21.0)
        if name == "psnr/muon" and interrupted.pop():
            raise KeyboardInterrupt

    monkeypatch.setattr(mixture, "train", train)
    with pytest.raises(KeyboardInterrupt):
        mixture.main(["--recipes", "psnr/adamw", "psnr/muon"])
    interrupted.append(False)
    mixture.main(["--recipes", "psnr/adamw", "psnr/muon"])
    assert trained == ["psnr/adamw", "psnr/muon", "psnr/muon"]
    found = [json.loads(line)["recipe"] for line in (tmp_path / "mixture.jsonl").read_text().splitlines()]
    assert found == ["psnr/adamw", "psnr/muon"]
    assert (tmp_path / "mixture.md").read_text().count("| 250 |") == 2


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [(1, ValueError, r"pipeline\.prepare failed; its message is above"), (130, KeyboardInterrupt, "^$")],
)
def test_a_stage_that_fails_or_is_interrupted_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, status: int, error: type[BaseException], message: str
) -> None:
    def run_stages(*_: object) -> None:
        raise subprocess.CalledProcessError(status, ["python", "-m", "pipeline.prepare"])

    monkeypatch.setattr(mixture, "run_stages", run_stages)
    with pytest.raises(error, match=message):
        mixture.make_shards({})
