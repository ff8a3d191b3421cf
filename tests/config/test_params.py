"""params.yaml: defaults are merged; every mistake is reported with the place to edit, all at once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import PROJECT, repeated_defaults, small_params

from pipeline.config.params import (
    GENERAL,
    ParamsError,
    load_section,
    load_task_section,
    merge,
    merged_section,
    merged_task,
    task_names,
)
from pipeline.preparation.settings import Prepare
from pipeline.synthesis.settings import Synthesize
from pipeline.training.settings import Train
from pipeline.validate import General, check


def write(folder: Path, params: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path


def changed(place: str, value: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """The committed values of two tasks with one changed, or removed if `value` is None."""
    params = params or {name: small_params()[name] for name in (*GENERAL, "denoise", "derain")}
    *path, last = place.split(".")
    section: Any = params
    for part in path:
        section = section.setdefault(part, {})
    if value is None:
        del section[last]
    else:
        section[last] = value
    return params


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("seed", "one", "seed: should be a valid integer, not 'one'"),
        ("seed", None, "seed: missing"),
        ("prepare.split.val", 1.5, "prepare.split.val: should be less than 1"),
        ("prepare.min_sides", 3, "prepare.min_sides: no such key"),
        ("prepare.sources", [{"kind": "startr"}], "prepare.sources.0: there is no kind 'startr'; available: 'starter'"),
        ("denoise.synthesize.tile_size", 3.5, "denoise.synthesize.tile_size: should be a valid integer"),
        ("denoise.synthesize.degradation.sigma", [50, 25], "sigma: expected [from, to]"),
        ("denoise.synthesize.copies", 2, "denoise.synthesize: copies must be 1 where online is true, not 2"),
        (
            "derain.synthesize.degradation.kind",
            "rain",
            "derain.synthesize.degradation: there is no kind 'rain'; available: ",
        ),
        ("derain.train.learning_rate", -1, "derain.train.learning_rate: should be greater than 0, not -1"),
        ("derain.train.learning_rates", 1, "derain.train.learning_rates: no such key"),
        ("derain.train.warmup_steps", 10**9, "derain.train: warmup_steps (1000000000) must be smaller than num_steps"),
        ("derain.train.network.num_stages", 1, "derain.train.network.num_stages: must be a whole number of at least 2"),
        ("derain.evaluate.protocol.colour", "rbg", "derain.evaluate.protocol.colour: should be 'rgb' or 'luma'"),
        (
            "prepare.sources",
            [{"kind": "zip"}],
            "prepare.sources.0: there is no kind 'zip'; available: 'starter', 'folder'",
        ),
        ("prepare.sources", [{"path": "photos"}], "prepare.sources.0: needs a `kind`"),
        ("promote.margin_db", "much", "promote.margin_db: should be a valid number, not 'much'"),
        ("promote.min_scenes", 1, "promote.min_scenes: should be greater than or equal to 2, not 1"),
        ("promote.min_scenes", None, "promote.min_scenes: missing"),
        ("promote", None, "promote: missing"),
        ("derain.promote", {"margin_db": 0.1}, "derain.promote: no such key"),
        ("derain.train", None, "derain.train: missing; write `train: {}` to take all values from `defaults`"),
        ("derain.train", 3, "derain.train: should be a mapping, not 3"),
        ("derain", 3, "derain: should be a mapping of synthesize, train, evaluate, not 3"),
        ("tune.search_space.learning_rate.low", 1, "tune.search_space.learning_rate: low (1.0) must be smaller"),
        ("tune.space", {}, "tune.space: no such key"),
        ("defaults", None, "defaults: missing"),
        ("defaults", 3, "defaults: should be a mapping, not 3"),
        ("defaults.train", 3, "defaults.train: should be a mapping, not 3"),
        ("defaults.trian", {}, "defaults.trian: no such key; available: synthesize, train, evaluate"),
        ("defaults.train.learning_rates", 1, "defaults.train.learning_rates: no such key"),
        ("defaults.train.learning_rate", -1, "defaults.train.learning_rate: should be greater than 0, not -1"),
        ("defaults.train.loss", None, "defaults.train.loss: missing"),
        ("defaults.train.network.width", None, "defaults.train.network.width: missing"),
        ("defaults.evaluate.protocol.crop", None, "defaults.evaluate.protocol.crop: missing"),
        ("defaults.synthesize.degradation", {"kind": "none"}, "defaults.synthesize.degradation: has no default"),
        ("defaults.evaluate.baseline", {"kind": "none"}, "defaults.evaluate.baseline: has no default"),
        ("derain.synthesize.degradation", None, "derain.synthesize.degradation: missing"),
        ("derain.evaluate.baseline", None, "derain.evaluate.baseline: missing"),
        ("derain.evaluate.benchmarks", ["Rain"], "derain.evaluate.benchmarks: there is no benchmark `Rain`"),
        ("derain.evaluate.benchmarks", ["Set11", "Set11"], "derain.evaluate.benchmarks: a benchmark is named twice"),
        ("benchmarks", None, "benchmarks: missing"),
        ("benchmarks.Set11.dataset", None, "benchmarks.Set11: give dataset or clean"),
        ("benchmarks.Set11.clean", "x", "benchmarks.Set11: give dataset or clean"),
        ("benchmarks.Set11.dataset", "set1", "benchmarks.Set11: there is no data set `set1`; available: bsds500, "),
        ("benchmarks.Set11.split", "train", "benchmarks.Set11: data set set11 has no split `train`; available: test"),
        (
            "benchmarks.Rain100H.degradation",
            {"kind": "none"},
            "benchmarks.Rain100H: rain100h has its own degraded images",
        ),
        ("benchmarks.Rain100H.degraded", "x", "benchmarks.Rain100H: a dataset has its own degraded images"),
        ("prepare.sources", [{"kind": "dataset", "name": "set1"}], "there is no data set `set1`; available: bsds500, "),
        ("benchmarks.Set11.clear", "x", "benchmarks.Set11.clear: no such key"),
        ("benchmarks.Set11.protocol.color", "luma", "benchmarks.Set11.protocol.color: no such key"),
        ("benchmarks.Set5 x2.degradation.scale", "two", "benchmarks.Set5 x2.degradation.scale: "),
        ("derain.trian", {}, "derain.trian: no such key"),
        ("tasks", ["deran"], "tasks: deran has no section; available: denoise, derain"),
        ("tasks", ["derain", "derain"], "tasks: a task is named twice"),
        ("tasks", [], "tasks: list should have at least 1 item"),
    ],
)
def test_a_mistake_is_reported_with_its_place(tmp_path: Path, place: str, value: Any, says: str) -> None:
    with pytest.raises(ParamsError) as error:
        check(write(tmp_path, changed(place, value)))
    assert says.lower() in str(error.value).lower()


@pytest.mark.parametrize("name", ["my task", "a;b", "$(touch x)", "-rf", "a.b", "ü", "a/b", "", 7, True, "a\nb"])
def test_a_task_whose_name_cannot_be_part_of_a_command_is_refused(tmp_path: Path, name: object) -> None:
    params: dict[Any, Any] = small_params()
    params[name] = params["denoise"]
    with pytest.raises(ParamsError, match="the name of a task has letters, digits, _ and - only"):
        check(write(tmp_path, params))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    params = changed("derain.train.learning_rate", -1)
    params["promote"]["margin_db"] = -1
    params["defaults"]["train"]["average_decay"] = 2
    with pytest.raises(ParamsError) as error:
        check(write(tmp_path, params))
    assert str(error.value).splitlines()[1:] == [
        "  promote.margin_db: should be greater than or equal to 0, not -1",
        "  defaults.train.average_decay: should be less than 1, not 2",
        "  derain.train.learning_rate: should be greater than 0, not -1",
    ]


def test_a_wrong_default_is_found_also_where_every_task_states_another_value(tmp_path: Path) -> None:
    params = changed("defaults.train.loss", "l7")
    for task in task_names(params):
        params[task]["train"]["loss"] = "charbonnier"
    with pytest.raises(ParamsError, match=r"defaults\.train\.loss: should be"):
        check(write(tmp_path, params))


def test_a_task_takes_from_the_defaults_what_it_does_not_state(tmp_path: Path) -> None:
    params = small_params()
    params["defaults"]["train"] |= {"learning_rate": 0.5, "mixup_alpha": 0.25}
    params["defaults"]["train"]["network"]["growth"] = 3
    params["derain"]["train"] = {"mixup_alpha": 0.75, "network": {"width": 12}}
    train = load_task_section("derain", "train", Train, write(tmp_path, params))
    assert (train.learning_rate, train.mixup_alpha) == (0.5, 0.75)
    assert (train.network.width, train.network.growth) == (12, 3)
    assert merged_section(params, "derain", "train") == train.model_dump()


def test_a_mapping_of_another_kind_takes_nothing_from_the_defaults() -> None:
    default = {"baseline": {"kind": "median", "size": 3}, "other": 1}
    assert merge(default, {"baseline": {"kind": "opening", "width": 5}}) == {
        "baseline": {"kind": "opening", "width": 5}, "other": 1,
    }  # fmt: skip
    assert merge(default, {"baseline": {"size": 5}})["baseline"] == {"kind": "median", "size": 5}
    assert merge(default, {"baseline": {"kind": "median"}})["baseline"] == {"kind": "median", "size": 3}


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("derain.train.network.width", 0, "derain.train.network.width: "),
        ("defaults.train.network.width", 0, "defaults.train.network.width: "),
        ("defaults.train.network.wide", 0, "defaults.train.network.wide: no such key"),
        ("defaults.train.patch_size", None, "defaults.train.patch_size: missing"),
    ],
)
def test_one_section_reports_a_mistake_where_it_is_to_be_edited(
    tmp_path: Path, place: str, value: Any, says: str
) -> None:
    params = small_params()
    params["derain"]["train"]["network"] = {"width": 16}
    if place.startswith("defaults"):
        del params["derain"]["train"]["network"]
    path = write(tmp_path, changed(place, value, params))
    with pytest.raises(ParamsError) as error:
        load_task_section("derain", "train", Train, path)
    assert str(error.value).startswith(says)


def test_the_committed_defaults_are_all_used_and_no_task_repeats_one() -> None:
    params = small_params()
    assert not repeated_defaults(params)
    for stage, defaults in params["defaults"].items():
        for name in defaults:
            sections = [params[task][stage] for task in task_names(params)]
            states_all = [section.get(name) for section in sections if not isinstance(section.get(name), dict)]
            assert None in states_all, f"every task states {stage}.{name}: its default is of no use"


def test_a_repeated_default_is_found() -> None:
    params = small_params()
    params["derain"]["train"] = {"loss": params["defaults"]["train"]["loss"], "network": {"width": 16, "growth": 9}}
    assert repeated_defaults(params) == ["derain.train.loss", "derain.train.network.width"]


def test_every_value_of_a_task_is_recorded_with_a_run() -> None:
    params = small_params()
    recorded = merged_task(params, "derain")
    assert recorded["promote"] == params["promote"]
    assert recorded["evaluate"]["protocol"]["colour"] == "luma"
    assert recorded["evaluate"]["protocol"]["quantise"] is True
    assert recorded["train"].keys() == Train.model_fields.keys()


def test_sections_that_are_no_tasks_are_those_that_are_validated_as_such() -> None:
    assert set(General.model_fields) == set(GENERAL)


def test_a_file_that_is_missing_or_no_yaml_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="run from the root of the checkout"):
        check(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("tasks: [denoise\nseed: 1")
    with pytest.raises(ParamsError, match=r"(?s)is not YAML: .*line 2"):
        check(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("[1, 2]")
    with pytest.raises(ParamsError, match="mapping of sections"):
        check(tmp_path / "params.yaml")


def test_a_section_is_read_by_its_dotted_name(tmp_path: Path) -> None:
    path = write(tmp_path, small_params())
    assert load_task_section("derain", "train", Train, path).loss == "charbonnier_edge"
    assert load_task_section("denoise", "synthesize", Synthesize, path).online
    assert load_section("prepare", Prepare, path).sources[0].kind == "starter"
    assert load_section("seed", int, path) == small_params()["seed"]
    with pytest.raises(ParamsError, match=r"prepare\.split has no `vla`; available: val, test"):
        load_section("prepare.split.vla", float, path)
    with pytest.raises(
        ParamsError, match=r"params\.yaml has no task `deran`; available: denoise, derain, denoise_gray"
    ):
        load_task_section("deran", "train", Train, path)
    with pytest.raises(ParamsError, match="has no task `prepare`"):
        load_task_section("prepare", "train", Train, path)


def test_params_yaml_is_checked_without_packages_that_load_slowly() -> None:
    slow = {"torch", "ray", "mlflow", "sklearn", "skimage", "scipy", "pandas", "matplotlib", "webdataset", "dvc"}
    code = (
        "import sys; sys.argv = ['validate']\n"
        "from pipeline import validate; validate.main()\n"
        f"print(*sorted({slow} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
