"""A task's degradation on a few of its photographs, as a contact sheet, in seconds: change params.yaml, look again.

`--all` shows every entry of infra/degradations.yaml instead: the sheet in the README, made of the photographs in the
scikit-image wheel that are free of copyright.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from jaxtyping import Float32, UInt8

from dgunet.images import to_float, write_image
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_tensor
from pipeline.config.params import load_section
from pipeline.degradations import degrade
from pipeline.degradations.compose import Degradation
from pipeline.degradations.parsing import parse_degradation
from pipeline.degradations.resample import downsample
from pipeline.degradations.sampling import generator
from pipeline.evaluation.scores import first_estimate
from pipeline.preparation.settings import Prepare
from pipeline.reporting.contact_sheet import Cell, Note, Row, describe, kind_sheet, pair_sheet
from pipeline.runtime.entry_point import run_command
from pipeline.sources.listing import Pairs, RejectedImage, list_images, read_source_image
from pipeline.synthesis.settings import Synthesize
from pipeline.synthesis.tiles import read_channels
from pipeline.training.settings import Network

EXAMPLES = Path("infra/degradations.yaml")
FREE_PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")
TILE_SIZE, NUM_ROWS, NUM_ATTEMPTS = 256, 4, 16
CELL_HEIGHT, CELL_WIDTH, COLUMNS = 128, 168, 6


class Photo(NamedTuple):
    """A clean image, and its real partner if it has one."""

    clean: Float32[np.ndarray, "H W C"]
    partner: Float32[np.ndarray, "H W C"] | None


def main() -> None:
    """Write the sheet and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.preview", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="a section of params.yaml; writes preview/TASK.png")
    what.add_argument("--all", action="store_true", help="every degradation; writes docs/degradations.jpg")
    given = parser.parse_args()
    path = Path("docs/degradations.jpg") if given.all else Path(f"preview/{given.task}.png")
    sheet = all_kinds() if given.all else one_task(given.task)
    path.parent.mkdir(exist_ok=True)
    write_image(path, to_float(sheet))
    print(path)


def one_task(task: str) -> UInt8[np.ndarray, "H W 3"]:
    """The middles of the first photographs of the sources, degraded as the task says, or real pairs as they came.

    Of a degradation that is now this, now that, the rows show as many as they can. What compressive sensing shows for
    degraded is Φᵀy, where its network starts before any training: Φ has orthonormal rows then.
    """
    settings = load_section(f"{task}.synthesize", Synthesize)
    network = load_section(f"{task}.train.network", Network)
    seed = load_section("seed", int)
    photos = list(islice(photographs(settings), NUM_ROWS))
    if not photos:
        raise ValueError("prepare.sources: no image can be read; `make repro` says why in reports/prepare.json")
    if network.sensing_ratio_percent is None:
        return pair_sheet(sampled_rows(photos, settings.degradation, seed))
    model = DGUNet.with_seed(DGUNetConfig(image_channels=settings.channels, **network.model_dump()), seed)
    ratio = f"{network.sensing_ratio_percent:g} %"
    return pair_sheet(
        [measured_row(photo.clean, model) for photo in photos],
        degraded_is=f"measured at {ratio}: least squares",
        notes_are="measurement",
    )


def sampled_rows(photos: Iterable[Photo], degradation: Degradation, seed: int) -> list[Row]:
    """Photographs with what was drawn for each: where it can, steps of other kinds than those of the rows before."""
    rows, shown = [], set[tuple[str, ...]]()
    for number, (clean, real) in enumerate(photos):
        if real is not None:
            rows.append(Row(clean, real, [Note("real pair", ["as it came"])]))
            continue
        seeds = [[seed, number, attempt] for attempt in range(NUM_ATTEMPTS)]
        kinds = [tuple(step["kind"] for step in degradation.sample(generator(one))) for one in seeds]
        place = next((place for place, sampled in enumerate(kinds) if sampled not in shown), 0)
        shown.add(kinds[place])
        degraded = degrade(clean, degradation, seeds[place])
        rows.append(Row(clean, degraded.image, describe(degraded.record)))
    return rows


def measured_row(clean: Float32[np.ndarray, "H W 1"], model: DGUNet) -> Row:
    """What compressive sensing keeps of a picture, and how much that is."""
    measurements = model.sense(to_tensor(clean))
    config = model.config
    numbers = f"{config.num_measurements} numbers per block of 32 x 32 pixels"
    notes = [
        Note("measured", [f"at {config.sensing_ratio_percent:g} %", numbers]),
        Note("shown", ["least squares, where the network starts", "Phi before training, the lowest frequencies"]),
    ]
    return Row(clean, first_estimate(model, measurements), notes)


def photographs(settings: Synthesize) -> Iterator[Photo]:
    """Middles of the task's photographs, each with its real partner if it has one; what cannot be read is skipped."""
    for source in load_section("prepare", Prepare).sources:
        real = isinstance(source, Pairs) and source.clean in settings.real_pairs
        if settings.real_pairs and not real:
            continue
        for candidate in list_images(source):
            if isinstance(candidate, RejectedImage):
                continue
            names = [candidate.uri, candidate.degraded] if real and candidate.degraded else [candidate.uri]
            try:
                images = [middle(read_channels(read_source_image(name), settings.channels)) for name in names]
            except ValueError:
                continue
            if all(image.shape == images[0].shape for image in images):
                yield Photo(images[0], images[1] if len(images) == 2 else None)


def middle(
    image: Float32[np.ndarray, "H W C"], height: int = TILE_SIZE, width: int = TILE_SIZE
) -> Float32[np.ndarray, "h w C"]:
    """The middle of an image, of this size or as large as there is."""
    top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].copy()


def all_kinds() -> UInt8[np.ndarray, "H W 3"]:
    """Every entry of infra/degradations.yaml on one of the free photographs."""
    cells = []
    for index, (name, text) in enumerate(yaml.safe_load(EXAMPLES.read_text(encoding="utf-8")).items()):
        photo = read_channels(read_source_image(f"starter:skimage/{FREE_PHOTOS[index % len(FREE_PHOTOS)]}"), 3)
        scene = middle(downsample(photo, 2).clip(0, 1), CELL_HEIGHT, CELL_WIDTH)
        degraded = degrade(scene, parse_degradation(text), [2, index])
        cells.append(Cell(degraded.image, name))
    return kind_sheet(cells, COLUMNS)


if __name__ == "__main__":
    run_command(main)
