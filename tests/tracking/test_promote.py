"""The command promote against a SQLite store: which version becomes champion, and what stays unchanged."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from factories import PROJECT, small_params, write_folder
from mlflow.exceptions import MlflowException

from dgunet.checkpoint import load_model, save_model
from dgunet.config import LocalStatistics
from dgunet.hub.registry import pull
from dgunet.network import DGUNet, DGUNetConfig
from pipeline import approve, promote, rollback
from pipeline.config.params import load_task_section
from pipeline.dataloader.pairs import pairs
from pipeline.evaluation.scores import evaluate
from pipeline.evaluation.settings import Evaluate
from pipeline.reporting.tables import write_tables
from pipeline.runtime.provenance import digest
from pipeline.shards.format import INDEX, checksum
from pipeline.tracking import registry

pytestmark = pytest.mark.filterwarnings(  # MLflow's own, on import
    "ignore::ResourceWarning", "ignore::DeprecationWarning:mlflow", "ignore:.*Any type hint is inferred:UserWarning"
)


class Checkout:
    """What promote reads: params.yaml, test shards, a model folder and its report."""

    def __init__(self) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(small_params()))
        Path("dvc.lock").write_text("schema: '2.0'\n")
        write_folder(Path("test"), [3])
        Path("report").mkdir()

    def model(self, seed: int, *, channels: int = 3) -> None:
        """Write a model folder with random weights."""
        sizes = DGUNetConfig(image_channels=channels, width=8, growth=4, head_growth=4, num_stages=2)
        card = {"task": "derain", "provenance": {"commit": "c0", "data": "da"}}
        save_model(DGUNet.with_seed(sizes, seed), Path("model"), card)

    def metrics(self, restored: float | None, degraded: float | None = 20.0, baseline: float | None = 22.0) -> None:
        """Write a report with these mean PSNRs in dB; images differ, and differ alike for each kind and each model."""
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
        means = {"degraded": degraded or 0.0, "baseline": baseline or 0.0, "restored": restored or 0.0}
        keys = [pair.key for pair in pairs(Path("test"))]
        offsets = [0.25 * number - 0.125 * (len(keys) - 1) for number in range(len(keys))]
        self.write_scores(
            {
                kind: {key: mean + offset for key, offset in zip(keys, offsets, strict=True)}
                for kind, mean in means.items()
            }
        )

    def write_scores(self, scores: dict[str, dict[str, float]]) -> None:
        """Write these PSNRs in dB of each image to the report, beside those of a benchmark, which do not count."""
        with Path("report/per_image.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["set", "key", *(f"{kind}_psnr" for kind in scores), "gain_db"])
            for key in scores["restored"]:
                writer.writerow(["test", key, *(f"{scores[kind][key]:.4f}" for kind in scores), "0.0"])
            writer.writerow(["BSD68 σ 25", "elsewhere", *("99.0" for _ in scores), "0.0"])

    def choose_windows(self) -> None:
        """Have the report say that windows restore better, as evaluate writes it."""
        path = Path("report/metrics.json")
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "local_statistics": {"window": 96, "of": ["norm"]}})
        )

    def measure(self) -> float:
        """Return the mean PSNR in dB of the model as promote would measure it."""
        settings = load_task_section("derain", "evaluate", Evaluate)
        return evaluate(load_model("model"), pairs(Path("test")), settings.baseline, settings.protocol).restored.psnr

    def promote(self) -> dict[str, Any]:
        """Run the command and return the promotion record."""
        Path("record.json").unlink(missing_ok=True)  # as DVC does
        options = {"task": "derain", "model": "model", "shards": "test", "report": "report", "record": "record.json"}
        promote.main([word for name, value in options.items() for word in (f"--{name}", value)])

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        record: dict[str, Any] = json.loads(Path("record.json").read_text(), parse_constant=refuse)
        return record

    def candidate(self, seed: int, psnr: float | None) -> dict[str, Any]:
        """Promote a model with this result."""
        self.model(seed)
        self.metrics(psnr)
        return self.promote()


@pytest.fixture
def checkout(store, tmp_path, monkeypatch) -> Checkout:
    monkeypatch.chdir(tmp_path)
    return Checkout()


def tags(version: int) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version("derain", str(version)).tags


def versions() -> int:
    return len(mlflow.MlflowClient().search_model_versions("name = 'derain'"))


def test_the_first_model_becomes_champion_if_it_beats_degraded_images_and_baseline(checkout, capsys):
    record = checkout.candidate(0, 25.0)
    assert record == {
        "task": "derain", "version": 1, "champion_version": 1, "alias_moved": True,
        "reason": "the first champion, with 25.00 dB; the baseline has 22.00 dB; "
        "mean gain +3.000 dB, 95 % interval +3.000 to +3.000 dB over 3 photographs",
        "psnr": 25.0, "champion_psnr": 25.0, "margin_db": 0.02, "min_scenes": 3,
        "gain": {
            "over": "the baseline images", "mean": 3.0, "num_photographs": 3,
            "interval": {
                "low": 3.0, "high": 3.0, "level": 0.95, "num_photographs": 3, "num_resamples": 10_000, "seed": 0,
                "method": "percentile bootstrap and Student's t over photographs, the wider bounds",
            },
        },
    }  # fmt: skip
    assert registry.champion("derain").number == 1
    assert capsys.readouterr().out.startswith("derain: version 1 is the champion: the first champion, with")


def test_the_registered_model_has_the_windows_that_evaluate_chose(checkout):
    checkout.model(0)
    checkout.metrics(25.0)
    whole = Path("model/config.json").read_bytes()
    checkout.choose_windows()
    checkout.promote()
    checkout.promote()
    assert versions() == 1
    assert Path("model/config.json").read_bytes() == whole
    found = load_model(pull("models:/derain/1"))
    assert found.local_statistics == LocalStatistics(96, ("norm",))
    for name, weights in load_model("model").state_dict().items():
        assert torch.equal(weights, found.state_dict()[name])


@pytest.mark.parametrize(("psnr", "kind"), [(19.0, "degraded"), (20.0, "degraded"), (21.5, "baseline")])
def test_a_first_model_that_does_not_beat_both_is_registered_only(checkout, psnr, kind):
    record = checkout.candidate(0, psnr)
    assert (record["version"], record["champion_version"], record["alias_moved"]) == (1, None, False)
    assert f"do not beat the {kind} images" in record["reason"]
    assert registry.champion("derain") is None


def test_a_version_has_its_provenance_and_its_metrics_in_tags(checkout):
    checkout.candidate(0, 25.0)
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
    assert [file.path for file in files] == ["report/gallery.html", "report/metrics.json", "report/per_image.csv"]


def test_a_better_model_becomes_champion_a_worse_one_does_not_and_a_rerun_changes_nothing(checkout):
    checkout.candidate(0, 25.0)
    better = checkout.candidate(1, 25.03)
    assert (better["version"], better["champion_version"], better["champion_psnr"]) == (2, 2, 25.03)
    assert (better["gain"]["over"], better["gain"]["mean"], better["gain"]["interval"]["low"]) == (
        "version 1",
        0.03,
        0.03,
    )
    assert tags(2)["champion_after"] == "1"
    champion, before = Path("record.json").read_bytes(), tags(2)
    checkout.promote()
    assert Path("record.json").read_bytes() == champion
    assert tags(2) == before

    worse = checkout.candidate(2, 25.04)
    assert (worse["version"], worse["champion_version"], worse["alias_moved"]) == (3, 2, False)
    assert worse["champion_psnr"] == 25.03
    assert worse["reason"] == (
        "does not beat the champion: 25.04 dB against 25.03 dB of version 2, margin 0.02 dB; "
        "mean gain +0.010 dB, 95 % interval +0.010 to +0.010 dB over 3 photographs"
    )
    record = Path("record.json").read_bytes()
    checkout.promote()
    assert Path("record.json").read_bytes() == record
    assert versions() == 3
    assert registry.champion("derain").number == 2


def test_a_champion_that_was_measured_on_another_test_set_is_measured_again(checkout):
    checkout.model(0)
    truth = checkout.measure()
    checkout.metrics(99.0)
    assert checkout.promote()["alias_moved"]
    before = checksum(Path("test") / INDEX)
    for path in Path("test").iterdir():
        path.unlink()
    Path("test").rmdir()
    write_folder(Path("test"), [4])
    assert checksum(Path("test") / INDEX) != before
    truth = checkout.measure()
    record = checkout.candidate(1, truth + 10)
    assert record["alias_moved"], "99 dB were on other images"
    assert f"against {truth:.2f} dB of version 1" in record["reason"]


def forget_scores(version: int) -> None:
    """Remove the scores of each test image from the run of a version, as an older checkout has not stored them."""
    shutil.rmtree(stored_scores(version).parent)


def stored_scores(version: int) -> Path:
    run_id = mlflow.MlflowClient().get_model_version("derain", str(version)).run_id
    artifacts = mlflow.MlflowClient().get_run(run_id).info.artifact_uri
    (file,) = (Path(artifacts.removeprefix("file://")) / registry.TEST_SCORES).iterdir()
    return file


def test_a_champion_without_scores_of_the_images_is_measured(checkout):
    checkout.candidate(0, 99.0)
    truth = checkout.measure()
    forget_scores(1)
    record = checkout.candidate(1, truth - 1)
    assert (record["version"], record["champion_version"]) == (2, 1)
    assert f"against {truth:.2f} dB" in record["reason"]
    assert record["champion_psnr"] == pytest.approx(truth, abs=1e-4)


def test_scores_of_other_images_are_an_error_that_says_what_to_do(checkout):
    checkout.candidate(0, 25.0)
    file = stored_scores(1)
    content = json.loads(file.read_text())
    del content["psnr"]["pair0001"]
    file.write_text(json.dumps(content))
    says = (
        r"version 1 has no PSNR of the test image pair0001: measure the candidate again with `\.venv/bin/dvc repro "
        r"--force --single-item evaluate@derain`; if that does not help, delete the artifacts test_scores of the run"
    )
    with pytest.raises(ValueError, match=says):
        checkout.candidate(1, 26.0)
    assert aliases() == {"champion": "1"}
    assert not Path("record.json").exists()


def test_a_better_mean_that_few_photographs_do_not_show_is_not_enough(checkout):
    checkout.candidate(0, 25.0)
    checkout.model(1)
    checkout.metrics(25.5)
    gains = {"pair0000": 2.5, "pair0001": -0.75, "pair0002": -0.25}
    champion = json.loads(stored_scores(1).read_text())["psnr"]
    restored = {key: champion[key] + gain for key, gain in gains.items()}
    others = {kind: dict.fromkeys(restored, 20.0) for kind in ("degraded", "baseline")}
    checkout.write_scores({**others, "restored": restored})
    record = checkout.promote()
    assert record["reason"].startswith(
        "3 photographs cannot tell whether it beats the champion: 25.50 dB against 25.00 dB"
    )
    assert record["gain"]["interval"]["low"] == pytest.approx(-3.8472, abs=1e-4)  # 0.5 - 4.30265 · 1.75 / √3
    assert aliases() == {"champion": "1", "challenger": "2"}


def test_too_few_photographs_give_a_first_champion_but_no_second_one_unless_it_is_asked_for(checkout):
    shutil.rmtree("test")
    write_folder(Path("test"), [1])
    first = checkout.candidate(0, 25.0)
    assert first["alias_moved"]
    assert first["reason"].endswith("1 photograph cannot tell whether it is better (promote.min_scenes: 3)")
    record = checkout.candidate(1, 40.0)
    assert (record["champion_version"], record["champion_psnr"], record["gain"]["interval"]) == (1, 25.0, None)
    assert record["reason"] == (
        "not judged: the test set has 1 photograph, and promote.min_scenes asks for 3; 40.00 dB against 25.00 dB of "
        "version 1; add photographs, or decide by hand: make approve TASK=derain VERSION=2"
    )
    assert aliases() == {"champion": "1", "challenger": "2"}
    approve.main(["--task", "derain", "--version", "2"])
    again = checkout.promote()
    assert (again["reason"], again["gain"], again["champion_psnr"]) == ("approved by hand", None, 40.0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("set,key,degraded_psnr,baseline_psnr,restored_psnr\n", "no image of the test split"),
        ("set,key,degraded_psnr,baseline_psnr,restored_psnr\ntest,a,1,1,nan\n", "a PSNR is not a number"),
        ("set,key,degraded_psnr,baseline_psnr,restored_psnr\ntest,a,1\n", "NoneType"),
        ("set,key\ntest,a\n", "degraded_psnr"),
    ],
)
def test_a_report_without_scores_of_the_images_says_how_they_are_made(tmp_path, content, says):
    path = tmp_path / "per_image.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=says) as error:
        promote.read_scores(path, "derain")
    assert str(error.value).endswith("run `.venv/bin/dvc repro --force --single-item evaluate@derain`")


def test_scores_are_read_from_the_report_as_evaluate_writes_it(checkout):
    checkout.model(0)
    settings = load_task_section("derain", "evaluate", Evaluate)
    found = evaluate(load_model("model"), pairs(Path("test")), settings.baseline, settings.protocol)
    other = replace(found, images=tuple(replace(image, key=f"other_{image.key}") for image in found.images))
    write_tables(Path("report"), found, {"Set5": other}, "0" * 64)
    assert promote.read_scores(Path("report/per_image.csv"), "derain") == {
        kind: {image.key: pytest.approx(getattr(image, kind).psnr, abs=1e-4) for image in found.images}
        for kind in ("degraded", "baseline", "restored")
    }


def test_a_perfect_image_counts_as_in_a_mean(tmp_path):
    path = tmp_path / "per_image.csv"
    path.write_text("set,key,degraded_psnr,baseline_psnr,restored_psnr\ntest,a,20.00004,21.0,inf\n")
    assert promote.read_scores(path, "derain") == {
        "degraded": {"a": 20.0},
        "baseline": {"a": 21.0},
        "restored": {"a": 100},
    }


def test_an_alias_set_by_hand_is_respected(checkout):
    assert not checkout.candidate(0, 21.0)["alias_moved"]
    mlflow.MlflowClient().set_registered_model_alias("derain", "champion", "1")
    record = checkout.promote()
    assert (record["champion_version"], record["reason"]) == (1, "made champion by hand")


def test_a_champion_that_cannot_be_measured_is_an_error_that_says_what_to_do(checkout):
    checkout.model(0, channels=1)
    checkout.metrics(25.0)
    checkout.promote()
    forget_scores(1)
    checkout.model(1)
    with pytest.raises(ValueError, match=r"version 1 of derain, cannot be measured on test .*remove the alias"):
        checkout.promote()
    assert not Path("record.json").exists()


def test_without_the_deleted_champion_the_next_model_is_the_first(checkout):
    checkout.candidate(0, 30.0)
    mlflow.MlflowClient().delete_model_version("derain", "1")
    record = checkout.candidate(1, 25.0)
    assert (record["champion_version"], record["alias_moved"]) == (2, True)


def test_a_report_without_a_number_promotes_nothing(checkout):
    checkout.model(0)
    checkout.metrics(None)
    with pytest.raises(ValueError, match="no PSNR of the restored images"):
        checkout.promote()
    assert not Path("record.json").exists()


def test_a_champion_that_other_code_measured_is_measured_again(checkout, tmp_path, monkeypatch):
    checkout.candidate(0, 90.0)  # too high, as code with a fault may measure it
    for path in promote.MEASURING_CODE:
        (tmp_path / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (PROJECT / path).is_dir() else shutil.copy)(PROJECT / path, tmp_path / "code" / path)
    monkeypatch.setattr("pipeline.runtime.fingerprint.PROJECT", tmp_path / "code")
    monkeypatch.setattr(registry, "stored_code_digest", lambda: "as before")
    same = checkout.candidate(1, 60.0)
    assert "60.00 dB against 90.00 dB of version 1" in same["reason"]
    with (tmp_path / "code" / "dgunet" / "network" / "blocks.py").open("a") as file:
        file.write("# changed")
    other = checkout.candidate(2, 60.0)
    assert "60.00 dB against 31.69 dB of version 1" in other["reason"]
    assert other["alias_moved"]


def test_newer_code_with_the_weights_of_the_champion_becomes_champion_once(checkout, monkeypatch):
    checkout.candidate(0, 25.0)
    monkeypatch.setattr(registry, "stored_code_digest", lambda: "newer")
    newer = checkout.candidate(0, 25.0)
    assert (newer["version"], newer["champion_version"]) == (2, 2)
    assert newer["reason"] == "the weights of version 1, stored with newer code"
    assert (tags(2)["champion_after"], tags(2)["code"]) == ("1", "newer")
    mlflow.MlflowClient().set_registered_model_alias("derain", "champion", "1")
    again = checkout.promote()
    assert (again["version"], again["champion_version"]) == (2, 1), "an alias that was moved back by hand stays"
    assert versions() == 2


def test_a_psnr_that_changed_is_updated_in_the_tags(checkout):
    checkout.candidate(0, 25.0)
    checkout.metrics(26.0)
    checkout.promote()
    assert tags(1)["test.restored.psnr"] == "26.0"
    assert sorted(json.loads(stored_scores(1).read_text())["psnr"].values()) == [25.75, 26.0, 26.25]


def test_metrics_of_another_protocol_are_updated_in_the_tags(checkout):
    checkout.candidate(0, 25.0)
    params = small_params()
    params["derain"]["evaluate"]["protocol"]["colour"] = "rgb"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    checkout.metrics(24.0)
    assert checkout.promote()["alias_moved"]
    assert tags(1)["test.restored.psnr"] == "24.0"
    assert "all channels" in tags(1)["test"]
    assert versions() == 1


def aliases() -> dict[str, str]:
    found = mlflow.MlflowClient().get_registered_model("derain").aliases
    return {alias: str(number) for alias, number in found.items()}


def test_aliases_name_the_champion_the_one_before_and_the_newest_that_did_not_become_one(checkout):
    checkout.candidate(0, 25.0)
    assert aliases() == {"champion": "1"}
    checkout.candidate(1, 26.0)
    assert aliases() == {"champion": "2", "previous": "1"}
    checkout.candidate(2, 20.0)
    assert aliases() == {"champion": "2", "previous": "1", "challenger": "3"}
    checkout.candidate(3, 27.0)
    assert aliases() == {"champion": "4", "previous": "2", "challenger": "3"}


def test_a_rollback_swaps_the_aliases_and_is_not_undone_by_the_next_promotion(checkout, capsys):
    checkout.candidate(0, 25.0)
    checkout.candidate(1, 26.0)
    rollback.main(["--task", "derain"])
    assert aliases() == {"champion": "1", "previous": "2"}
    assert "version 1 is the champion again; version 2 was rolled back" in capsys.readouterr().out
    record = checkout.candidate(1, 26.0)
    assert record["champion_version"] == 1
    assert "it was rolled back by hand" in record["reason"]
    assert "make approve TASK=derain VERSION=2" in record["reason"]
    approve.main(["--task", "derain", "--version", "2"])
    assert aliases()["champion"] == "2"
    assert tags(2)["champion_because"] == "approved by hand"


def test_what_cannot_be_rolled_back_or_approved_is_refused(checkout):
    with pytest.raises(ValueError, match="derain has no champion in the registry"):
        rollback.main(["--task", "derain"])
    checkout.candidate(0, 25.0)
    with pytest.raises(ValueError, match="no previous champion: version 1 is the first"):
        rollback.main(["--task", "derain"])
    with pytest.raises(ValueError, match="derain has no version 7 in the registry; available: 1"):
        approve.main(["--task", "derain", "--version", "7"])
    assert aliases() == {"champion": "1"}


def test_where_approval_is_required_a_better_candidate_waits(checkout):
    checkout.candidate(0, 25.0)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["promote"]["require_approval"] = True
    Path("params.yaml").write_text(yaml.safe_dump(params))
    record = checkout.candidate(1, 26.0)
    assert (record["champion_version"], record["champion_psnr"]) == (1, 25.0)
    assert record["reason"].endswith("it waits for approval: make approve TASK=derain VERSION=2")
    assert aliases() == {"champion": "1", "challenger": "2"}
    approve.main(["--task", "derain", "--version", "2"])
    assert aliases() == {"champion": "2", "previous": "1"}


def test_the_card_is_the_description_and_lies_beside_the_weights(checkout):
    checkout.candidate(0, 25.0)
    card = mlflow.MlflowClient().get_model_version("derain", "1").description
    assert "| test split | 3 | 20.00 | 22.00 | 25.00 |" in card
    assert "| commit | c0 |" in card
    assert f"| sha256 of the index of its test shards | {checksum(Path('test') / INDEX)} |" in card
    assert (pull("models:/derain@champion") / "README.md").read_text() == card


@pytest.mark.slow
def test_two_promotions_at_once_end_in_one_state(checkout, store):
    checkout.candidate(0, 25.0)
    processes = []
    for number, psnr in ((1, 26.0), (2, 27.0), (3, 26.5)):
        checkout.model(number)
        checkout.metrics(psnr)
        for name in ("model", "report"):
            shutil.copytree(name, f"{name}{number}")
        options = {"task": "derain", "model": f"model{number}", "shards": "test", "report": f"report{number}"}
        options["record"] = f"record{number}.json"
        arguments = [word for item in options.items() for word in (f"--{item[0]}", item[1])]
        command = [sys.executable, "-m", "pipeline.promote", *arguments]
        processes.append(
            subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.PIPE)
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert versions() == 4
    best = max(range(2, 5), key=lambda number: float(tags(number)["test.restored.psnr"]))
    found = aliases()
    assert found["champion"] == str(best), "whatever the order, each was compared with the champion of its moment"
    assert tags(best)["champion_after"] == found["previous"]
    assert "promotion_by" not in mlflow.MlflowClient().get_registered_model("derain").tags


def test_the_claim_of_a_process_that_is_gone_does_not_block(checkout):
    checkout.candidate(0, 25.0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for claim in (f"{socket.gethostname()} {gone.pid} {time.time()}", f"elsewhere 1 {time.time() - 7200}"):
        mlflow.MlflowClient().set_registered_model_tag("derain", registry.CLAIM, claim)
        with registry.exclusive("derain"):
            assert mlflow.MlflowClient().get_registered_model("derain").tags[registry.CLAIM].split()[1] == str(
                os.getpid()
            )
        assert registry.CLAIM not in mlflow.MlflowClient().get_registered_model("derain").tags


def test_a_claim_that_the_database_refuses_waits_for_the_other_process(checkout, monkeypatch):
    """Two processes insert the tag at the same time: SQLite refuses the second insert."""
    checkout.candidate(0, 25.0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    set_tag, is_claimed = mlflow.MlflowClient.set_registered_model_tag, []

    def refuse_once(client, name, key, value):
        if is_claimed:
            return set_tag(client, name, key, value)
        is_claimed.append(True)
        set_tag(client, name, key, f"{socket.gethostname()} {gone.pid} {time.time()}")
        raise MlflowException("UNIQUE constraint failed: registered_model_tags.key")

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_tag", refuse_once)
    with registry.exclusive("derain"):
        assert mlflow.MlflowClient().get_registered_model("derain").tags[registry.CLAIM].split()[1] == str(os.getpid())

    def refuse(client, name, key, value):
        raise MlflowException("read-only database")

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_tag", refuse)
    with pytest.raises(MlflowException, match="read-only"), registry.exclusive("derain"):
        pass
