"""Photographs to tiles to pairs: which tile stands in which shard, and how a tile becomes a pair.

The plan depends on the manifest alone, not on who works it off: tiles in the order of the images' pixel hashes (as good
as random), row by row within an image, `copies` degradations each, cut into shards of equal length. Of real pairs a
clean image comes up once for each of its degraded partners, numbered like copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from dgunet.images import quantise, read_photo, to_array, to_float, to_tensor
from dgunet.metrics import luma
from pipeline.degradations import degrade
from pipeline.manifest import Entry
from pipeline.params import Synthesize
from pipeline.shards import Pair
from pipeline.sources import read_source_image


@dataclass(frozen=True)
class Tile:
    """Copy `copy` of the tile of an image whose top left pixel is (top, left), size x size where the image allows."""

    image: Entry
    top: int
    left: int
    size: int
    copy: int

    @property
    def key(self) -> str:
        """Name of the pair; says where it comes from."""
        return f"{self.image.sha256[:16]}_{self.top:05d}_{self.left:05d}_{self.copy}"


def chosen(images: Sequence[Entry], settings: Synthesize) -> list[Entry]:
    """Return the images of the manifest that a task is made of: the real pairs it names, or each clean image once.

    Raises ValueError if no pair of the manifest comes from a source that the task names.
    """
    if not settings.real_pairs:
        clean: dict[str, Entry] = {}
        for image in images:
            clean.setdefault(image.sha256, replace(image, degraded=None))
        return list(clean.values())
    named = {f"pairs:{place}" for place in settings.real_pairs}
    there = {image.source for image in images if image.degraded is not None}
    if missing := sorted(named - there):
        raise ValueError(
            f"synthesize.real_pairs: the manifest has no pair from {', '.join(missing)}; it has pairs from "
            f"{', '.join(sorted(there)) or 'nowhere'}. Name the `clean` of a source of kind pairs in prepare.sources"
        )
    return [image for image in images if image.degraded is not None and image.source in named]


def plan(images: Sequence[Entry], settings: Synthesize) -> Iterator[list[Tile]]:
    """Yield the tiles of each shard of the `chosen` images of one split."""
    shard: list[Tile] = []
    for tile in _tiles(images, settings):
        shard.append(tile)
        if len(shard) == settings.tiles_per_shard:
            yield shard
            shard = []
    if shard:
        yield shard


def pairs(tiles: Sequence[Tile], settings: Synthesize, seed: int) -> Iterator[Pair]:
    """Yield the pairs of `tiles`, decoding each image once."""
    for image, group in groupby(tiles, key=lambda tile: tile.image):
        clean_image = _read(image.where, settings.channels)
        degraded_image = None if image.degraded is None else _read(image.degraded, settings.channels)
        for tile in group:
            window = np.s_[tile.top : tile.top + tile.size, tile.left : tile.left + tile.size]
            clean = clean_image[window]
            degraded, record = None, {}
            if degraded_image is not None:
                degraded = degraded_image[window]
            elif not settings.online:
                made = degrade(to_float(clean), settings.degradation, seed_of(tile, seed))
                degraded, record = quantise(made.image, np.uint8), made.record
            yield Pair(tile.key, clean, degraded, {**_origin(tile), "degradation": record})


def seed_of(tile: Tile, seed: int) -> list[int]:
    """Return what the generator of one pair is seeded with: (seed, image, tile, copy)."""
    return [seed, int(tile.image.sha256[:16], 16), tile.top, tile.left, tile.copy]


def _tiles(images: Sequence[Entry], settings: Synthesize) -> Iterator[Tile]:
    num_partners: Counter[str] = Counter()
    for image in images:
        copies = range(settings.copies)
        if image.degraded is not None:
            number = num_partners[image.sha256]
            copies, num_partners[image.sha256] = range(number, number + 1), number + 1
        train = image.split == "train"
        size = settings.tile_size if train else settings.held_out_tile_size
        stride = settings.stride if train else size
        for top in _starts(image.height, size, stride):
            for left in _starts(image.width, size, stride):
                for copy in copies:
                    yield Tile(image, top, left, size, copy)


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Return where tiles begin along one side: every `stride` pixels, and one that ends at the border."""
    last = max(0, length - size)
    return sorted({*range(0, last + 1, stride), last})


def read_channels(source: str | Path | bytes, channels: int) -> Float32[np.ndarray, "H W C"]:
    """Read an image in [0, 1] as RGB (`channels` 3), or as it is if gray and its luma if colour (1)."""
    image = to_float(read_photo(source).pixels)
    if image.shape[2] == channels:
        return image
    return to_array(luma(to_tensor(image))) if channels == 1 else np.repeat(image, 3, axis=2)


def _read(where: str, channels: int) -> UInt8[np.ndarray, "H W C"]:
    return quantise(read_channels(read_source_image(where), channels), np.uint8)


def _origin(tile: Tile) -> dict[str, Any]:
    return {
        "where": tile.image.where,
        "sha256": tile.image.sha256,
        "top": tile.top,
        "left": tile.left,
        "copy": tile.copy,
    }
