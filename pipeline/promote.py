"""Register a model folder; move the alias `champion` to it if it beats the champion on the same test set."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dgunet.checkpoint import load_model, read_card
from dgunet.hub import pull
from pipeline.config.params import load_section
from pipeline.dataloader.pairs import pairs
from pipeline.evaluation.baselines import NoBaseline
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.scores import evaluate
from pipeline.evaluation.settings import Evaluate
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import write_atomically
from pipeline.runtime.fingerprint import code_digest
from pipeline.runtime.provenance import commit, digest
from pipeline.tracking import registry, runs
from pipeline.tracking.registry import Version
from pipeline.tracking.settings import Promote

MEASURING_CODE = (
    "dgunet/images", "dgunet/inference.py", "dgunet/metrics.py", "dgunet/network", "dgunet/tensors.py",
    "pipeline/dataloader", "pipeline/degradations", "pipeline/evaluation", "pipeline/shards",
)  # fmt: skip
TEST, PSNR = "test", "test.restored.psnr"  # tags: what was measured on and how, mean PSNR in dB


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is to be the champion, why, and the mean PSNR in dB of who is champion now."""

    set_champion: bool
    reason: str
    champion_psnr: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Promote one task's model, if it deserves it, and write a receipt."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.promote", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--shards", required=True, type=Path, help="folder of test shards")
    parser.add_argument("--report", required=True, type=Path, help="folder that evaluate wrote")
    parser.add_argument("--receipt", required=True, type=Path, help="JSON to write")
    given = parser.parse_args(arguments)
    margin_db = load_section(f"{given.task}.promote", Promote).margin_db
    protocol = load_section(f"{given.task}.evaluate", Evaluate).protocol
    metrics = json.loads((given.report / "metrics.json").read_text())
    test = f"{metrics['test_index_sha256']} {protocol} Measured by {_measuring_code()[:12]}."
    ours = _psnr(metrics, "restored")

    with runs.connected():
        version = _registered(given.task, given.model, given.report, metrics, test)
        champion = registry.champion(given.task)
        if champion is None:
            verdict = first(metrics)
        elif champion.number == version.number:
            verdict = Decision(False, champion.tags.get("champion_because", "made champion by hand"), ours)
        else:
            psnr = champion_psnr(champion, given.shards, protocol, test)
            verdict = challenge(ours, psnr, margin_db, champion.number)
        if verdict.set_champion:
            registry.set_champion(version, verdict.reason, champion)
    reigning = version if verdict.set_champion else champion
    receipt = {
        "task": given.task,
        "version": version.number,
        "champion_version": reigning.number if reigning else None,
        "alias_moved": reigning is not None and reigning.number == version.number,
        "reason": verdict.reason,
        "psnr": ours,
        "champion_psnr": verdict.champion_psnr,
        "margin_db": margin_db,
    }
    write_atomically(given.receipt, json.dumps(receipt, indent=2, sort_keys=True, allow_nan=False) + "\n")
    title = "is the champion" if receipt["alias_moved"] else "is registered, not promoted"
    print(f"{given.task}: version {version.number} {title}: {verdict.reason}")


def first(metrics: Mapping[str, Any]) -> Decision:
    """Judge the first model of a task: it must beat doing nothing and the classical baseline."""
    ours = _psnr(metrics, "restored")
    for rival in ("degraded", "baseline"):
        theirs = _psnr(metrics, rival)
        if ours <= theirs:
            return Decision(False, f"{ours:.2f} dB does not beat the {rival} images' {theirs:.2f} dB", None)
    return Decision(
        True, f"the first, with {ours:.2f} dB where the baseline has {_psnr(metrics, 'baseline'):.2f} dB", ours
    )


def challenge(ours: float, theirs: float, margin_db: float, champion: int) -> Decision:
    """Judge a candidate by its lead over the champion, mean PSNR in dB on the same test set."""
    comparison = f"{ours:.2f} dB against the {theirs:.2f} dB of version {champion}, margin {margin_db:g} dB"
    if ours - theirs > margin_db:
        return Decision(True, f"beats the champion: {comparison}", ours)
    return Decision(False, f"does not beat the champion: {comparison}", theirs)


def champion_psnr(champion: Version, shards: Path, protocol: Protocol, test: str) -> float:
    """Return the champion's mean PSNR in dB on the test set `test`: as its tags tell, else measured now on `shards`."""
    if champion.tags.get(TEST) == test and PSNR in champion.tags:
        return float(champion.tags[PSNR])
    try:
        rival = load_model(pull(champion.uri)).to("cuda" if torch.cuda.is_available() else "cpu")
        return evaluate(rival, pairs(shards), NoBaseline("none"), protocol).restored.psnr
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the champion, version {champion.number} of {champion.task}, cannot be measured on {shards} ({error}); "
            f"if it is of no use any more, remove the alias `{registry.CHAMPION}` in MLflow"
        ) from error


def _registered(task: str, model: Path, report: Path, metrics: Mapping[str, Any], test: str) -> Version:
    """Return the version that holds the model folder, made if there is none, tagged with where it comes from."""
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
            registry.describe(version, tags)
        return version
    provenance = read_card(model).get("provenance", {})
    tags |= {
        "commit": provenance.get("commit") or commit(),
        "data": provenance.get("data", "unknown"),
        "dvc_lock": digest([Path("dvc.lock")]) if Path("dvc.lock").exists() else "none",
    }
    with runs.run(task, f"{task} {content[:8]}", {"model": content}, {}, system_metrics=False) as run:
        run.log(numbers, 0)
        run.files(report, "report")
        return registry.register(task, model, content, tags)


def _psnr(metrics: Mapping[str, Any], kind: str) -> float:
    """Return a mean PSNR of metrics.json in dB; ValueError if it has none."""
    psnr = metrics[kind]["psnr"]
    if psnr is None:
        raise ValueError(f"metrics.json has no PSNR of the {kind} images: remove its folder and run `make repro`")
    return float(psnr)


def _measuring_code() -> str:
    """Return the digest of all code that decides a PSNR: numbers measured by different code are not compared."""
    return code_digest(MEASURING_CODE)


if __name__ == "__main__":
    run_command(main)
