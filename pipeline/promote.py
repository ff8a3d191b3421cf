"""Registers a model folder; it becomes the champion if it beats the current one on the same test set.

It must exceed a margin even with the lower bound of the interval of its gain: pipeline/tracking/decision.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dgunet.checkpoint import WRITTEN_KEYS, load_model, read_card, save_model
from dgunet.config import LocalStatistics
from dgunet.hub.registry import pull
from dgunet.metrics import HIGHEST_PSNR
from pipeline.config.params import load_section, load_task_section
from pipeline.dataloader.pairs import pairs
from pipeline.evaluation.baselines import NoBaseline
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scores import evaluate
from pipeline.evaluation.settings import Evaluate
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import write_atomically
from pipeline.runtime.fingerprint import code_digest
from pipeline.runtime.provenance import commit, digest
from pipeline.shards.format import read_index
from pipeline.tracking import registry, runs
from pipeline.tracking.decision import DECIMALS, Decision, compare_with_baselines, compare_with_champion
from pipeline.tracking.model_card import model_card
from pipeline.tracking.registry import Version
from pipeline.tracking.settings import Promote

MEASURING_CODE = (
    "dgunet/config.py", "dgunet/images", "dgunet/inference.py", "dgunet/metrics.py", "dgunet/network",
    "dgunet/tensors.py", "dgunet/tiling.py",
    "pipeline/dataloader", "pipeline/degradations", "pipeline/evaluation", "pipeline/shards",
)  # fmt: skip
TEST, PSNR = "test", "test.restored.psnr"  # tags: test set, protocol and measuring code; mean PSNR in dB


def main(arguments: Sequence[str] | None = None) -> None:
    """Register one task's model, set the alias if it is the new champion, and write the promotion record."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.promote", description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--shards", required=True, type=Path, help="folder of test shards")
    parser.add_argument("--report", required=True, type=Path, help="folder that evaluate wrote")
    parser.add_argument("--record", required=True, type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    settings = load_section("promote", Promote)
    protocol = load_task_section(args.task, "evaluate", Evaluate).protocol
    metrics = json.loads((args.report / "metrics.json").read_text())
    test = f"{metrics['test_index_sha256']} {protocol} Measured by {_measuring_code()[:12]}."
    psnr, scores = _psnr(metrics, "restored"), read_scores(args.report / "per_image.csv", args.task)

    with runs.connected(), _with_statistics(args.model, metrics) as model:
        version = _registered(args, model, metrics, test)
        registry.store_scores(version, test, scores["restored"])
        with registry.exclusive(args.task):
            champion = registry.champion(args.task)
            if champion is None:
                decision = compare_with_baselines(scores, settings)
            elif champion.number == version.number:
                decision = _earlier_decision(champion)
            elif champion.tags.get(registry.CONTENT) == version.tags[registry.CONTENT] and not version.was_champion:
                decision = Decision(True, f"the weights of version {champion.number}, stored with newer code", psnr)
            else:
                champion_scores = measured_scores(champion, args.shards, protocol, test)
                decision = _compared(scores["restored"], champion_scores, champion, settings)
            decision = _with_consent(decision, version, settings)
            if decision.set_champion:
                registry.set_champion(version, decision.reason, champion, decision.gain)
            elif champion is None or champion.number != version.number:
                registry.set_challenger(version)
    champion = version if decision.set_champion else champion
    is_champion = champion is not None and champion.number == version.number
    record = {
        "task": args.task,
        "version": version.number,
        "champion_version": champion.number if champion else None,
        "alias_moved": is_champion,
        "reason": decision.reason,
        "psnr": psnr,
        "champion_psnr": psnr if is_champion else decision.champion_psnr,
        "gain": decision.gain,
        "margin_db": settings.margin_db,
        "min_scenes": settings.min_scenes,
    }
    write_atomically(args.record, json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n")
    title = "is the champion" if is_champion else "is registered, but not the champion"
    print(f"{args.task}: version {version.number} {title}: {decision.reason}")


@contextmanager
def _with_statistics(folder: Path, metrics: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a copy of a model folder with the windows that evaluate chose; the folder itself if it chose none."""
    chosen = metrics.get("local_statistics")
    if chosen is None:
        yield folder
        return
    model, card = load_model(folder), read_card(folder)
    model.local_statistics = LocalStatistics(chosen["window"], tuple(chosen["of"]))
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        save_model(model, copy, {name: card[name] for name in card.keys() - set(WRITTEN_KEYS)})
        yield copy


def _earlier_decision(champion: Version) -> Decision:
    """Return the decision that made the champion, from its tags."""
    reason = champion.tags.get(registry.CHAMPION_BECAUSE, "made champion by hand")
    gain = champion.tags.get(registry.CHAMPION_GAIN, registry.NO_GAIN)
    return Decision(False, reason, None, None if gain == registry.NO_GAIN else json.loads(gain))


def _compared(
    candidate: Mapping[str, float], champion_scores: Mapping[str, float], champion: Version, settings: Promote
) -> Decision:
    """Return the decision between a candidate and the champion; ValueError if they are of different images."""
    try:
        return compare_with_champion(candidate, champion_scores, champion.number, settings)
    except ValueError as error:
        raise ValueError(
            f"{error}: measure the candidate again with `{_measure_again(champion.task)}`; if that does not help, "
            f"delete the artifacts {registry.TEST_SCORES} of the run of version {champion.number} in MLflow, so that "
            "the champion, too, is measured again"
        ) from error


def _with_consent(decision: Decision, version: Version, settings: Promote) -> Decision:
    """Return the decision, changed if a person must or may decide."""
    if decision.asks_a_person:
        reason = f"{decision.reason}; add photographs, or decide by hand"
    elif not decision.set_champion:
        return decision
    elif registry.ROLLED_BACK in version.tags:
        reason = f"{decision.reason}; but it was rolled back by hand, on {version.tags[registry.ROLLED_BACK]}"
    elif settings.require_approval:
        reason = f"{decision.reason}; it waits for approval"
    else:
        return decision
    command = f"make approve TASK={version.task} VERSION={version.number}"
    return replace(decision, set_champion=False, reason=f"{reason}: {command}")


def read_scores(path: Path, task: str) -> dict[str, dict[str, float]]:
    """Return the PSNRs in dB of the test images, of each kind of image by the key of the image.

    Args:
        path: per_image.csv of a report.
        task: its task, to say how it is made.

    Raises:
        ValueError: the file is absent, or has no number for an image.
    """
    scores: dict[str, dict[str, float]] = {"degraded": {}, "baseline": {}, "restored": {}}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["set"] == "test":
                    for kind, psnrs in scores.items():
                        psnrs[row["key"]] = _finite(float(row[f"{kind}_psnr"]))
        if not scores["restored"]:
            raise ValueError("it has no image of the test split")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used ({error}): run `{_measure_again(task)}`") from error
    return scores


def _measure_again(task: str) -> str:
    return f".venv/bin/dvc repro --force --single-item evaluate@{task}"


def _finite(psnr: float) -> float:
    """Return a PSNR in dB in the form in which it enters a mean, rounded as in reports. Raises ValueError for NaN."""
    if math.isnan(psnr):
        raise ValueError("a PSNR is not a number")
    return round(min(psnr, HIGHEST_PSNR), DECIMALS)


def measured_scores(version: Version, shards: Path, protocol: Protocol, test: str) -> dict[str, float]:
    """Return the PSNR in dB of each test image of a registered version: stored ones of `test`, else measured now.

    Args:
        version: the version, usually the champion.
        shards: folder of test shards to measure on.
        protocol: how to measure.
        test: test set, protocol and measuring code of the PSNRs.

    Raises:
        ValueError: the version cannot be loaded or measured.
    """
    stored = registry.scores(version, test)
    if stored is not None:
        return stored
    try:
        model = load_model(pull(version.uri)).to("cuda" if torch.cuda.is_available() else "cpu")
        images = evaluate(model, pairs(shards), NoBaseline("none"), protocol).images
        return {image.key: _finite(image.restored.psnr) for image in images}
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the champion, version {version.number} of {version.task}, cannot be measured on {shards} ({error}); "
            f"if it is no longer needed, remove the alias `{registry.CHAMPION}` in MLflow"
        ) from error


def _registered(args: argparse.Namespace, model: Path, metrics: Mapping[str, Any], test: str) -> Version:
    """Return the version with this model folder and the current code; register it if needed, and update its tags."""
    task, shards, report = args.task, args.shards, args.report
    content = digest(model.iterdir())
    numbers = {
        f"test.{name}": float(value)
        for name, value in runs.flattened(metrics).items()
        if isinstance(value, float | int)
    }
    tags = {TEST: test, **{name: str(value) for name, value in numbers.items()}, PSNR: str(_psnr(metrics, "restored"))}
    version = registry.registered(task, content)
    if version is not None:
        if any(version.tags.get(name) != tags[name] for name in (TEST, PSNR)):
            registry.set_tags(version, tags)
        return version
    provenance = read_card(model).get("provenance", {})
    tags |= {
        "commit": provenance.get("commit") or commit(),
        "data": provenance.get("data", "unknown"),
        "dvc_lock": digest([Path("dvc.lock")]) if Path("dvc.lock").exists() else "none",
    }
    key = {"model": content, "code": registry.stored_code_digest()}
    card = model_card(task, read_card(model), metrics, _facts(task, shards, tags))
    with runs.run(task, f"{task} {content[:8]}", key, {}, system_metrics=False) as run:
        run.log(numbers, 0)
        run.log_files(report, "report")
        if (lock := Path(runs.LOCK_FILE)).exists():
            run.log_lock_file(lock)
        return registry.register(task, model, content, tags, card)


def _facts(task: str, shards: Path, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the lines of the card on where the model comes from and how it was measured."""
    return {
        "degradation": f"`{json.dumps(read_index(shards).recipe.get('degradation'))}`",
        "protocol": str(load_task_section(task, "evaluate", Evaluate).protocol),
        "commit": tags["commit"],
        "sha256 of the index of its training shards": tags["data"],
        "sha256 of the index of its test shards": tags[TEST].split()[0],
        "sha256 of dvc.lock": tags["dvc_lock"],
    }


def _psnr(metrics: Mapping[str, Any], kind: str) -> float:
    """Return a mean PSNR of metrics.json in dB; ValueError if it has none."""
    psnr = metrics[kind]["psnr"]
    if psnr is None:
        raise ValueError(f"metrics.json has no PSNR of the {kind} images: remove its folder and run `make repro`")
    return float(psnr)


def _measuring_code() -> str:
    """Return the digest of the code that decides a PSNR; numbers that different code measured are not compared."""
    return code_digest(MEASURING_CODE)


if __name__ == "__main__":
    run_command(main)
