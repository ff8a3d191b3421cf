"""Photographs to tiles to pairs: which tile stands in which shard, and how a tile becomes a pair.

The plan depends on the manifest alone, not on who works it off: tiles in the order of the images' pixel hashes (as good
as random), row by row within an image, `copies` degradations each, cut into shards of equal length. Of real pairs a
clean image comes up once for each of its degraded partners, numbered like copies. A shard's tiles are not listed but
derived, by whoever makes it, from its images and two numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from dgunet.images import UnreadableImage, in_channels, quantise, read_photo, to_float
from dgunet.images.codecs import Pixels
from pipeline.degradations import degrade
from pipeline.shards.format import Pair
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import read_source_image
from pipeline.sources.manifest import Entry
from pipeline.sources.places import UnreadableFile
from pipeline.synthesis.settings import Synthesize

_LOOK_ANEW = "Run `make repro`: prepare looks at changed images anew, and leaves out what cannot be used"


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


class Numbered(NamedTuple):
    """An image, and how many real pairs with the same clean image come before it."""

    image: Entry
    partner: int


@dataclass(frozen=True)
class ShardPlan:
    """The tiles of one shard: of all tiles of `images`, in order, `length` of them from number `first` on."""

    images: Sequence[Numbered]
    first: int
    length: int
    settings: Synthesize

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self.length

    def __iter__(self) -> Iterator[Tile]:
        """Yield the tiles."""
        tiles = (tile for source in self.images for tile in _tiles(source, self.settings))
        return islice(tiles, self.first, self.first + self.length)


def chosen(images: Sequence[Entry], settings: Synthesize) -> list[Entry]:
    """Return the images of the manifest that a task is made of: the real pairs it names, or each clean image once.

    Raises ValueError if no pair of the manifest comes from a source that the task names.
    """
    if not settings.real_pairs:
        clean: dict[str, Entry] = {}
        for image in images:
            clean.setdefault(image.sha256, replace(image, degraded=None, degraded_sha256=None))
        return list(clean.values())
    named = {f"pairs:{place}" for place in settings.real_pairs}
    there = {image.source for image in images if image.degraded is not None}
    if missing := sorted(named - there):
        raise ValueError(
            f"synthesize.real_pairs: the manifest has no pair from {', '.join(missing)}; it has pairs from "
            f"{', '.join(sorted(there)) or 'nowhere'}. Name the `clean` of a source of kind pairs in prepare.sources"
        )
    return [image for image in images if image.degraded is not None and image.source in named]


def plan(images: Iterable[Entry], settings: Synthesize) -> Iterator[ShardPlan]:
    """Yield the tiles of each shard of the `chosen` images of one split, in order; holds one shard's images."""
    sources: list[Numbered] = []
    first, length = 0, 0
    for source in _numbered(images):
        sources.append(source)
        length += (added := num_tiles(source.image, settings))
        while length >= settings.tiles_per_shard:
            yield ShardPlan(tuple(sources), first, settings.tiles_per_shard, settings)
            length -= settings.tiles_per_shard
            sources, first = ([source], added - length) if length else ([], 0)
    if length:
        yield ShardPlan(tuple(sources), first, length, settings)


def num_tiles(image: Entry, settings: Synthesize) -> int:
    """Return how many pairs an image is good for."""
    size, stride = _grid(image, settings)
    return len(_starts(image.height, size, stride)) * len(_starts(image.width, size, stride)) * settings.copies


def pairs(tiles: Iterable[Tile], settings: Synthesize, seed: int) -> Iterator[Pair]:
    """Yield the pairs of `tiles`, decoding each image once.

    Raises ValueError naming an image that cannot be read, or is not the one that the manifest describes any more.
    """
    for image, group in groupby(tiles, key=lambda tile: tile.image):
        clean_image = _read_clean(image, settings.channels)
        degraded_image = None if image.degraded is None else _read_partner(image, image.degraded, settings.channels)
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


def _numbered(images: Iterable[Entry]) -> Iterator[Numbered]:
    """Number real pairs of one clean image; they stand side by side, as the manifest is sorted by its hash."""
    for _, group in groupby(images, key=lambda image: image.sha256):
        for number, image in enumerate(group):
            yield Numbered(image, number if image.degraded is not None else 0)


def _tiles(source: Numbered, settings: Synthesize) -> Iterator[Tile]:
    image = source.image
    size, stride = _grid(image, settings)
    for top in _starts(image.height, size, stride):
        for left in _starts(image.width, size, stride):
            for copy in range(source.partner, source.partner + settings.copies):
                yield Tile(image, top, left, size, copy)


def _grid(image: Entry, settings: Synthesize) -> tuple[int, int]:
    """Return size and stride of the tiles of an image: held out, they overlap only at the border."""
    if image.split == "train":
        return settings.tile_size, settings.stride
    return settings.held_out_tile_size, settings.held_out_tile_size


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Return where tiles begin along one side: every `stride` pixels, and one that ends at the border."""
    last = max(0, length - size)
    return sorted({*range(0, last + 1, stride), last})


def read_channels(source: str | Path | bytes, channels: int) -> Float32[np.ndarray, "H W C"]:
    """Read an image in [0, 1] as RGB (`channels` 3) or as gray (1)."""
    return to_float(in_channels(read_photo(source).pixels, channels))


def _read_clean(image: Entry, channels: int) -> UInt8[np.ndarray, "H W C"]:
    pixels = _decode(image, image.uri)
    if pixel_hash(to_float(in_channels(pixels, 3))) != image.sha256:
        raise _changed(image.uri)
    return _stored(pixels, channels)


def _read_partner(image: Entry, uri: str, channels: int) -> UInt8[np.ndarray, "H W C"]:
    pixels = _decode(image, uri)
    if pixel_hash(to_float(in_channels(pixels, 3))) != image.degraded_sha256:
        raise _changed(uri)
    return _stored(pixels, channels)


def _decode(image: Entry, uri: str) -> Pixels:
    try:
        return read_photo(read_source_image(uri), max_pixels=image.height * image.width).pixels
    except (UnreadableFile, UnreadableImage) as error:
        reason = str(error).removeprefix("image in memory: ")
        raise ValueError(f"{uri}: {reason}. {_LOOK_ANEW}") from error


def _changed(uri: str) -> ValueError:
    return ValueError(f"{uri}: it changed since prepare looked at it. {_LOOK_ANEW}")


def _stored(pixels: Pixels, channels: int) -> UInt8[np.ndarray, "H W D"]:
    stored = in_channels(pixels, channels)
    return stored if stored.dtype == np.uint8 else quantise(to_float(stored), np.uint8)


def _origin(tile: Tile) -> dict[str, Any]:
    return {
        "where": tile.image.uri,
        "sha256": tile.image.sha256,
        "top": tile.top,
        "left": tile.left,
        "copy": tile.copy,
    }
