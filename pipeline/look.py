"""A task's degradation on a few of its photographs, as a contact sheet, in seconds: change params.yaml, look again.

`--all` shows every entry of infra/degradations.yaml instead: the sheet in the README, made of the photographs in the
scikit-image wheel that are free of copyright.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float32, UInt8

from dgunet.images import to_float, write_image
from pipeline.degradations import degrade
from pipeline.degradations.resample import downsample
from pipeline.params import Synthesize, door, load_section, parse_degradation
from pipeline.sheet import Cell, Row, describe, kind_sheet, pair_sheet
from pipeline.sources import LeftOut, Pairs, Prepare, list_images, read_source_image
from pipeline.tiles import read_channels

EXAMPLES = Path("infra/degradations.yaml")
FREE_PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")
TILE_SIZE, NUM_ROWS = 256, 4
CELL_HEIGHT, CELL_WIDTH, COLUMNS = 128, 168, 6


def main() -> None:
    """Write the sheet and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.look", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="a section of params.yaml; writes look/TASK.png")
    what.add_argument("--all", action="store_true", help="every degradation; writes docs/degradations.jpg")
    given = parser.parse_args()
    path = Path("docs/degradations.jpg") if given.all else Path(f"look/{given.task}.png")
    sheet = all_kinds() if given.all else one_task(given.task)
    path.parent.mkdir(exist_ok=True)
    write_image(path, to_float(sheet))
    print(path)


def one_task(task: str) -> UInt8[np.ndarray, "H W 3"]:
    """The middles of the first photographs of the sources, degraded as the task says, or real pairs as they came."""
    settings = load_section(f"{task}.synthesize", Synthesize)
    seed = load_section("seed", int)
    rows = []
    for clean, real in islice(photographs(settings), NUM_ROWS):
        if real is not None:
            rows.append(Row(clean, real, ["a real pair"]))
        else:
            degraded = degrade(clean, settings.degradation, [seed, len(rows)])
            rows.append(Row(clean, degraded.image, describe(degraded.record)))
    if not rows:
        raise ValueError("prepare.sources: no image can be read; `make repro` says why in reports/prepare.json")
    return pair_sheet(rows)


def photographs(
    settings: Synthesize,
) -> Iterator[tuple[Float32[np.ndarray, "H W C"], Float32[np.ndarray, "H W C"] | None]]:
    """Middles of the task's photographs, each with its real partner if it has one; what cannot be read is skipped."""
    for source in load_section("prepare", Prepare).sources:
        real = isinstance(source, Pairs) and source.clean in settings.real_pairs
        if settings.real_pairs and not real:
            continue
        for candidate in list_images(source):
            if isinstance(candidate, LeftOut):
                continue
            names = [candidate.where, candidate.degraded] if real and candidate.degraded else [candidate.where]
            try:
                images = [middle(read_channels(read_source_image(name), settings.channels)) for name in names]
            except ValueError:
                continue
            if all(image.shape == images[0].shape for image in images):
                yield images[0], images[1] if len(images) == 2 else None


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
    door(main)
