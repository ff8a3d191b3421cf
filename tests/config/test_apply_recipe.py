"""A recipe becomes a difference of params.yaml that a person agrees to, or nothing at all."""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from factories import PROJECT, small_params

from pipeline.apply_recipe import adopted, difference, main
from pipeline.runtime.entry_point import run_command
from pipeline.validate import check

PARAMS = (PROJECT / "params.yaml").read_text()
DERAIN = re.search(r"^derain:.*?(?=^\w|\Z)", PARAMS, re.M | re.S)[0].rstrip() + "\n"  # type: ignore[index]


class Done(NamedTuple):
    """What came of the door."""

    returncode: int
    stdout: str
    stderr: str


class Checkout:
    """A folder with params.yaml, where a recipe is adopted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.params, self.monkeypatch, self.capsys = folder / "params.yaml", monkeypatch, capsys
        self.params.write_text(PARAMS)
        monkeypatch.chdir(folder)

    def adopt(self, recipe: str, *options: str) -> Done:
        Path("recipe.yaml").write_text(recipe)
        self.monkeypatch.setattr(sys, "argv", ["adopt", "recipe.yaml", *options])
        status, said = 0, ""
        try:
            run_command(main)
        except SystemExit as leaving:
            status, said = 1, str(leaving.code)
        return Done(status, self.capsys.readouterr().out, said)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.params.parent.iterdir())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Checkout:
    return Checkout(tmp_path, monkeypatch, capsys)


def changed_lines(before: str, after: str) -> list[str]:
    lines = difference(before, after, coloured=False).splitlines()[2:]
    return [line for line in lines if line[0] in "+-"]


def test_one_value_changes_one_line() -> None:
    after = adopted(PARAMS, "derain: {train: {learning_rate: 0.00071}}")
    assert changed_lines(PARAMS, after) == ["-    learning_rate: 0.002", "+    learning_rate: 0.00071"]


def test_comments_and_layout_of_changed_mappings_stay() -> None:
    after = adopted(PARAMS, "denoise: {synthesize: {degradation: {kind: gaussian_noise, sigma: [15, 50]}}}")
    (line,) = [line for line in changed_lines(PARAMS, after) if line[0] == "+"]
    assert line.startswith("+    degradation: {kind: gaussian_noise, sigma: [15, 50], per_channel: true}")
    assert line.endswith("# grey levels of 8 bit")


def test_a_mapping_of_another_kind_is_replaced_whole() -> None:
    after = adopted(PARAMS, "denoise: {evaluate: {baseline: {kind: opening, width: 5}}}")
    assert yaml.safe_load(after)["denoise"]["evaluate"]["baseline"] == {"kind": "opening", "width": 5}


@pytest.mark.parametrize("value", ["1e-6", "1.0e-06", "0.000001", "2.5e+1"])
def test_a_number_is_a_number_to_every_reader_of_yaml(value: str) -> None:
    after = adopted(PARAMS, f"derain: {{train: {{gradient_clip: {value}}}}}")
    assert yaml.safe_load(after)["derain"]["train"]["gradient_clip"] == float(value)


def test_null_is_written_as_null() -> None:
    after = adopted(PARAMS, "denoise: {evaluate: {protocol: {crop: 4}}}")
    assert "{colour: rgb, quantise: false, crop: 4, border: 0, self_ensemble: false}" in after
    assert adopted(after, "denoise: {evaluate: {protocol: {crop: null}}}") == PARAMS


def test_equal_values_change_nothing() -> None:
    assert adopted(PARAMS, "derain: {train: {learning_rate: 2.0e-3, compute: {precision: bfloat16}}}") == PARAMS


def test_zero_becomes_false_and_not_nothing() -> None:
    text = "a: 0\n"
    assert adopted(text, "a: false") == "a: false\n"


def test_a_new_task_is_added_with_its_comments_and_is_valid(tmp_path: Path) -> None:
    section = DERAIN.replace("derain:", "storm:  # heavier", 1)
    after = adopted(PARAMS, section)
    assert after.startswith(PARAMS)
    assert "\n\nstorm:  # heavier\n" in after
    (tmp_path / "params.yaml").write_text(after)
    check(tmp_path / "params.yaml")
    assert yaml.safe_load(after)["storm"] == small_params()["derain"]


@pytest.mark.parametrize("recipe", ["- derain", "derain", "", "1: {a: 2}", "a: ["])
def test_what_is_no_recipe_is_refused(recipe: str) -> None:
    with pytest.raises(ValueError, match=r"mapping of sections|not YAML"):
        adopted(PARAMS, recipe)


def test_the_diff_is_coloured_for_a_terminal_only() -> None:
    after = PARAMS.replace("seed: 1", "seed: 2")
    assert "\033[32m+seed: 2\033[0m\n" in difference(PARAMS, after, coloured=True)
    assert "\033" not in difference(PARAMS, after, coloured=False)


def test_yes_applies_and_shows_the_difference(checkout: Checkout) -> None:
    done = checkout.adopt("derain: {train: {learning_rate: 0.001}}", "--yes")
    assert done.returncode == 0, done.stderr
    assert "+    learning_rate: 0.001\n" in done.stdout
    assert yaml.safe_load(checkout.params.read_text())["derain"]["train"]["learning_rate"] == 0.001
    assert checkout.files() == ["params.yaml", "recipe.yaml"]
    again = checkout.adopt("derain: {train: {learning_rate: 0.001}}", "--yes")
    assert again.returncode == 1
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("derain: {train: {learning_rat: 0.1}}", "derain.train.learning_rat: no such key"),
        ("derain: {train: {learning_rate: -1}}", "derain.train.learning_rate"),
        ("nowhere: {train: {learning_rate: 0.1}}", "nowhere.synthesize: missing"),
        ("tasks: [nowhere]", "nowhere has no section"),
    ],
)
def test_an_invalid_result_is_never_written(checkout: Checkout, recipe: str, says: str) -> None:
    done = checkout.adopt(recipe, "--yes")
    assert done.returncode == 1
    assert says in done.stderr
    assert ".partial" not in done.stderr
    assert checkout.params.read_text() == PARAMS
    assert checkout.files() == ["params.yaml", "recipe.yaml"]


def test_without_a_person_to_ask_nothing_is_applied(checkout: Checkout) -> None:
    done = checkout.adopt("derain: {train: {learning_rate: 0.001}}")
    assert done.returncode == 1
    assert "YES=1" in done.stderr
    assert checkout.params.read_text() == PARAMS


@pytest.mark.parametrize(("answer", "applied"), [("y", True), ("Yes ", True), ("", False), ("n", False)])
def test_a_person_disposes(checkout: Checkout, answer: str, applied: bool) -> None:
    checkout.monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    checkout.monkeypatch.setattr("builtins.input", lambda prompt: answer)
    checkout.adopt("derain: {train: {learning_rate: 0.001}}")
    assert (checkout.params.read_text() != PARAMS) == applied
    assert checkout.files() == ["params.yaml", "recipe.yaml"]


def test_what_was_edited_while_the_person_thought_is_not_overwritten(checkout: Checkout) -> None:
    def think(prompt: str) -> str:
        checkout.params.write_text(PARAMS + "# mine\n")
        return "y"

    checkout.monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    checkout.monkeypatch.setattr("builtins.input", think)
    done = checkout.adopt("derain: {train: {learning_rate: 0.001}}")
    assert "changed in the meantime" in done.stderr
    assert checkout.params.read_text() == PARAMS + "# mine\n"


def test_a_recipe_that_does_not_exist_is_named(checkout: Checkout) -> None:
    checkout.adopt("derain: {}")
    Path("recipe.yaml").unlink()
    checkout.monkeypatch.setattr(sys, "argv", ["adopt", "elsewhere.yaml"])
    with pytest.raises(SystemExit, match=r"no recipe elsewhere\.yaml"):
        run_command(main)
