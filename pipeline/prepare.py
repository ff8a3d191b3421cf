"""The door from photographs to a manifest: images checked, scenes kept together, splits by content and seed."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config.params import load_section
from pipeline.preparation.inspection import Inspection, group_scenes, inspect_images
from pipeline.preparation.settings import Prepare
from pipeline.preparation.splits import check_splits, split_of
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import write_atomically
from pipeline.sources.listing import Candidate, RejectedImage, describe, rejection_summary, require_images
from pipeline.sources.manifest import SPLITS, Entry, SplitName, write_manifest

CACHE = Path(".cache/prepare/looks.sqlite")


@dataclass(frozen=True)
class Prepared:
    """The usable images in the manifest's order, and what was left out or ignored, with the reason."""

    entries: list[Entry]
    left_out: list[RejectedImage]


def main() -> None:
    """Look at the images that params.yaml names; write the manifest and the report."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare", description=__doc__)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--report", required=True, type=Path)
    given = parser.parse_args()
    prepared = prepare(load_section("prepare", Prepare), seed=load_section("seed", int), cache=CACHE)
    content = report(prepared)
    write_atomically(given.report, json.dumps(content, indent=1) + "\n")
    write_manifest(given.manifest, prepared.entries)
    print(summary(content), f"{given.report} says which and why", sep="\n")


def prepare(settings: Prepare, *, seed: int, cache: Path) -> Prepared:
    """Look once at every image of the sources and split the usable ones; the file `memory` keeps what was seen.

    Raises ValueError if a source is not there or has no image, if no image is usable, or if a split ends empty.
    """
    listed = [require_images(source) for source in settings.sources]
    left_out = [item for _, items in listed for item in items]
    images = [candidate for candidates, _ in listed for candidate in candidates]
    usable: dict[tuple[str, str], tuple[Candidate, Inspection]] = {}
    watched = tqdm(images, "prepare", unit=" images", disable=None)
    for candidate, look in inspect_images(watched, round(settings.max_megapixels * 1e6), cache):
        reason = look.reason
        if not reason and min(look.height, look.width) < settings.min_side:
            reason = f"too small: {look.width}x{look.height}, min_side is {settings.min_side}"
        if not reason:
            first, _ = usable.setdefault((look.sha256, look.degraded_sha256), (candidate, look))
            reason = "" if first is candidate else f"duplicate: same pixels as {first.degraded or first.uri}"
        if reason:
            left_out.append(RejectedImage(candidate.degraded or candidate.uri, reason))

    origin = ", ".join(describe(source) for source in settings.sources)
    if not usable:
        raise ValueError(f"{origin}: no usable image{rejection_summary(left_out)}")
    groups = group_scenes({look.sha256: look.thumbnail for _, look in usable.values()}, cache)
    shares: dict[SplitName, float] = {"val": settings.split.val, "test": settings.split.test}
    check_splits(sorted(set(groups.values())), seed=seed, shares=shares, origin=origin)
    entries = [
        Entry(
            uri=candidate.uri,
            sha256=look.sha256,
            height=look.height,
            width=look.width,
            split=split_of(groups[look.sha256], seed=seed, shares=shares),
            scene=groups[look.sha256],
            source=candidate.source,
            degraded=candidate.degraded,
            degraded_sha256=look.degraded_sha256 or None,
        )
        for candidate, look in usable.values()
    ]
    return Prepared(sorted(entries, key=lambda entry: entry.order), sorted(left_out, key=lambda item: item.uri))


def report(prepared: Prepared) -> dict[str, Any]:
    """Count images and scenes per split, name the scenes of several images, and what was left out and why."""
    scenes = defaultdict(list)
    for entry in prepared.entries:
        scenes[entry.scene].append(entry)
    return {
        "splits": {
            split: {
                "images": sum(entry.split == split for entry in prepared.entries),
                "scenes": sum(members[0].split == split for members in scenes.values()),
                "megapixels": sum(e.height * e.width for e in prepared.entries if e.split == split) / 1e6,
            }
            for split in SPLITS
        },
        "sources": dict(sorted(Counter(entry.source for entry in prepared.entries).items())),
        "scenes_of_several": {
            group: [entry.uri for entry in members] for group, members in scenes.items() if len(members) > 1
        },
        "left_out": [{"where": item.uri, "reason": item.reason} for item in prepared.left_out if not item.ignored],
        "ignored": dict(sorted(Counter(item.reason for item in prepared.left_out if item.ignored).items())),
    }


def summary(content: Mapping[str, Any]) -> str:
    """Return a report as a small table for the terminal."""
    lines = [f"{'split':<7}{'images':>8}{'scenes':>8}{'megapixels':>12}"]
    for split, numbers in content["splits"].items():
        lines.append(f"{split:<7}{numbers['images']:>8}{numbers['scenes']:>8}{numbers['megapixels']:>12.1f}")
    lines.append(f"left out: {len(content['left_out'])}, ignored: {sum(content['ignored'].values())}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
