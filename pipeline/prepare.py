"""Makes the manifest: inspects all source images, rejects unusable ones, groups images of one scene, assigns splits."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dgunet.images.names import NO_PHOTO, describe_unread
from pipeline.config.params import load_section
from pipeline.preparation.inspection import group_scenes, inspect_images
from pipeline.preparation.inspection_cache import Inspection
from pipeline.preparation.leaks import write_thumbnails
from pipeline.preparation.settings import Prepare
from pipeline.preparation.splits import check_splits, split_of
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.files import write_atomically
from pipeline.sources.listing import Candidate, RejectedImage, describe, rejection_summary, require_images
from pipeline.sources.manifest import SPLITS, Entry, SplitName, write_manifest

CACHE_FILE = Path(".cache/prepare/inspections.sqlite")


@dataclass(frozen=True)
class Prepared:
    """What the sources hold.

    Attributes:
        entries: the usable images, in the manifest's order.
        rejected: the rejected and ignored files, each with its reason.
        no_photographs: for each source, how many files have a suffix that is not that of a photograph.
        thumbnails: by the hash of an image's pixels.
    """

    entries: list[Entry]
    rejected: list[RejectedImage]
    no_photographs: dict[str, Counter[str]]
    thumbnails: dict[str, bytes]


def main() -> None:
    """Write the manifest and the report for the sources that params.yaml names."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare", description=__doc__)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--report", required=True, type=Path)
    parser.add_argument("--thumbnails", required=True, type=Path, help="to compare benchmarks with (.npz)")
    args = parser.parse_args()
    prepared = prepare(load_section("prepare", Prepare), seed=load_section("seed", int), cache_file=CACHE_FILE)
    content = report(prepared)
    write_atomically(args.report, json.dumps(content, indent=1) + "\n")
    write_thumbnails(args.thumbnails, prepared.entries, prepared.thumbnails)
    write_manifest(args.manifest, prepared.entries)
    print(summary(content), f"the rejected images and the reasons are in {args.report}", sep="\n")


def prepare(settings: Prepare, *, seed: int, cache_file: Path) -> Prepared:
    """Inspect every image of the sources and assign the usable ones to splits.

    Args:
        settings: sources, limits and shares of the splits.
        seed: decides which scenes are held out.
        cache_file: the inspection cache.

    Raises:
        ValueError: a source does not exist or has no image, no image is usable, or a split is empty.
        OSError: the cache cannot be read or written.
    """
    listed = [require_images(source) for source in settings.sources]
    others = {
        describe(source): Counter(_suffix_of(item.reason) for item in items if item.reason.endswith(NO_PHOTO))
        for source, (_, items) in zip(settings.sources, listed, strict=True)
    }
    rejected = [item for _, items in listed for item in items]
    candidates = [candidate for found, _ in listed for candidate in found]
    usable: dict[tuple[str, str], tuple[Candidate, Inspection]] = {}
    progress = tqdm(candidates, "prepare", unit=" images", disable=None)
    for candidate, inspection in inspect_images(progress, round(settings.max_megapixels * 1e6), cache_file):
        reason = inspection.reason
        if not reason and min(inspection.height, inspection.width) < settings.min_side:
            reason = f"too small: {inspection.width}x{inspection.height}, min_side is {settings.min_side}"
        if not reason:
            pixels = inspection.sha256, inspection.degraded_sha256
            first, _ = usable.setdefault(pixels, (candidate, inspection))
            reason = "" if first is candidate else f"duplicate: same pixels as {first.degraded or first.uri}"
        if reason:
            rejected.append(RejectedImage(candidate.degraded or candidate.uri, reason))

    origin = ", ".join(describe(source) for source in settings.sources)
    if not usable:
        raise ValueError(f"{origin}: no usable image{rejection_summary(rejected)}")
    thumbnails = {inspection.sha256: inspection.thumbnail for _, inspection in usable.values()}
    scenes = group_scenes(thumbnails, cache_file)
    shares: dict[SplitName, float] = {"val": settings.split.val, "test": settings.split.test}
    check_splits(sorted(set(scenes.values())), seed=seed, shares=shares, origin=origin)
    entries = [
        Entry(
            uri=candidate.uri,
            sha256=inspection.sha256,
            height=inspection.height,
            width=inspection.width,
            split=split_of(scenes[inspection.sha256], seed=seed, shares=shares),
            scene=scenes[inspection.sha256],
            source=candidate.source,
            degraded=candidate.degraded,
            degraded_sha256=inspection.degraded_sha256 or None,
        )
        for candidate, inspection in usable.values()
    ]
    return Prepared(
        sorted(entries, key=lambda entry: entry.sort_key),
        sorted(rejected, key=lambda item: item.uri),
        others,
        thumbnails,
    )


def report(prepared: Prepared) -> dict[str, Any]:
    """Return the counts per split, the scenes of several images, and the rejected images with their reasons."""
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
            scene: [entry.uri for entry in members] for scene, members in scenes.items() if len(members) > 1
        },
        "left_out": [{"where": item.uri, "reason": item.reason} for item in prepared.rejected if not item.ignored],
        "ignored": dict(sorted(Counter(item.reason for item in prepared.rejected if item.ignored).items())),
        "no_photographs": {source: _most_first(counts) for source, counts in prepared.no_photographs.items() if counts},
    }


def summary(content: Mapping[str, Any]) -> str:
    """Return a report as a table of one line per split."""
    lines = [f"{'split':<7}{'images':>8}{'scenes':>8}{'megapixels':>12}"]
    for split, numbers in content["splits"].items():
        lines.append(f"{split:<7}{numbers['images']:>8}{numbers['scenes']:>8}{numbers['megapixels']:>12.1f}")
    for source, counts in content["no_photographs"].items():
        lines.append(f"{source}: {describe_unread(counts)}")
    lines.append(f"rejected: {len(content['left_out'])}, ignored: {sum(content['ignored'].values())}")
    return "\n".join(lines)


def _suffix_of(reason: str) -> str:
    return reason.removesuffix(NO_PHOTO).replace("no suffix", "")


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


if __name__ == "__main__":
    run_command(main)
