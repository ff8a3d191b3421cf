"""The door of promotion, run for real against a SQLite store: who becomes champion, and what is left as it was."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from factories import small_params, write_folder

from dgunet.checkpoint import load_model, save_model
from dgunet.network import DGUNet, DGUNetConfig
from pipeline import promote
from pipeline.config.params import load_section
from pipeline.dataloader.pairs import pairs
from pipeline.evaluation.scores import evaluate
from pipeline.evaluation.settings import Evaluate
from pipeline.promote import challenge
from pipeline.runtime.provenance import digest
from pipeline.shards.format import INDEX, checksum
from pipeline.tracking import registry

pytestmark = pytest.mark.filterwarnings(  # MLflow's own, on import
    "ignore::ResourceWarning", "ignore::DeprecationWarning:mlflow", "ignore:.*Any type hint is inferred:UserWarning"
)


class Road:
    """A checkout that has come as far as promote: params.yaml, test shards, a model folder and its report."""

    def __init__(self) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(small_params()))
        Path("dvc.lock").write_text("schema: '2.0'\n")
        write_folder(Path("test"), [3])
        Path("report").mkdir()

    def model(self, seed: int, *, channels: int = 3) -> None:
        """Train, as it were."""
        sizes = DGUNetConfig(image_channels=channels, width=8, growth=4, head_growth=4, num_stages=2)
        card = {"task": "derain", "provenance": {"commit": "c0", "data": "da"}}
        save_model(DGUNet.with_seed(sizes, seed), Path("model"), card)

    def metrics(self, restored: float | None, degraded: float | None = 20.0, baseline: float | None = 22.0) -> None:
        """Evaluate, as it were: mean PSNRs in dB."""
        content = {
            **{
                kind: {"psnr": psnr, "ssim": 0.5}
                for kind, psnr in (("degraded", degraded), ("baseline", baseline), ("restored", restored))
            },
            "gain_db": None, "num_images": 3, "stages": {"1": 21.0, "2": restored},
            "benchmarks": {"BSD68 σ 25": {"restored": {"psnr": None, "ssim": 1.0}}},
            "test_index_sha256": checksum(Path("test") / INDEX),
        }  # fmt: skip
        Path("report/metrics.json").write_text(json.dumps(content))
        Path("report/gallery.html").write_text("before, after")

    def measure(self) -> float:
        """Return the mean PSNR in dB of the model as promote would measure it."""
        settings = load_section("derain.evaluate", Evaluate)
        return evaluate(load_model("model"), pairs(Path("test")), settings.baseline, settings.protocol).restored.psnr

    def promote(self) -> dict[str, Any]:
        """Run the door and return its receipt."""
        Path("receipt.json").unlink(missing_ok=True)  # as DVC does
        given = {"task": "derain", "model": "model", "shards": "test", "report": "report", "receipt": "receipt.json"}
        promote.main([word for name, value in given.items() for word in (f"--{name}", value)])

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        receipt: dict[str, Any] = json.loads(Path("receipt.json").read_text(), parse_constant=refuse)
        return receipt

    def candidate(self, seed: int, psnr: float | None) -> dict[str, Any]:
        """Promote a model with this result."""
        self.model(seed)
        self.metrics(psnr)
        return self.promote()


@pytest.fixture
def road(store, tmp_path, monkeypatch) -> Road:
    monkeypatch.chdir(tmp_path)
    return Road()


def tags(version: int) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version("derain", str(version)).tags


def versions() -> int:
    return len(mlflow.MlflowClient().search_model_versions("name = 'derain'"))


def test_the_first_model_is_champion_if_it_beats_input_and_baseline(road, capsys):
    receipt = road.candidate(0, 25.0)
    assert receipt == {
        "task": "derain", "version": 1, "champion_version": 1, "alias_moved": True,
        "reason": "the first, with 25.00 dB where the baseline has 22.00 dB",
        "psnr": 25.0, "champion_psnr": 25.0, "margin_db": 0.02,
    }  # fmt: skip
    assert registry.champion("derain").number == 1
    assert capsys.readouterr().out.startswith("derain: version 1 is the champion: the first")


@pytest.mark.parametrize(("psnr", "rival"), [(19.0, "degraded"), (20.0, "degraded"), (21.5, "baseline")])
def test_a_first_model_that_beats_less_is_registered_only(road, psnr, rival):
    receipt = road.candidate(0, psnr)
    assert (receipt["version"], receipt["champion_version"], receipt["alias_moved"]) == (1, None, False)
    assert f"does not beat the {rival} images" in receipt["reason"]
    assert registry.champion("derain") is None


def test_a_version_tells_where_it_comes_from_and_what_it_is_worth(road):
    road.candidate(0, 25.0)
    found = tags(1)
    assert found["commit"] == "c0"
    assert found["data"] == "da"
    assert found["dvc_lock"] == digest([Path("dvc.lock")])
    assert found["content"] == digest(Path("model").iterdir())
    assert found["test"].startswith(checksum(Path("test") / INDEX))
    assert found["test.restored.psnr"] == "25.0"
    run = mlflow.MlflowClient().get_run(mlflow.MlflowClient().get_model_version("derain", "1").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics.items() >= {"test.restored.psnr": 25.0, "test.stages.1": 21.0}.items()
    files = mlflow.MlflowClient().list_artifacts(run.info.run_id, "report")
    assert [file.path for file in files] == ["report/gallery.html", "report/metrics.json"]


def test_the_better_takes_the_alias_the_worse_does_not_and_a_rerun_changes_nothing(road):
    road.candidate(0, 25.0)
    better = road.candidate(1, 25.03)
    assert (better["version"], better["champion_version"], better["champion_psnr"]) == (2, 2, 25.03)
    assert tags(2)["champion_after"] == "1"
    champion, before = Path("receipt.json").read_bytes(), tags(2)
    road.promote()
    assert Path("receipt.json").read_bytes() == champion
    assert tags(2) == before

    worse = road.candidate(2, 25.04)
    assert (worse["version"], worse["champion_version"], worse["alias_moved"]) == (3, 2, False)
    assert worse["reason"] == ("does not beat the champion: 25.04 dB against the 25.03 dB of version 2, margin 0.02 dB")
    receipt = Path("receipt.json").read_bytes()
    road.promote()
    assert Path("receipt.json").read_bytes() == receipt
    assert versions() == 3
    assert registry.champion("derain").number == 2


def test_a_champion_of_another_test_set_is_measured_on_this_one(road):
    road.model(0)
    truth = road.measure()
    road.metrics(99.0)
    assert road.promote()["alias_moved"]
    before = checksum(Path("test") / INDEX)
    for path in Path("test").iterdir():
        path.unlink()
    Path("test").rmdir()
    write_folder(Path("test"), [2])
    assert checksum(Path("test") / INDEX) != before
    truth = road.measure()
    receipt = road.candidate(1, truth + 1)
    assert receipt["alias_moved"], "99 dB were on other images"
    assert f"against the {truth:.2f} dB of version 1" in receipt["reason"]


@pytest.mark.parametrize("missing", ["test", "test.restored.psnr"])
def test_a_champion_without_our_tags_is_measured(road, missing):
    road.candidate(0, 99.0)
    truth = road.measure()
    mlflow.MlflowClient().delete_model_version_tag("derain", "1", missing)
    receipt = road.candidate(1, truth - 1)
    assert (receipt["version"], receipt["champion_version"]) == (2, 1)
    assert f"against the {truth:.2f} dB" in receipt["reason"]
    assert receipt["champion_psnr"] == pytest.approx(truth)


def test_an_alias_set_by_hand_is_respected(road):
    assert not road.candidate(0, 21.0)["alias_moved"]
    mlflow.MlflowClient().set_registered_model_alias("derain", "champion", "1")
    receipt = road.promote()
    assert (receipt["champion_version"], receipt["reason"]) == (1, "made champion by hand")


def test_a_champion_that_cannot_be_measured_stops_with_what_to_do(road):
    road.model(0, channels=1)
    road.metrics(25.0)
    road.promote()
    mlflow.MlflowClient().delete_model_version_tag("derain", "1", "test.restored.psnr")
    road.model(1)
    with pytest.raises(ValueError, match=r"version 1 of derain, cannot be measured on test .*remove the alias"):
        road.promote()
    assert not Path("receipt.json").exists()


def test_after_a_champion_that_was_deleted_the_next_is_the_first(road):
    road.candidate(0, 30.0)
    mlflow.MlflowClient().delete_model_version("derain", "1")
    receipt = road.candidate(1, 25.0)
    assert (receipt["champion_version"], receipt["alias_moved"]) == (2, True)


def test_a_report_without_a_number_promotes_nothing(road):
    road.model(0)
    road.metrics(None)
    with pytest.raises(ValueError, match="no PSNR of the restored images"):
        road.promote()
    assert not Path("receipt.json").exists()


def test_a_champion_measured_by_other_code_is_measured_again(road, monkeypatch):
    road.candidate(0, 90.0)  # by some code that is too kind
    monkeypatch.setattr(promote, "_measuring_code", lambda: "of today")
    receipt = road.candidate(1, 60.0)
    assert "60.00 dB against the 31.69 dB of version 1" in receipt["reason"]
    assert receipt["alias_moved"]


def test_a_number_that_changed_on_the_same_test_is_told_anew(road):
    road.candidate(0, 25.0)
    road.metrics(26.0)
    road.promote()
    assert tags(1)["test.restored.psnr"] == "26.0"


def test_new_numbers_of_the_same_model_are_in_its_tags(road):
    road.candidate(0, 25.0)
    params = small_params()
    params["derain"]["evaluate"]["protocol"]["colour"] = "rgb"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    road.metrics(24.0)
    assert road.promote()["alias_moved"]
    assert tags(1)["test.restored.psnr"] == "24.0"
    assert "all channels" in tags(1)["test"]
    assert versions() == 1


def test_the_margin_must_be_exceeded():
    assert not challenge(30.5, 30.0, 0.5, 1).set_champion
    assert challenge(30.75, 30.0, 0.5, 1).set_champion
    assert not challenge(30.0, 30.0, 0.0, 1).set_champion
