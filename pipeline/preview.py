"""Shows a task's degradation on a few photographs, or reproduces a training pair; writes to preview/ (--all: docs/).

--task TASK: a contact sheet of the task's photographs, degraded as params.yaml says; it needs no shards.
--task TASK --pair KEY: clean and degraded image of a pair in the task's shards, as training saw it; with --verify
    the pair is made again from the source image and compared with the shard.
--all: every degradation in infra/degradations.yaml, on copyright-free photographs of the scikit-image wheel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from jaxtyping import Float32, UInt8

from dgunet.images import Photo, quantise, to_float, write_image, write_photo
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_tensor
from pipeline.config.params import load_section, load_task_section
from pipeline.dataloader.pairs import online_degradation, online_pair
from pipeline.degradations import degrade
from pipeline.degradations.compose import Degradation
from pipeline.degradations.parsing import parse_degradation
from pipeline.degradations.resample import downsample
from pipeline.degradations.sampling import generator
from pipeline.evaluation.scores import initial_estimate
from pipeline.preparation.settings import Prepare
from pipeline.reporting.contact_sheet import Cell, Note, Row, describe, sheet_of_kinds, sheet_of_pairs
from pipeline.runtime.entry_point import run_command
from pipeline.shards.format import INDEX, Shard, read_index
from pipeline.sources.listing import RejectedImage, list_images, read_source_image, source_label
from pipeline.sources.listing import describe as describe_source
from pipeline.synthesis.reproduce import reproduce_pair
from pipeline.synthesis.settings import Synthesize
from pipeline.synthesis.tiles import read_channels
from pipeline.training.settings import Train

PREVIEW = Path("preview")
MANIFEST = Path("data/manifest.jsonl")
EXAMPLES = Path("infra/degradations.yaml")
FREE_PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")
TILE_SIZE, NUM_ROWS, NUM_ATTEMPTS = 256, 4, 16
CELL_HEIGHT, CELL_WIDTH, COLUMNS = 128, 168, 6


class SourcePhoto(NamedTuple):
    """A clean image, and its degraded partner if it is one of a real pair."""

    clean: Float32[np.ndarray, "H W C"]
    partner: Float32[np.ndarray, "H W C"] | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the images and print their paths."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="a section of params.yaml")
    what.add_argument("--all", action="store_true", help="every degradation; writes docs/degradations.jpg")
    parser.add_argument("--pair", metavar="KEY", help="key of a pair, as in reports/TASK/per_image.csv")
    parser.add_argument(
        "--epoch", type=int, default=0, help="epoch of a pair that is degraded again in each epoch; default 0"
    )
    parser.add_argument("--verify", action="store_true", help="make the pair again from its source image and compare")
    parser.add_argument("--shards", type=Path, help="folder with train/, val/ and test/; default data/shards/TASK")
    args = parser.parse_args(arguments)
    if args.pair is not None and args.all:
        parser.error("--pair needs --task")
    if args.pair is not None:
        write_pair(args.task, args.shards or Path("data/shards") / args.task, args.pair, args.epoch, verify=args.verify)
        return
    path = Path("docs/degradations.jpg") if args.all else PREVIEW / f"{args.task}.png"
    sheet = kinds_sheet() if args.all else task_sheet(args.task)
    path.parent.mkdir(exist_ok=True)
    write_image(path, to_float(sheet))
    print(path)


def write_pair(task: str, shards: Path, key: str, epoch: int, *, verify: bool = False) -> None:
    """Write clean and degraded image of a pair and print their paths and the sampled parameters.

    An image that the loader degrades is written with 16 bits, clipped to [0, 1]; stored images with their 8 bits.

    Args:
        task: names the files.
        shards: folder with train/, val/ and test/.
        key: key of the pair.
        epoch: epoch of training, if the loader degrades; the val and test splits have only epoch 0.
        verify: make the pair again from its source image and compare it with the shard; all bits must be equal.

    Raises:
        ValueError: there is no such pair, or no such epoch of it; with `verify`, the source image is gone or changed,
            or the pair differs from that in the shard.
    """
    folder = folder_of_pair(shards, key)
    index = read_index(folder)
    is_online = online_degradation(index) is not None
    if epoch and not (is_online and folder.name == "train"):
        raise ValueError(f"{task}: pair {key} of the {folder.name} split is the same in each epoch; leave out --epoch")
    if verify:
        pair = reproduce_pair(folder, key, epoch=epoch, manifest=MANIFEST)
        print(f"{key}: made again from {pair.record['where']}, equal to the shard")
    else:
        pair = online_pair(folder, key, epoch, int(index.recipe["seed"]))
    name = f"{task}-{key}" + (f"-epoch{epoch}" if is_online else "")
    PREVIEW.mkdir(exist_ok=True)
    for kind, image, dtype in (
        ("clean", pair.clean, np.uint8),
        ("degraded", pair.degraded, np.uint16 if is_online else np.uint8),
    ):
        path = PREVIEW / f"{name}-{kind}.png"
        write_photo(path, Photo(quantise(image, dtype)))
        print(path)
    for note in describe(pair.record["degradation"]):
        print(f"{note.name}: {', '.join(note.items)}")


def folder_of_pair(shards: Path, key: str) -> Path:
    """Return the folder of the split that has the pair; ValueError if none has it."""
    folders = [shards / split for split in ("train", "val", "test") if (shards / split / INDEX).is_file()]
    if not folders:
        raise ValueError(f"there are no shards in {shards}: run `make repro`")
    for folder in folders:
        if any(key in Shard(folder, entry).keys for entry in read_index(folder).shards):
            return folder
    raise ValueError(f"no shard in {shards} has a pair {key}")


def task_sheet(task: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return a sheet of the centres of the first photographs, degraded as the task says, or of its real pairs.

    For a random choice of degradations, the rows show as many different ones as possible. For compressive sensing the
    degraded image is Φᵀy, where the network starts; before training the rows of Φ are orthonormal.
    """
    settings = load_task_section(task, "synthesize", Synthesize)
    network = load_task_section(task, "train", Train).network
    seed = load_section("seed", int)
    photos = list(islice(photographs(settings), NUM_ROWS))
    if not photos:
        raise ValueError(
            "prepare.sources: no image can be read; run `make repro`, which writes the reasons to reports/prepare.json"
        )
    if network.sensing_ratio_percent is None:
        return sheet_of_pairs(sampled_rows(photos, settings.degradation, seed))
    model = DGUNet.with_seed(DGUNetConfig(image_channels=settings.channels, **network.model_dump()), seed)
    ratio = f"{network.sensing_ratio_percent:g} %"
    return sheet_of_pairs(
        [measured_row(photo.clean, model) for photo in photos],
        degraded_title=f"measured at {ratio}: least squares",
        notes_title="measurement",
    )


def sampled_rows(photos: Iterable[SourcePhoto], degradation: Degradation, seed: int) -> list[Row]:
    """Return a row per photograph, if possible with steps of other kinds than those of the rows before.

    Args:
        photos: photographs; a real pair is shown unchanged.
        degradation: sampled for each photograph.
        seed: equal seeds give equal rows.
    """
    rows, shown = [], set[tuple[str, ...]]()
    for number, (clean, real) in enumerate(photos):
        if real is not None:
            rows.append(Row(clean, real, [Note("real pair", ["not degraded by the pipeline"])]))
            continue
        seeds = [[seed, number, attempt] for attempt in range(NUM_ATTEMPTS)]
        kinds = [tuple(step["kind"] for step in degradation.sample(generator(one))) for one in seeds]
        attempt = next((attempt for attempt, sampled in enumerate(kinds) if sampled not in shown), 0)
        shown.add(kinds[attempt])
        degraded = degrade(clean, degradation, seeds[attempt])
        rows.append(Row(clean, degraded.image, describe(degraded.record)))
    return rows


def measured_row(clean: Float32[np.ndarray, "H W 1"], model: DGUNet) -> Row:
    """Return the row of one image of compressive sensing: Φᵀy of its measurements, and how many there are."""
    measurements = model.sense(to_tensor(clean))
    config = model.config
    numbers = f"{config.num_measurements} numbers per block of 32 x 32 pixels"
    notes = [
        Note("measured", [f"at {config.sensing_ratio_percent:g} %", numbers]),
        Note("shown", ["least squares, where the network starts", "Phi before training: the lowest frequencies"]),
    ]
    return Row(clean, initial_estimate(model, measurements), notes)


def photographs(settings: Synthesize) -> Iterator[SourcePhoto]:
    """Yield the centres of the task's photographs, with their real partners; skip images that cannot be read."""
    for source in load_section("prepare", Prepare).sources:
        real = describe_source(source) in {source_label(name) for name in settings.real_pairs}
        if settings.real_pairs and not real:
            continue
        for candidate in list_images(source):
            if isinstance(candidate, RejectedImage):
                continue
            names = [candidate.uri, candidate.degraded] if real and candidate.degraded else [candidate.uri]
            try:
                images = [centre(read_channels(read_source_image(name), settings.channels)) for name in names]
            except ValueError:
                continue
            if all(image.shape == images[0].shape for image in images):
                yield SourcePhoto(images[0], images[1] if len(images) == 2 else None)


def centre(
    image: Float32[np.ndarray, "H W C"], height: int = TILE_SIZE, width: int = TILE_SIZE
) -> Float32[np.ndarray, "h w C"]:
    """Return the centre of an image, at most height x width pixels."""
    top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].copy()


def kinds_sheet() -> UInt8[np.ndarray, "H W 3"]:
    """Return a sheet of every entry of infra/degradations.yaml on one of the free photographs."""
    cells = []
    for index, (name, text) in enumerate(yaml.safe_load(EXAMPLES.read_text(encoding="utf-8")).items()):
        photo = read_channels(read_source_image(f"starter:skimage/{FREE_PHOTOS[index % len(FREE_PHOTOS)]}"), 3)
        scene = centre(downsample(photo, 2).clip(0, 1), CELL_HEIGHT, CELL_WIDTH)
        degraded = degrade(scene, parse_degradation(text), [2, index])
        cells.append(Cell(degraded.image, name))
    return sheet_of_kinds(cells, COLUMNS)


if __name__ == "__main__":
    run_command(main)
