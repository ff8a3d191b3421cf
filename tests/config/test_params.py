"""params.yaml: every mistake is told with its place, all at once, and nothing is guessed."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import small_params

from pipeline.config.params import ParamsError, load_section
from pipeline.preparation.settings import Prepare
from pipeline.synthesis.settings import Synthesize
from pipeline.tracking.settings import Promote
from pipeline.training.settings import Train
from pipeline.validate import check


def write(folder: Path, params: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path


def changed(place: str, value: Any) -> dict[str, Any]:
    """The committed values with one changed, or removed if `value` is None."""
    params = copy.deepcopy(small_params())
    *path, last = place.split(".")
    section: Any = params
    for part in path:
        section = section[part]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return params


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("seed", "one", "seed: should be a valid integer, not 'one'"),
        ("seed", None, "seed: missing"),
        ("prepare.split.val", 1.5, "prepare.split.val: should be less than 1"),
        ("prepare.min_sides", 3, "prepare.min_sides: no such key"),
        ("prepare.sources", [{"kind": "startr"}], "prepare.sources.0: tag 'startr' found"),
        ("denoise.synthesize.tile_size", 3.5, "denoise.synthesize.tile_size: should be a valid integer"),
        ("denoise.synthesize.degradation.sigma", [50, 25], "sigma: expected [from, to]"),
        ("denoise.synthesize.copies", 2, "denoise.synthesize: copies must be 1 where online is true, not 2"),
        ("derain.synthesize.degradation.kind", "rain", "derain.synthesize.degradation: tag 'rain' found"),
        ("derain.train.learning_rate", -1, "derain.train.learning_rate: should be greater than 0, not -1"),
        ("derain.train.learning_rates", 1, "derain.train.learning_rates: no such key"),
        ("derain.train.warmup_steps", 10**9, "derain.train: warmup_steps (1000000000) must be smaller than num_steps"),
        ("derain.train.network.num_stages", 1, "derain.train.network.num_stages: must be a whole number of at least 2"),
        ("derain.evaluate.protocol.colour", "rbg", "derain.evaluate.protocol.colour: should be 'rgb' or 'luma'"),
        ("derain.promote.margin_db", "much", "derain.promote.margin_db: should be a valid number, not 'much'"),
        ("derain.promote", None, "derain.promote: missing"),
        ("derain.trian", {}, "derain.trian: no such key"),
        ("tasks", ["deran"], "tasks: deran has no section; there is: denoise, derain"),
        ("tasks", ["derain", "derain"], "tasks: a task is named twice"),
        ("tasks", [], "tasks: list should have at least 1 item"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, place: str, value: Any, told: str) -> None:
    with pytest.raises(ParamsError) as error:
        check(write(tmp_path, changed(place, value)))
    assert told.lower() in str(error.value).lower()


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    params = changed("derain.train.learning_rate", -1)
    params["denoise"]["promote"]["margin_db"] = -1
    with pytest.raises(ParamsError, match=r"denoise\.promote\.margin_db") as error:
        check(write(tmp_path, params))
    assert "derain.train.learning_rate" in str(error.value)


def test_a_file_that_is_missing_or_no_yaml_is_told(tmp_path: Path) -> None:
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
    assert load_section("derain.train", Train, path).loss == "charbonnier_edge"
    assert load_section("denoise.synthesize", Synthesize, path).online
    assert load_section("prepare", Prepare, path).sources[0].kind == "starter"
    assert load_section("seed", int, path) == small_params()["seed"]
    with pytest.raises(ParamsError, match="derain has no `tarin`; there is: synthesize, train, evaluate, promote"):
        load_section("derain.tarin", Promote, path)
