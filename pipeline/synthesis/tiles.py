"""Plans which tile of which image belongs to which shard, and makes clean/degraded pairs from tiles.

The plan depends only on the manifest, not on the worker that makes a shard. Tiles are ordered by the pixel hash of
their image (a random order, in effect), then row by row, then by copy, and cut into shards of equal length. A clean
image with several real degraded partners occurs once per partner; partners are numbered like copies. A shard plan holds
its images and two numbers; the worker derives the tiles from them.
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
from pipeline.degradations import degrade
from pipeline.shards.format import Pair
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.listing import read_source_image, source_label
from pipeline.sources.manifest import Entry
from pipeline.sources.places import UnreadableFile
from pipeline.synthesis.settings import Synthesize

_REMEDY = "Run `make repro`: prepare inspects changed images again and leaves out unusable ones"


@dataclass(frozen=True)
class Tile:
    """A tile: size x size pixels of an image from (top, left) on, or up to the border; `copy` numbers its pairs."""

    image: Entry
    top: int
    left: int
    size: int
    copy: int

    @property
    def key(self) -> str:
        """Key of the pair: image, position and copy."""
        return f"{self.image.sha256[:16]}_{self.top:05d}_{self.left:05d}_{self.copy}"


class NumberedImage(NamedTuple):
    """An image, and the number of real pairs with the same clean image before it."""

    image: Entry
    partner: int


@dataclass(frozen=True)
class ShardPlan:
    """The tiles of one shard: `length` tiles from number `first` on, counted over all tiles of `images` in order."""

    images: Sequence[NumberedImage]
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


def select_images(images: Sequence[Entry], settings: Synthesize) -> list[Entry]:
    """Return the entries of the manifest that a task uses: the real pairs it names, or each clean image once.

    Raises ValueError if the manifest has no pair of a source that the task names.
    """
    if not settings.real_pairs:
        clean: dict[str, Entry] = {}
        for image in images:
            clean.setdefault(image.sha256, replace(image, degraded=None, degraded_sha256=None))
        return list(clean.values())
    named = {source_label(name) for name in settings.real_pairs}
    available = {image.source for image in images if image.degraded is not None}
    if missing := sorted(named - available):
        raise ValueError(
            f"synthesize.real_pairs: the manifest has no pair from {', '.join(missing)}; it has pairs from "
            f"{', '.join(sorted(available)) or 'no source'}. "
            "Name the `clean` of a pairs source of prepare.sources, or dataset:NAME"
        )
    return [image for image in images if image.degraded is not None and image.source in named]


def plan_shards(images: Iterable[Entry], settings: Synthesize) -> Iterator[ShardPlan]:
    """Yield the shard plans of the selected images of one split, in order; keeps one shard's images in memory."""
    sources: list[NumberedImage] = []
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
    """Return the number of pairs that are made from an image."""
    size, stride = _grid(image, settings)
    return len(_starts(image.height, size, stride)) * len(_starts(image.width, size, stride)) * settings.copies


def make_pairs(tiles: Iterable[Tile], settings: Synthesize, seed: int) -> Iterator[Pair]:
    """Make the pairs of `tiles`; each image is decoded once.

    Args:
        tiles: the tiles, those of one image in a row.
        settings: degradation, channels, and whether the loader degrades (`online`).
        seed: the pipeline's seed.

    Yields:
        One pair per tile, in order.

    Raises:
        ValueError: an image cannot be read, or its pixels are not those of the manifest; names the image.
    """
    for image, group in groupby(tiles, key=lambda tile: tile.image):
        clean_image, degraded_image = read_clean(image, settings.channels), read_degraded(image, settings.channels)
        for tile in group:
            window = np.s_[tile.top : tile.top + tile.size, tile.left : tile.left + tile.size]
            clean = clean_image[window]
            degraded, record = None, {}
            if degraded_image is not None:
                degraded = degraded_image[window]
            elif not settings.online:
                generated = degrade(to_float(clean), settings.degradation, seed_of(tile, seed))
                degraded, record = quantise(generated.image, np.uint8), generated.record
            yield Pair(tile.key, clean, degraded, {**_origin(tile), "degradation": record})


def seed_of(tile: Tile, seed: int) -> list[int]:
    """Return the seed of the degradation of one pair: (seed, image, top, left, copy)."""
    return [seed, int(tile.image.sha256[:16], 16), tile.top, tile.left, tile.copy]


def _numbered(images: Iterable[Entry]) -> Iterator[NumberedImage]:
    """Number the real pairs of each clean image; the manifest is sorted by hash, so that they are neighbours."""
    for _, group in groupby(images, key=lambda image: image.sha256):
        for number, image in enumerate(group):
            yield NumberedImage(image, number if image.degraded is not None else 0)


def _tiles(source: NumberedImage, settings: Synthesize) -> Iterator[Tile]:
    image = source.image
    size, stride = _grid(image, settings)
    for top in _starts(image.height, size, stride):
        for left in _starts(image.width, size, stride):
            for copy in range(source.partner, source.partner + settings.copies):
                yield Tile(image, top, left, size, copy)


def _grid(image: Entry, settings: Synthesize) -> tuple[int, int]:
    """Return size and stride of an image's tiles in pixels; tiles of val and test overlap only at the border."""
    if image.split == "train":
        return settings.tile_size, settings.stride
    return settings.held_out_tile_size, settings.held_out_tile_size


def _starts(length: int, size: int, stride: int) -> list[int]:
    """Return the first pixels of the tiles along one side: every `stride` pixels, and the last tile at the border."""
    last = max(0, length - size)
    return sorted({*range(0, last + 1, stride), last})


def read_channels(source: str | Path | bytes, channels: int) -> Float32[np.ndarray, "H W C"]:
    """Read an image with values in [0, 1] as RGB (`channels` 3) or gray (`channels` 1)."""
    return to_float(in_channels(read_photo(source).pixels, channels))


def read_clean(image: Entry, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Read the clean image of an entry. Raises ValueError if it cannot be read or has other pixels than recorded."""
    return _read_verified(image.uri, image.sha256, image, channels)


def read_degraded(image: Entry, channels: int) -> UInt8[np.ndarray, "H W C"] | None:
    """Read the degraded image of a real pair, None for other entries. Raises as `read_clean`."""
    if image.degraded is None or image.degraded_sha256 is None:
        return None
    return _read_verified(image.degraded, image.degraded_sha256, image, channels)


def _read_verified(uri: str, sha256: str, image: Entry, channels: int) -> UInt8[np.ndarray, "H W C"]:
    try:
        pixels = read_photo(read_source_image(uri), max_pixels=image.height * image.width).pixels
    except (UnreadableFile, UnreadableImage) as error:
        reason = str(error).removeprefix("image in memory: ")
        raise ValueError(f"{uri}: {reason}. {_REMEDY}") from error
    if pixel_hash(to_float(in_channels(pixels, 3))) != sha256:
        raise ValueError(f"{uri}: the pixels changed since prepare inspected the image. {_REMEDY}")
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
