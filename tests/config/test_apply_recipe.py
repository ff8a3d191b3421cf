"""A recipe changes params.yaml only after the user confirms the difference."""

import contextlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from factories import PROJECT, small_params
from processes import SmallDisk

from pipeline.apply_recipe import apply_recipe, difference, main
from pipeline.config.params import ParamsError, merged_section
from pipeline.runtime.entry_point import run_command
from pipeline.validate import check

PARAMS = (PROJECT / "params.yaml").read_text()
DERAIN = re.search(r"^derain:.*?(?=^\w|\Z)", PARAMS, re.M | re.S)[0].rstrip() + "\n"  # type: ignore[index]


class Done(NamedTuple):
    """Exit status and output of the command."""

    returncode: int
    stdout: str
    stderr: str


class Checkout:
    """A folder with params.yaml, to which a recipe is applied."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.params, self.monkeypatch, self.capsys = folder / "params.yaml", monkeypatch, capsys
        self.params.write_text(PARAMS)
        monkeypatch.chdir(folder)

    def apply(self, recipe: str, *options: str) -> Done:
        Path("recipe.yaml").write_text(recipe)
        self.monkeypatch.setattr(sys, "argv", ["apply", "recipe.yaml", *options])
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
    after = apply_recipe(PARAMS, "mixed: {train: {num_steps: 2000}}")
    start = "loss: psnr, optimizer: muon, learning_rate: 0.008"
    assert changed_lines(PARAMS, after) == [
        f"-  train: {{{start}, num_steps: 1000, validate_every: 250}}",
        f"+  train: {{{start}, num_steps: 2000, validate_every: 250}}",
    ]


def test_a_value_that_the_task_takes_from_the_defaults_is_written_into_the_task() -> None:
    after = apply_recipe(PARAMS, "derain: {train: {learning_rate: 0.00071, network: {width: 40}}}")
    assert changed_lines(PARAMS, after) == [
        "-  train: {}", "+  train:", "+    learning_rate: 0.00071", "+    network: {width: 40}",
    ]  # fmt: skip


def test_a_value_that_the_defaults_have_is_left_out_of_the_task() -> None:
    recipe = "denoise: {train: {loss: charbonnier_edge, compute: {accumulate: 1}, network: {width: 16, growth: 9}}}"
    before, after = yaml.safe_load(PARAMS), yaml.safe_load(apply_recipe(PARAMS, recipe))
    assert "loss" not in after["denoise"]["train"]
    assert "compute" not in after["denoise"]["train"]
    assert after["denoise"]["train"]["network"] == {"growth": 9}
    assert merged_section(after, "denoise", "train")["loss"] == before["defaults"]["train"]["loss"]


def test_what_the_recipe_does_not_name_stays_though_the_defaults_have_it() -> None:
    params = apply_recipe(PARAMS, "derain: {train: {num_steps: 9}}").replace("num_steps: 9", "loss: charbonnier_edge")
    after = apply_recipe(params, "derain: {train: {num_steps: 10}}")
    assert yaml.safe_load(after)["derain"]["train"] == {"loss": "charbonnier_edge", "num_steps": 10}


def test_a_long_line_is_broken_into_one_key_a_line() -> None:
    after = apply_recipe(PARAMS, "camera_noise: {train: {num_steps: 480000, warmup_steps: 18000, patch_size: 128}}")
    lines = changed_lines(PARAMS, after)
    assert lines[0] == "-  train: {loss: charbonnier_clamped, mixup_alpha: 0.6}  # as published for SIDD"
    assert lines[1].split() == ["+", "train:", "#", "as", "published", "for", "SIDD"]
    assert lines[2:] == [
        "+    loss: charbonnier_clamped", "+    mixup_alpha: 0.6", "+    num_steps: 480000", "+    warmup_steps: 18000",
        "+    patch_size: 128",
    ]  # fmt: skip


def test_comments_and_layout_of_changed_mappings_stay() -> None:
    after = apply_recipe(PARAMS, "prepare: {split: {val: 0.25}}")
    (line,) = [line for line in changed_lines(PARAMS, after) if line[0] == "+"]
    assert line.startswith("+  split: {val: 0.25, test: 0.2}")
    assert line.endswith("# shares of the scenes")


def test_anchors_of_a_recipe_are_written_out() -> None:
    recipe = "x: &x {kind: median, size: 5}\nderain: {evaluate: {baseline: *x}}\ndeblur: {evaluate: {baseline: *x}}\n"
    after = apply_recipe(PARAMS, recipe)
    assert "*" not in after.partition("derain:")[2].partition("evaluate")[2].partition("\n")[0]
    assert yaml.safe_load(after)["deblur"]["evaluate"]["baseline"] == {"kind": "median", "size": 5}
    assert "&" not in after


def test_a_mapping_of_another_kind_is_replaced_whole() -> None:
    after = apply_recipe(PARAMS, "denoise: {evaluate: {baseline: {kind: opening, width: 5}}}")
    assert yaml.safe_load(after)["denoise"]["evaluate"]["baseline"] == {"kind": "opening", "width": 5}


@pytest.mark.parametrize("value", ["1e-6", "1.0e-06", "0.000001", "2.5e+1"])
def test_a_number_is_a_number_to_every_reader_of_yaml(value: str) -> None:
    after = apply_recipe(PARAMS, f"derain: {{train: {{gradient_clip: {value}}}}}")
    assert yaml.safe_load(after)["derain"]["train"]["gradient_clip"] == float(value)


def test_null_is_written_as_null() -> None:
    after = apply_recipe(PARAMS, "defaults: {evaluate: {protocol: {crop: 4}}}")
    assert "{colour: rgb, quantise: true, crop: 4, border: 0, self_ensemble: false}" in after
    assert apply_recipe(after, "defaults: {evaluate: {protocol: {crop: null}}}") == PARAMS


def test_equal_values_change_nothing() -> None:
    assert apply_recipe(PARAMS, "derain: {train: {learning_rate: 2.0e-3, compute: {precision: bfloat16}}}") == PARAMS


def test_zero_becomes_false_and_not_nothing() -> None:
    text = "a: 0\n"
    assert apply_recipe(text, "a: false") == "a: false\n"


def test_a_new_task_is_added_with_its_comments_and_is_valid(tmp_path: Path) -> None:
    section = DERAIN.replace("derain:", "storm:  # heavier", 1)
    after = apply_recipe(PARAMS, section)
    assert after.startswith(PARAMS)
    assert "\n\nstorm:  # heavier\n" in after
    (tmp_path / "params.yaml").write_text(after)
    check(tmp_path / "params.yaml")
    assert yaml.safe_load(after)["storm"] == small_params()["derain"]


@pytest.mark.parametrize("recipe", ["- derain", "derain", "", "1: {a: 2}", "a: ["])
def test_what_is_no_recipe_is_refused(recipe: str) -> None:
    with pytest.raises(ValueError, match=r"mapping of sections|not YAML"):
        apply_recipe(PARAMS, recipe)


def test_the_diff_is_coloured_for_a_terminal_only() -> None:
    after = PARAMS.replace("seed: 1", "seed: 2")
    assert "\033[32m+seed: 2\033[0m\n" in difference(PARAMS, after, coloured=True)
    assert "\033" not in difference(PARAMS, after, coloured=False)


def test_yes_applies_and_shows_the_difference(checkout: Checkout) -> None:
    done = checkout.apply("derain: {train: {learning_rate: 0.001}}", "--yes")
    assert done.returncode == 0, done.stderr
    assert "+    learning_rate: 0.001\n" in done.stdout
    assert yaml.safe_load(checkout.params.read_text())["derain"]["train"]["learning_rate"] == 0.001
    assert checkout.files() == ["params.yaml", "recipe.yaml"]
    again = checkout.apply("derain: {train: {learning_rate: 0.001}}", "--yes")
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
    done = checkout.apply(recipe, "--yes")
    assert done.returncode == 1
    assert says in done.stderr
    assert ".partial" not in done.stderr
    assert checkout.params.read_text() == PARAMS
    assert checkout.files() == ["params.yaml", "recipe.yaml"]


def test_a_folder_that_is_no_checkout_is_refused(checkout: Checkout) -> None:
    checkout.params.unlink()
    done = checkout.apply("derain: {train: {learning_rate: 0.001}}", "--yes")
    assert done.stderr == "error: params.yaml is missing: run from the root of the checkout"


def test_without_a_terminal_nothing_is_applied(checkout: Checkout) -> None:
    done = checkout.apply("derain: {train: {learning_rate: 0.001}}")
    assert done.returncode == 1
    assert "YES=1" in done.stderr
    assert checkout.params.read_text() == PARAMS


@pytest.mark.parametrize(("answer", "applied"), [("y", True), ("Yes ", True), ("", False), ("n", False)])
def test_the_recipe_is_applied_only_if_the_user_agrees(checkout: Checkout, answer: str, applied: bool) -> None:
    checkout.monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    checkout.monkeypatch.setattr("builtins.input", lambda prompt: answer)
    checkout.apply("derain: {train: {learning_rate: 0.001}}")
    assert (checkout.params.read_text() != PARAMS) == applied
    assert checkout.files() == ["params.yaml", "recipe.yaml"]


def test_an_edit_made_before_the_answer_is_not_overwritten(checkout: Checkout) -> None:
    def think(prompt: str) -> str:
        checkout.params.write_text(PARAMS + "# mine\n")
        return "y"

    checkout.monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    checkout.monkeypatch.setattr("builtins.input", think)
    done = checkout.apply("derain: {train: {learning_rate: 0.001}}")
    assert "was changed by another program in the meantime" in done.stderr
    assert checkout.params.read_text() == PARAMS + "# mine\n"


def test_a_recipe_that_does_not_exist_is_named(checkout: Checkout) -> None:
    checkout.apply("derain: {}")
    Path("recipe.yaml").unlink()
    checkout.monkeypatch.setattr(sys, "argv", ["apply", "elsewhere.yaml"])
    with pytest.raises(SystemExit, match=r"no recipe elsewhere\.yaml"):
        run_command(main)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_the_byte_order_mark_stay(checkout: Checkout, end: str, mark: str) -> None:
    before = mark + PARAMS.rstrip("\n").replace("\n", end)  # without an end of the last line
    checkout.params.write_bytes(before.encode())
    done = checkout.apply("mixed: {train: {num_steps: 2000}}", "--yes")
    assert done.returncode == 0, done.stderr
    after = checkout.params.read_bytes().decode()
    assert after == before.replace("learning_rate: 0.008, num_steps: 1000", "learning_rate: 0.008, num_steps: 2000", 1)
    assert len(changed_lines(before, after)) == 2


def test_mixed_line_ends_stay_and_new_lines_end_as_most_do(checkout: Checkout) -> None:
    first, rest = PARAMS.split("\n", 1)
    checkout.params.write_bytes(f"{first}\n".encode() + rest.replace("\n", "\r\n").encode())
    assert checkout.apply("derain: {train: {learning_rate: 0.00071, network: {width: 40}}}", "--yes").returncode == 0
    after = checkout.params.read_bytes()
    assert after.startswith(f"{first}\n".encode())
    assert after.count(b"\n") - after.count(b"\r\n") == 1
    assert apply_recipe(PARAMS, "derain: {train: {learning_rate: 0.00071, network: {width: 40}}}").encode() == (
        after.replace(b"\r\n", b"\n")
    )


def test_a_file_that_is_not_utf8_is_refused_with_its_line(checkout: Checkout) -> None:
    first, rest = PARAMS.split("\n", 1)
    checkout.params.write_bytes(f"{first}\n# \u00fc\n".encode("latin-1") + rest.encode())
    done = checkout.apply("mixed: {train: {num_steps: 2000}}", "--yes")
    assert "params.yaml, line 2: not UTF-8; save the file as UTF-8" in done.stderr
    checkout.params.write_bytes(PARAMS.encode("utf-16"))
    with pytest.raises(ParamsError, match="line 1: not UTF-8"):
        check(checkout.params)


def test_a_full_disk_leaves_params_as_it_is(
    tmp_path: Path, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_disk(tmp_path / "small", "100k")
    checkout = Checkout(tmp_path / "small", monkeypatch, capsys)
    Path("filler").touch()
    with contextlib.suppress(OSError):
        Path("filler").write_bytes(bytes(10**7))
    Path("filler").write_bytes(bytes(Path("filler").stat().st_size - 4096))  # room for the recipe alone
    done = checkout.apply("denoise: {train: {steps: 1}}", "--yes")
    assert done.returncode == 1
    assert "No space left on device: free some space" in done.stderr
    assert checkout.params.read_text() == PARAMS
    assert checkout.files() == ["filler", "params.yaml", "recipe.yaml"]
