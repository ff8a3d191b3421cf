"""Register a model folder; move the alias `champion` to it if it beats the champion on the same test set."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from dgunet.checkpoint import load_model
from dgunet.hub import pull
from pipeline import registry, tracking
from pipeline.evaluation import Evaluate, evaluate
from pipeline.loader import pairs
from pipeline.manifest import write_whole
from pipeline.params import Promote, door, load_section
from pipeline.provenance import commit, digest


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate is to be the champion, and why."""

    crown: bool
    reason: str
    champion_psnr: float | None


def main() -> None:
    """Promote one task's model, if it deserves it, and write a receipt."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.promote", description=__doc__)
    parser.add_argument("--task", required=True, help="a section of params.yaml")
    parser.add_argument("--model", required=True, type=Path, help="model folder")
    parser.add_argument("--shards", required=True, type=Path, help="folder of test shards")
    parser.add_argument("--report", required=True, type=Path, help="folder that evaluate wrote")
    parser.add_argument("--receipt", required=True, type=Path, help="JSON to write")
    given = parser.parse_args()
    settings = load_section(f"{given.task}.promote", Promote)
    measuring = load_section(f"{given.task}.evaluate", Evaluate)
    metrics = json.loads((given.report / "metrics.json").read_text())
    test = f"{metrics['test_index_sha256']} {measuring.protocol}"
    content = digest(given.model.iterdir())
    numbers = {f"test.{name}": value for name, value in tracking.flattened(metrics).items()}

    with tracking.run(given.task, f"{given.task} {content[:8]}", {"model": content}, {}, system_metrics=False) as run:
        version = registry.registered(given.task, content)
        if version is None:
            run.log({name: value for name, value in numbers.items() if isinstance(value, float | int)}, 0)
            run.files(given.report, "report")
            tags = {
                "content": content,
                "commit": commit(),
                "data": json.loads((given.model / "config.json").read_text())["provenance"]["data"],
                "dvc_lock": digest([Path("dvc.lock")]) if Path("dvc.lock").exists() else "none",
                "test": test,
                **{name: str(value) for name, value in numbers.items()},
            }
            version = registry.register(given.task, given.model, run.id, tags)
        champion = registry.champion(given.task)
        if champion is None:
            verdict = first(metrics)
        elif champion.number == version.number:
            verdict = Verdict(False, champion.tags["champion_because"], metrics["restored"]["psnr"])
        else:
            psnr = float(champion.tags["test.restored.psnr"])
            if champion.tags["test"] != test:
                rival = load_model(pull(champion.uri))
                psnr = evaluate(rival, pairs(given.shards), measuring.baseline, measuring.protocol).restored.psnr
            verdict = challenge(metrics["restored"]["psnr"], psnr, settings.margin_db, champion.number)
        if verdict.crown:
            registry.crown(version, verdict.reason)
    reigning = registry.champion(given.task)
    receipt = {
        "task": given.task,
        "version": version.number,
        "champion_version": reigning.number if reigning else None,
        "alias_moved": reigning is not None and reigning.number == version.number,
        "reason": verdict.reason,
        "psnr": metrics["restored"]["psnr"],
        "champion_psnr": verdict.champion_psnr,
        "margin_db": settings.margin_db,
    }
    write_whole(given.receipt, json.dumps(receipt, indent=2, sort_keys=True) + "\n")
    title = "is the champion" if receipt["alias_moved"] else "is registered, not promoted"
    print(f"{given.task}: version {version.number} {title}: {verdict.reason}")


def first(metrics: dict[str, dict[str, float]]) -> Verdict:
    """Judge the first model of a task: it must beat doing nothing and the classical baseline."""
    ours = metrics["restored"]["psnr"]
    for rival in ("degraded", "baseline"):
        theirs = metrics[rival]["psnr"]
        if ours <= theirs:
            return Verdict(False, f"{ours:.2f} dB does not beat the {rival} images' {theirs:.2f} dB", None)
    return Verdict(
        True, f"the first, with {ours:.2f} dB where the baseline has {metrics['baseline']['psnr']:.2f} dB", ours
    )


def challenge(ours: float, theirs: float, margin_db: float, champion: int) -> Verdict:
    """Judge a candidate by its lead over the champion, mean PSNR in dB on the same test set."""
    comparison = f"{ours:.2f} dB against the {theirs:.2f} dB of version {champion}, margin {margin_db:g} dB"
    if ours - theirs > margin_db:
        return Verdict(True, f"beats the champion: {comparison}", ours)
    return Verdict(False, f"does not beat the champion: {comparison}", theirs)


if __name__ == "__main__":
    door(main)
