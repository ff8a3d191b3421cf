"""Lists the images of the sources in `prepare.sources`: starter photographs, folders, archives, URLs, pairs, sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from dgunet.images import SUFFIXES
from dgunet.images.names import why_no_photo
from dgunet.images.photo import MAX_PIXELS
from pipeline.sources import datasets, overlaps
from pipeline.sources.patterns import Key, Pattern, without_suffix
from pipeline.sources.places import File, StorageError, portable_place
from pipeline.sources.registry import data_set
from pipeline.sources.storage import list_files, read

STARTER_PHOTOS = {  # docs/decisions.md names the other images of the two wheels and why they are not used
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class Starter:
    """The colour photographs that ship inside the scikit-image and scikit-learn wheels."""

    __pydantic_config__: ClassVar = _STRICT

    kind: Literal["starter"] = "starter"


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Every image below a folder, an archive (.zip, .tar, .tar.gz, ...), ARCHIVE!FOLDER or an fsspec URL, recursively.

    A pattern may follow the place, as in `Pairs`: then only the images whose names match.
    """

    __pydantic_config__: ClassVar = _STRICT

    path: str
    kind: Literal["folder"] = "folder"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Real pairs, each a clean image with its degraded partner: two folders, or two patterns of file names.

    `clean` and `degraded` are each a folder, archive or URL, or such a place followed by a pattern. In a pattern `{}`
    stands for what partners have in common (across folders too) and `*` for anything within one name. Where a name
    matches in several ways, as 0025_0.8_0.04.jpg does with {}_*.jpg, `{}` is the longest part that has a clean image:

        clean: rain/target                      degraded: rain/input
        clean: gopro.zip!train/{}/sharp/{}      degraded: gopro.zip!train/{}/blur/{}
        clean: sidd/{}/GT_SRGB_{}.PNG           degraded: sidd/{}/NOISY_SRGB_{}.PNG
        clean: rain1400/clean/{}.jpg            degraded: rain1400/rainy/{}_*.jpg

    One clean image may have several degraded partners. A file that both patterns match belongs to the one with more
    literal characters.
    """

    __pydantic_config__: ClassVar = _STRICT

    clean: str
    degraded: str
    kind: Literal["pairs"] = "pairs"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A published image set of the registry (pipeline/sources/datasets.yaml), fetched into DGUNET_DATA if it is absent.

    split: one split of the set; None: all.
    without: published sets whose scenes are left out, because the model is to be measured on them.
    """

    __pydantic_config__: ClassVar = _STRICT

    name: str
    split: str | None = None
    without: list[str] = field(default_factory=list)
    kind: Literal["dataset"] = "dataset"

    def __post_init__(self) -> None:
        data_set(self.name).layouts(self.split)
        for name in self.without:
            data_set(name)


Source: TypeAlias = Starter | Folder | Pairs | Dataset


@dataclass(frozen=True)
class Candidate:
    """An image to inspect; `degraded` is its partner in a real pair. `version` as in places.File.

    `name` is the path of the file (in a pair, of the degraded one) below its place, without the suffix.
    """

    uri: str
    version: str | None
    source: str
    degraded: str | None = None
    name: str = ""


@dataclass(frozen=True)
class RejectedImage:
    """A file that is not used, with the reason; `ignored`: left out by its name, a pattern or `without`, not faulty."""

    uri: str
    reason: str
    ignored: bool = False


def describe(source: Source) -> str:
    """Return the name of a source in the manifest and in messages: its kind and its place."""
    match source:
        case Starter():
            return "starter"
        case Folder():
            return f"folder:{source.path}"
        case Pairs():
            return f"pairs:{source.clean}"
        case Dataset():
            return f"dataset:{source.name}" + (f"/{source.split}" if source.split else "")


def source_label(name: str) -> str:
    """Return the name, as from `describe`, of a source of pairs that `synthesize.real_pairs` gives."""
    return name if name.startswith("dataset:") else f"pairs:{name}"


def list_images(source: Source) -> Iterator[Candidate | RejectedImage]:
    """List the images and the rejected files of a source in a fixed order; a published set is fetched if absent.

    Raises what storage.list_files and datasets.require raise.
    """
    match source:
        case Starter():
            return _list_starter(source)
        case Folder():
            return _list_folder(source)
        case Pairs():
            return _list_pairs(source)
        case Dataset():
            return _list_dataset(source)


def require_images(source: Source) -> tuple[list[Candidate], list[RejectedImage]]:
    """Return images and rejected files of list_images. Raises ValueError, with examples, if there is no image."""
    found = list(list_images(source))
    candidates = [item for item in found if isinstance(item, Candidate)]
    left_out = [item for item in found if isinstance(item, RejectedImage)]
    if not candidates:
        wanted = f"no pair that fits {source.clean} and {source.degraded}" if isinstance(source, Pairs) else "no image"
        raise ValueError(f"{describe(source)}: {wanted}{rejection_summary(left_out)}")
    return candidates, left_out


def rejection_summary(left_out: Sequence[RejectedImage]) -> str:
    """Return text for a message: how many files were rejected, with an example of each reason."""
    if not left_out:
        return ": the source is empty"
    first = list({item.reason: item for item in reversed(left_out)}.values())[::-1]
    some = "".join(f"\n  {item.uri}: {item.reason}" for item in first[:5])
    return f" among {len(left_out)} files:{some}" + ("\n  ..." if len(left_out) > min(len(first), 5) else "")


def read_source_image(uri: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the bytes of an image of the manifest. `max_pixels` and errors are those of storage.read."""
    package, _, name = uri.removeprefix("starter:").partition("/")
    place = str(_starter_path(package, name)) if uri.startswith("starter:") else datasets.located(uri)
    return read(place, max_pixels=max_pixels)


def _list_starter(source: Starter) -> Iterator[Candidate | RejectedImage]:
    for package, files in STARTER_PHOTOS.items():
        for file in files:
            name = Path(file).name
            stat = _starter_path(package, name).stat()
            version = f"{stat.st_size}:{stat.st_mtime_ns}"
            yield Candidate(f"starter:{package}/{name}", version, describe(source), name=without_suffix(name))


def _starter_path(package: str, name: str) -> Path:
    spec = find_spec(package)  # imports nothing: importing skimage and sklearn takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise StorageError(f"starter: the package {package} is not installed; `make setup` installs it")
    for file in STARTER_PHOTOS[package]:
        path = Path(spec.submodule_search_locations[0], file)
        if path.name == name and path.exists():
            return path
    raise StorageError(f"starter: {package} no longer ships {name}; use the versions that `make setup` installs")


def _list_folder(source: Folder) -> Iterator[Candidate | RejectedImage]:
    pattern = Pattern.parse(source.path)
    for file in list_files(pattern.place):
        if rejection := _set_aside(file):
            yield rejection
        elif not pattern.keys(file.name):
            yield RejectedImage(file.uri, "does not match the pattern", ignored=True)
        else:
            yield Candidate(file.uri, file.version, describe(source), name=without_suffix(file.name))


def _list_dataset(source: Dataset) -> Iterator[Candidate | RejectedImage]:
    """List the images of a published set, with URIs that do not depend on DGUNET_DATA."""
    datasets.require(source.name)
    base = portable_place(datasets.root())
    for layout in datasets.layouts(source.name, source.split).values():
        inner = Pairs(clean=layout.clean, degraded=layout.degraded) if layout.degraded else Folder(path=layout.clean)
        for item in list_images(inner):
            uri = datasets.portable_uri(item.uri, base)
            if isinstance(item, RejectedImage):
                yield replace(item, uri=uri)
            elif other := next((name for name in source.without if overlaps.shows_scene_of(uri, name)), None):
                yield RejectedImage(uri, f"shows a scene of {other}", ignored=True)
            else:
                degraded = item.degraded and datasets.portable_uri(item.degraded, base)
                yield replace(item, uri=uri, degraded=degraded, source=describe(source))


_Keyed: TypeAlias = dict[str, tuple[File, list[Key]]]


def _set_aside(file: File) -> RejectedImage | None:
    """Return the rejection of a file for its name or size, None if it must be inspected."""
    if file.problem:
        return RejectedImage(file.uri, file.problem)
    if reason := why_no_photo(file.name, SUFFIXES):
        return RejectedImage(file.uri, reason, ignored=True)
    return None


def _list_pairs(source: Pairs) -> Iterator[Candidate | RejectedImage]:
    patterns = Pattern.parse(source.clean), Pattern.parse(source.degraded)
    if patterns[0].num_shared != patterns[1].num_shared:
        raise ValueError(f"{describe(source)}: `clean` and `degraded` need the same number of {{}}")
    files = {place: list(list_files(place)) for place in sorted({pattern.place for pattern in patterns})}
    everything = {file.uri: file for listed in files.values() for file in listed}
    set_aside = {uri: rejection for uri, file in everything.items() if (rejection := _set_aside(file))}
    clean, degraded = (
        {
            file.uri: (file, keys)
            for file in files[pattern.place]
            if file.uri not in set_aside and (keys := pattern.keys(file.name))
        }
        for pattern in patterns
    )
    for uri in clean.keys() & degraded.keys():
        del (degraded if patterns[0].weight > patterns[1].weight else clean)[uri]
    yield from set_aside.values()
    for uri in sorted(everything.keys() - set_aside.keys() - clean.keys() - degraded.keys()):
        yield RejectedImage(uri, "matches neither pattern", ignored=True)
    yield from _join(clean, degraded, describe(source))


def _join(clean: _Keyed, degraded: _Keyed, label: str) -> Iterator[Candidate | RejectedImage]:
    """Pair the files. If a name matches in several ways, the longest parts that a clean file shares are taken."""
    by_key: dict[Key, list[File]] = defaultdict(list)
    for file, keys in clean.values():
        for key in keys:
            by_key[key].append(file)
    used: set[str] = set()
    for file, keys in degraded.values():
        partners = next((by_key[key] for key in keys if key in by_key), [])
        used.update(partner.uri for partner in partners)
        match partners:
            case []:
                yield RejectedImage(file.uri, f"no clean partner{_shared(keys, clean)}")
            case [partner]:
                version = f"{partner.version} {file.version}" if partner.version and file.version else None
                yield Candidate(partner.uri, version, label, file.uri, without_suffix(file.name))
            case several:
                yield RejectedImage(
                    file.uri, f"{len(several)} clean partners: {', '.join(file.uri for file in several)}"
                )
    for file, keys in clean.values():
        if file.uri not in used:
            yield RejectedImage(file.uri, f"no degraded partner{_shared(keys, degraded)}")


def _shared(keys: Sequence[Key], others: _Keyed) -> str:
    """Return text for a message: what a name may share with its partner, and an example from the other side."""
    own = " or ".join(_quoted(key) for key in keys[:3])
    example = next((_quoted(other[0]) for _, other in others.values()), None)
    return f" for {own}; " + (f"the other side has, for example, {example}" if example else "the other side is empty")


def _quoted(key: Key) -> str:
    return ", ".join(f'"{part}"' for part in key)
