"""Prints how many hours and bytes a published recipe takes on GPUs, and the source of each number: `make plan`.

Nothing is guessed. Sizes follow from the recipe and the network; images per second were measured by `make bench-gpu`
for the same network, patch size and precision, or are given by the user. Unknown numbers are marked as unknown.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from dgunet.network import DGUNet, DGUNetConfig
from pipeline.config.params import (
    GENERAL,
    WITHOUT_DEFAULT,
    Place,
    default_section,
    merge,
    read_params,
    validated_merge,
)
from pipeline.runtime.entry_point import run_command
from pipeline.runtime.environment import read_environment
from pipeline.runtime.files import readable_size
from pipeline.sources.manifest import SPLITS, Entry, read_manifest
from pipeline.synthesis.settings import Synthesize
from pipeline.synthesis.tiles import num_tiles, select_images
from pipeline.training.settings import Train

RECIPES = Path("infra") / "recipes"
RESULTS = Path("benchmarks") / "results"
GPU_RESULTS, LOADER_RESULTS = RESULTS / "gpu.md", RESULTS / "loader.md"
MANIFEST = Path("data") / "manifest.jsonl"
# The networks of benchmarks/gpu.py by the names in its table; a test compares them.
MEASURED = {
    "derain DGUNet": {"width": 40, "growth": 20, "head_growth": 16, "num_stages": 7, "share_stages": True},
    "deblur DGUNet+": {"width": 96, "growth": 48, "head_growth": 0, "num_stages": 7, "share_stages": False},
}
Kind = TypeVar("Kind")
BYTES_OF_A_WEIGHT = 4  # float32
CHECKPOINTS_KEPT = 2
TAR_BLOCK, NPY_HEADER = 512, 128  # bytes
BYTES_OF_A_RECORD = 1024  # record of a pair: header and JSON, padded


@dataclass(frozen=True)
class Recipe:
    """A task with its published recipe: the file, the name of the task, and its sections merged with params.yaml."""

    file: Path
    task: str
    synthesize: Synthesize
    train: Train
    min_side: int


@dataclass(frozen=True)
class Row:
    """A line of the plan: quantity, value, and the source of the value."""

    quantity: str
    value: str
    source: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan of one task."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.plan", description=__doc__)
    parser.add_argument("--task", required=True, help="a task, or a recipe of infra/recipes such as derain_plus")
    parser.add_argument("--gpus", required=True, type=int, help="number of GPUs")
    parser.add_argument("--images-per-second", type=float, help="speed of one GPU (default: the measured one)")
    args = parser.parse_args(arguments)
    recipe = read_recipe(args.task)
    if not 1 <= args.gpus <= recipe.train.batch_size:
        raise ValueError(
            f"GPUS={args.gpus}: a batch of {recipe.file} has {recipe.train.batch_size} images, so it can use 1 to "
            f"{recipe.train.batch_size} GPUs"
        )
    if args.images_per_second is not None and not args.images_per_second > 0:
        raise ValueError(f"IMAGES_PER_SECOND={args.images_per_second:g} must be more than 0")
    print(table(plan(recipe, args.gpus, args.images_per_second)))
    print(
        "\nThe hours do not include preparation, validation and the exchange of gradients, which were not measured on "
        "GPUs. For the cost, multiply the GPU hours by the price that you pay."
    )


def read_recipe(name: str) -> Recipe:
    """Return a published recipe by the name of its file or of a task in it. Raises ValueError if there is none."""
    files = sorted(RECIPES.glob("*.yaml"))
    if not files:
        raise ValueError(f"there are no recipes in {RECIPES}: run from the root of the checkout")
    contents = {file: read_params(file) for file in files}
    file = RECIPES / f"{name}.yaml"
    if file not in contents:
        having = [each for each in files if name in contents[each]]
        if not having:
            raise ValueError(f"there is no recipe {name!r}; available: {', '.join(file.stem for file in files)}")
        file = having[0]
    tasks = [task for task in contents[file] if task not in GENERAL]
    task = name if name in tasks else tasks[0]  # tasks in one file have the same recipe, except for one value
    params = read_params()

    def section(stage: str, kind: type[Kind]) -> Kind:
        own = merge(params.get(task, {}).get(stage, {}), contents[file][task].get(stage, {}))
        place = Place(f"{file}: {task}.{stage}", own)
        return validated_merge(place, default_section(params, stage), kind, WITHOUT_DEFAULT[stage])

    min_side = merge(params.get("prepare", {}), contents[file].get("prepare", {})).get("min_side", 0)
    return Recipe(file, task, section("synthesize", Synthesize), section("train", Train), int(min_side))


def plan(recipe: Recipe, gpus: int, images_per_second: float | None) -> list[Row]:
    """Return the lines of the plan.

    Args:
        recipe: what is trained.
        gpus: number of GPUs.
        images_per_second: of one GPU; None takes the measured value, if there is one.
    """
    train, counted = recipe.train, "counted: dgunet.network with the sizes of the recipe"
    weights = num_parameters(recipe) * BYTES_OF_A_WEIGHT
    images = train.num_steps * train.batch_size
    rate, source = (images_per_second, "given: IMAGES_PER_SECOND") if images_per_second else measured_rate(train)
    rows = [
        Row("training images", f"{images:,}", f"{recipe.file}: {train.num_steps:,} steps of {train.batch_size}"),
        Row("network", f"{weights // BYTES_OF_A_WEIGHT / 1e6:.1f} M parameters", counted),
        Row("images/s of one GPU", f"{rate:g}" if rate else "not known", source),
    ]
    hours = None
    if rate:
        hours = images / (rate * gpus) / 3600
        rows += [
            Row(f"images/s of {gpus} GPUs", f"at most {rate * gpus:g}", "the line above, times the GPUs"),
            Row("hours", f"at least {hours:.1f} ({hours * gpus:.1f} GPU hours)", "training images / images/s"),
            _loader_row(rate),
        ]
    else:
        rows.append(Row("hours", "not known", "training images / images/s"))
    rows += _shard_rows(recipe)
    return rows + _checkpoint_rows(train, weights, hours) + _traffic_rows(recipe, weights, gpus)


def num_parameters(recipe: Recipe) -> int:
    """Return the number of weights of the recipe's network."""
    config = DGUNetConfig(image_channels=recipe.synthesize.channels, **recipe.train.network.model_dump())
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DGUNet(config).parameters())


def measured_rate(train: Train) -> tuple[float | None, str]:
    """Return the images/s that benchmarks/results/gpu.md has for this network, patch and precision, and the source.

    If there is no such row, return None, and what to do.
    """
    remedy = "give IMAGES_PER_SECOND=…, or measure with `make bench-gpu`"
    if not GPU_RESULTS.is_file():
        return None, f"there is no {GPU_RESULTS}: no GPU was measured: {remedy}"
    text = GPU_RESULTS.read_text(encoding="utf-8")
    head = re.search(r"^(.+), torch \S+; \d+ images of (\d+)²", text, re.M)
    network = train.network.model_dump()
    names = [name for name, sizes in MEASURED.items() if sizes.items() <= network.items()]
    if network["sensing_ratio_percent"] is not None or not names or not head or int(head[2]) != train.patch_size:
        return None, f"{GPU_RESULTS} has no row for this network with patches of {train.patch_size}²: {remedy}"
    row = re.search(rf"^\| {re.escape(names[0])} \| {re.escape(variant(train))} \| ([\d.]+) \|", text, re.M)
    if not row:
        return None, f"{GPU_RESULTS} has no row {names[0]}, {variant(train)}: {remedy}"
    return float(row[1]), f"{GPU_RESULTS}: {names[0]}, {variant(train)}, {head[1]}"


def variant(train: Train) -> str:
    """Return the name that benchmarks/gpu.py gives to the recipe's `compute`."""
    compute = train.compute
    parts = ["bf16" if compute.precision == "bfloat16" else "float32"]
    parts += ["recomputed"] if compute.recompute_activations else []
    parts += ["compiled"] if compute.compile else []
    return ", ".join(parts + ([f"in {compute.accumulate} parts"] if compute.accumulate > 1 else []))


def bytes_of_pair(height: int, width: int, settings: Synthesize) -> int:
    """Return the bytes of a pair of tiles in a shard: one or two arrays with headers, and a record."""
    array = NPY_HEADER + height * width * settings.channels
    member = TAR_BLOCK + -(-array // TAR_BLOCK) * TAR_BLOCK
    return (1 if settings.online else 2) * member + BYTES_OF_A_RECORD


def bytes_of_shards(images: Sequence[Entry], settings: Synthesize) -> int:
    """Return the bytes of the shards of the images of one split."""
    total = 0
    for image in images:
        size = settings.tile_size if image.split == "train" else settings.held_out_tile_size
        height, width = min(image.height, size), min(image.width, size)
        total += num_tiles(image, settings) * bytes_of_pair(height, width, settings)
    return total


def table(rows: Sequence[Row]) -> str:
    """Return the lines as text in three columns."""
    header = Row("quantity", "value", "from")
    first, second = (max(len(getattr(row, name)) for row in (header, *rows)) for name in ("quantity", "value"))
    lines = [f"{row.quantity:{first}}  {row.value:{second}}  {row.source}" for row in (header, *rows)]
    return "\n".join([lines[0], f"{'-' * first}  {'-' * second}  ----", *lines[1:]])


def _shard_rows(recipe: Recipe) -> list[Row]:
    settings = recipe.synthesize
    of_a_pair = bytes_of_pair(settings.tile_size, settings.tile_size, settings)
    arrays = "the clean tile; the loader degrades it" if settings.online else "clean and degraded tile"
    text = f"{arrays}, {settings.tile_size}² x {settings.channels}: pipeline/shards/format.py"
    rows = [Row("shards, of a training pair", readable_size(of_a_pair), text)]
    if not MANIFEST.is_file():
        remedy = "name your photographs in params.yaml, run `make repro`"
        return [*rows, Row("shards", "not known", f"there is no {MANIFEST}: {remedy}")]
    images = _images(recipe)
    for split in SPLITS:
        chosen = [image for image in images if image.split == split]
        pairs = sum(num_tiles(image, settings) for image in chosen)
        size = readable_size(bytes_of_shards(chosen, settings))
        rows.append(Row(f"shards, {split}", f"{size}, {pairs:,} pairs", f"{MANIFEST}: {len(chosen)} photographs"))
    return rows


def copies_in_a_checkpoint(train: Train) -> tuple[int, str]:
    """Return how many arrays of the size of the weights a checkpoint holds, and which."""
    moments = {"adamw": (2, "two moments of AdamW"), "muon": (1, "momentum of Muon")}
    number, what = moments[train.optimizer]
    return 3 + number, f"weights, averaged, best, {what}"


def _checkpoint_rows(train: Train, weights: int, hours: float | None) -> list[Row]:
    copies, what = copies_in_a_checkpoint(train)
    size, minutes = copies * weights, read_environment().checkpoint_minutes
    source = f"{what}, float32; {CHECKPOINTS_KEPT} are kept"
    rows = [
        Row("checkpoint", readable_size(size), source),
        Row("checkpoints, stored", readable_size(CHECKPOINTS_KEPT * size), source),
    ]
    validations = -(-train.num_steps // train.validate_every)
    written = f"one of each of {validations} validations (train.validate_every)"
    if hours is not None and minutes:
        between = int(hours * 60 / minutes)
        rows.append(
            Row(
                "checkpoints, written", readable_size((validations + between) * size),
                f"{written}, and at most one in {minutes:g} minutes (DGUNET_CHECKPOINT_MINUTES)",
            )
        )  # fmt: skip
    else:
        text = f"{written}; those in between (DGUNET_CHECKPOINT_MINUTES) depend on the hours"
        rows.append(Row("checkpoints, written", f"at least {readable_size(validations * size)}", text))
    return [*rows, Row("model", readable_size(weights), "the best averaged weights")]


def _traffic_rows(recipe: Recipe, weights: int, gpus: int) -> list[Row]:
    sent, train = 2 * (gpus - 1) / gpus * weights, recipe.train
    source = f"2·(N − 1)/N times the gradients, N = {gpus}, float32: {RESULTS / 'scaling.md'}"
    rows = [
        Row("gradients, sent by one GPU in a step", readable_size(sent), source),
        Row("gradients, sent by one GPU in total", readable_size(sent * train.num_steps), source),
    ]
    cache = read_environment().shard_cache_gb * 1e9
    images = [image for image in _images(recipe) if image.split == "train"]
    if not images:
        return [*rows, Row("shards, read by a machine", "not known", "the bytes of the train split")]
    size = bytes_of_shards(images, recipe.synthesize)
    if size <= cache:
        return [*rows, Row("shards, read by a machine", readable_size(size), "once: they fit DGUNET_SHARD_CACHE_GB")]
    pairs = sum(num_tiles(image, recipe.synthesize) for image in images)
    epochs = train.num_steps * train.batch_size / pairs
    source = f"once in each of {epochs:.0f} epochs: more than DGUNET_SHARD_CACHE_GB = {cache / 1e9:g}"
    return [*rows, Row("shards, read by a machine", f"at most {readable_size(size * epochs)}", source)]


def _images(recipe: Recipe) -> list[Entry]:
    """Return the photographs of this checkout that the recipe uses; none if prepare has not run."""
    images = select_images(read_manifest(MANIFEST), recipe.synthesize) if MANIFEST.is_file() else []
    return [image for image in images if min(image.height, image.width) >= recipe.min_side]


def _loader_row(rate: float) -> Row:
    text = LOADER_RESULTS.read_text(encoding="utf-8") if LOADER_RESULTS.is_file() else ""
    found = re.search(r"^(\d+) images/s per core", text, re.M)
    if not found:
        return Row("cores that load batches, of a GPU", "not known", f"{LOADER_RESULTS}: run `make bench`")
    source = f"{LOADER_RESULTS}: {found[1]} images/s per core, 16 patches of 256² from tiles of 384²"
    return Row("cores that load batches, of a GPU", f"{rate / float(found[1]):.1f}", source)


if __name__ == "__main__":
    run_command(main)
