"""The log of trials of a number of operations."""

import json
from pathlib import Path

import pytest
from factories import PROJECT

from benchmarks.speedrun import add_row, operations_of_step, trial_params
from pipeline.config.params import merged_section, read_params, validated
from pipeline.training.settings import Train


def params(*changes: str) -> dict:
    return trial_params(read_params(PROJECT / "params.yaml"), "denoise", "cbsd400", "CBSD68 σ 25", changes)


def test_a_trial_changes_values_of_the_task_alone() -> None:
    found = params("synthesize.degradation.sigma=[25, 25]", "train.network.width=8", "train.average_decay=0.999")
    assert found["tasks"] == ["denoise"]
    assert found["prepare"]["sources"] == [{"kind": "dataset", "name": "cbsd400"}]
    assert found["denoise"]["evaluate"]["benchmarks"] == ["CBSD68 σ 25"]
    assert found["denoise"]["synthesize"]["degradation"]["sigma"] == [25, 25]
    recipe = validated(merged_section(found, "denoise", "train"), Train)
    assert (recipe.network.width, recipe.average_decay, recipe.batch_size) == (8, 0.999, 8)
    assert found["derain"] == read_params(PROJECT / "params.yaml")["derain"]


@pytest.mark.parametrize("change", ["train.learning_rate", "learning_rate=1"])
def test_a_change_of_another_form_is_refused(change: str) -> None:
    with pytest.raises(ValueError, match=r"write it as train\.learning_rate="):
        params(change)


def test_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no task 'denoyse'; available: denoise"):
        trial_params(read_params(PROJECT / "params.yaml"), "denoyse", "cbsd400", "CBSD68 σ 25", ())


def test_a_step_of_the_default_denoiser_takes_as_many_operations_as_were_published() -> None:
    """benchmarks/results/speedrun.md compares budgets of it: 10,000 steps are 183 TFLOP."""
    assert operations_of_step(params(), "denoise") == pytest.approx(0.0183, abs=5e-5)


def test_every_trial_is_a_row_the_best_first_and_those_that_failed_last(tmp_path: Path) -> None:
    log = tmp_path / "speedrun.jsonl"
    row = {"task": "denoise", "benchmark": "CBSD68 σ 25", "num_steps": 100, "tflop": 1.83, "date": "2026-01-02"}
    numbers = {"degraded": 20.17, "baseline": 27.0}
    add_row(log, row | {"change": "as it stands", "set": [], "restored": 28.0} | numbers)
    add_row(log, row | {"change": "no stage", "set": ["train.network.num_stages=0"], "failed": "train exited with 1"})
    add_row(log, row | {"change": "longer average", "set": ["train.average_decay=0.999"], "restored": 28.5} | numbers)
    assert [json.loads(line)["tflop"] for line in log.read_text().splitlines()] == [1.83] * 3
    rows = [line for line in log.with_suffix(".md").read_text().splitlines() if line.startswith("| 1.8 ")]
    assert [line.split(" | ")[4:6] for line in rows] == [
        ["28.50", "longer average"],
        ["28.00", "as it stands"],
        ["failed: train exited with 1", "no stage"],
    ]
