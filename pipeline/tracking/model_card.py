"""The model card of a registered version, as Markdown: purpose, scores, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOOTNOTE = (
    "The interval is that of the mean over photographs ({method}, {num_resamples} resamples, seed {seed}); it says how "
    "much the mean depends on which photographs the test split happens to hold."
)


def model_card(task: str, card: Mapping[str, Any], metrics: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """Return the card.

    Args:
        task: name of the task and of the registered model.
        card: content of config.json.
        metrics: content of metrics.json.
        facts: further lines of the table of provenance: degradation, protocol, checksums.
    """
    statistics = card.get("statistics")
    windows = (
        "the whole image"
        if statistics is None
        else f"windows of {statistics['window']} pixels ({', '.join(statistics['of'])})"
    )
    parts = [
        f"# {task}",
        "DGUNet (Mou, Wang, Zhang: Deep Generalized Unfolding Networks for Image Restoration, CVPR 2022), trained for "
        f"the task `{task}`.",
        f"    dgunet restore PHOTOS OUT --model models:/{task}@champion",
        "## Results",
        _results(metrics),
        _note(metrics),
        f"PSNR after each stage: {_stages(metrics)}.",
        "## Limits",
        "- It removes what it was trained on, the degradation below. Others are not removed, or made worse.\n"
        "- It was measured on the test split of its own task, in the protocol below, and on the benchmarks above.\n"
        "- What it adds is plausible, not evidence: do not use restored images to identify people or to measure.\n"
        f"- Statistics of its features are those of {windows}.",
        "## Provenance",
        _table({**facts, "sha256 of the weights": str(card.get("weights_sha256", "unknown"))}),
        "## Network",
        _table({name: str(value) for name, value in card["config"].items()}),
        "## Licence",
        "The code is under Apache-2.0. The weights are derived from the photographs that they were trained on: whether "
        "their licences set conditions for the use of the weights is for you to check (docs/datasets.md).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(metrics: Mapping[str, Any]) -> str:
    rows = ["| images | n | degraded | baseline | restored | gain | 95 % interval |", "|---|---|---|---|---|---|---|"]
    for name, found in {"test split": metrics, **metrics.get("benchmarks", {})}.items():
        psnrs = [_decibels(found.get(kind, {}).get("psnr")) for kind in ("degraded", "baseline", "restored")]
        interval, gain = found.get("gain_interval"), found.get("gain_db")
        between = "-" if interval is None else f"{interval['low']:+.2f} to {interval['high']:+.2f}"
        rows.append(
            f"| {name} | {found.get('num_images', '-')} | {' | '.join(psnrs)} | "
            f"{'-' if gain is None else f'{gain:+.2f}'} | {between} |"
        )
    for name, refused in metrics.get("not_measured", {}).items():
        rows.append(f"| {name} | not measured: {refused['reason']} | | | | | |")
    return "\n".join(rows)


def _note(metrics: Mapping[str, Any]) -> str:
    interval = metrics.get("gain_interval")
    if interval is None:
        return "Mean PSNR in dB. All test images are of one photograph: there is no interval, and little is known."
    return "Mean PSNR in dB. " + FOOTNOTE.format(**interval)


def _stages(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{number}: {_decibels(psnr)}" for number, psnr in metrics.get("stages", {}).items()) or "-"


def _decibels(psnr: float | None) -> str:
    return "-" if psnr is None else f"{psnr:.2f}"


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
