"""Published test sets: named in the section `benchmarks` of params.yaml; relative places are below DGUNET_DATA.

A benchmark whose images are absent is not an error: `evaluate` skips it with a message.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dgunet.images import UnreadableImage, in_channels, read_photo, to_float
from dgunet.images.names import is_hidden
from pipeline.config.params import ParamsError
from pipeline.dataloader.pairs import EvaluationPair
from pipeline.degradations import degrade
from pipeline.degradations.compose import Degradation
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.settings import benchmark_settings
from pipeline.runtime.environment import read_environment
from pipeline.sources import datasets, listing, overlaps, patterns, places, storage

Image = Float32[np.ndarray, "H W C"]


@dataclass(frozen=True)
class Benchmark:
    """A published test set.

    name: as in params.yaml.
    dataset: the published set that the images belong to, None for other images.
    clean, degraded: folders, archives, URLs, or patterns of names, as `sources.listing.Pairs` takes them. Without
        `degraded`, the clean images are degraded by `degradation`, with random numbers that depend only on the
        pipeline's seed and the image's name; without both, by the task's own degradation.
    protocol: how restored images are measured.
    """

    name: str
    clean: str
    degraded: str | None
    degradation: Degradation | None
    protocol: Protocol
    dataset: str | None = None

    def absent(self) -> str | None:
        """Return the folder, archive or URL that is missing or empty (an unmounted disk), None if nothing is missing.

        Raises StorageError if an archive is damaged, or a file of a published set does not match the registry.
        """
        if self.dataset and datasets.is_incomplete(self.dataset):
            return datasets.folder_of(self.dataset)
        sides = (patterns.place_of(side) for side in (self.clean, self.degraded) if side)
        return next((missing for place in dict.fromkeys(sides) if (missing := _missing(place))), None)

    def pairs(self, task_degradation: Degradation, channels: int, seed: int) -> Iterator[EvaluationPair]:
        """Yield the pairs in the order of their names, as RGB (`channels` 3) or as gray (1).

        Raises ValueError for an image that cannot be read, has no partner, several, or one of another size: a part of
        a benchmark is not the benchmark.
        """
        for name, image in self._images().items():
            clean, was_gray = _read(image.uri, channels)
            if image.degraded is None:
                sampled = degrade(clean, self.degradation or task_degradation, [seed, zlib.crc32(name.encode())])
                yield EvaluationPair(name, clean, sampled.image, sampled.record, was_gray)
            else:
                partner, _ = _read(image.degraded, channels)
                if partner.shape != clean.shape:
                    raise ValueError(f"benchmark {self.name}: {image.uri} and {image.degraded} differ in size")
                yield EvaluationPair(name, clean, partner, {"clean": image.uri, "degraded": image.degraded}, was_gray)

    def clean_images(self) -> Iterator[tuple[str, Image]]:
        """Yield names and clean images, H W 3, in the order of their names; ValueError as `pairs`."""
        for name, image in self._images().items():
            yield name, _read(image.uri, 3)[0]

    def sha256(self) -> str:
        """Return the sha256 of the names and contents of all files, in the order of their names; errors as `pairs`."""
        total = hashlib.sha256()
        for name, image in self._images().items():
            for uri in filter(None, (image.uri, image.degraded)):
                total.update(name.encode() + b"\0" + hashlib.sha256(storage.read(uri)).digest())
        return total.hexdigest()

    def _images(self) -> dict[str, listing.Candidate]:
        """Return the images by name, sorted."""
        source = listing.Pairs(clean=self.clean, degraded=self.degraded) if self.degraded else None
        try:
            images, left_out = listing.require_images(source or listing.Folder(path=self.clean))
        except ValueError as error:
            raise ValueError(f"benchmark {self.name}: {error}") from error
        for item in left_out:
            if not item.ignored:
                raise ValueError(f"benchmark {self.name}: {item.uri}: {item.reason}")
        named: dict[str, listing.Candidate] = {}
        for image in sorted(images, key=lambda image: image.name):
            if (other := named.setdefault(image.name, image)) is not image:
                one, two = other.degraded or other.uri, image.degraded or image.uri
                raise ValueError(f"benchmark {self.name}: {one} and {two} differ only in their suffix: remove one")
        return named


def load_benchmark(params: Mapping[str, Any], name: str) -> Benchmark:
    """Return a benchmark of params.yaml; ParamsError if there is none of that name, or it is not valid."""
    settings = benchmark_settings(params, name)
    if settings.dataset is None:
        assert settings.clean is not None
        clean, degraded = _located(settings.clean), settings.degraded and _located(settings.degraded)
        published = overlaps.set_of(patterns.place_of(clean))
        dataset = published.name if published else None
    else:
        clean, degraded = _layout(name, settings.dataset, settings.split)
        dataset = settings.dataset
        if degraded and settings.degradation:
            raise ParamsError(f"benchmarks.{name}: {dataset} has its own degraded images: remove degradation")
    return Benchmark(name, clean, degraded, settings.degradation, settings.protocol, dataset)


def _layout(name: str, dataset: str, split: str | None) -> tuple[str, str | None]:
    """Return where the clean and the degraded images of a split are."""
    try:
        found = datasets.layouts(dataset, split)
    except ValueError as error:
        raise ParamsError(f"benchmarks.{name}: {error}") from error
    if len(found) > 1:
        raise ParamsError(f"benchmarks.{name}: give a split of {dataset}: {', '.join(found)}")
    (layout,) = found.values()
    return layout.clean, layout.degraded


def _located(place: str) -> str:
    """Return the place to read from for a place in params.yaml: relative places are below DGUNET_DATA."""
    return place if "://" in place or Path(place).is_absolute() else f"{read_environment().data}/{place}"


def _missing(place: str) -> str | None:
    try:
        return None if any(not is_hidden(file.name) for file in storage.list_files(place)) else place
    except places.NoSuchPlace:
        return place
    except places.StorageError as error:
        if "://" in place:  # out of reach, for example without a network
            return f"{place} ({str(error).removeprefix(f'{place}: ')})"
        raise


def _read(uri: str, channels: int) -> tuple[Image, bool]:
    """Return an image in the task's channels, and whether three channels repeat a gray image."""
    try:
        pixels = read_photo(storage.read(uri)).pixels
    except (UnreadableImage, places.UnreadableFile) as error:
        raise ValueError(f"{uri}: {error}") from error
    return to_float(in_channels(pixels, channels)), pixels.shape[2] < channels
