"""The registry of published image sets: description, licence, addresses of the files, scenes shared with other sets.

datasets.yaml      one entry per set
checksums/*.tsv    the files of sets that are many single files: sha256, bytes, path in the set's folder, path at the
                   source. A line with - in place of the last gives other accepted bytes of the same image.
overlaps.yaml      scenes that two sets share
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import quote

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from pipeline.config.params import Section

_HERE = Path(__file__).parent
_SHA256, _MD5 = r"[0-9a-f]{64}", r"[0-9a-f]{32}"
ALL: Literal["all"] = "all"


def _is_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"{path!r} points outside the folder of the set")
    return path


InnerPath = Annotated[str, AfterValidator(_is_inside)]


class Content(Section):
    """Accepted content of a file: its size in bytes and a checksum, each None if it is not known."""

    size: int | None = None
    sha256: Annotated[str, Field(pattern=f"^{_SHA256}$")] | None = None
    md5: Annotated[str, Field(pattern=f"^{_MD5}$")] | None = None

    @property
    def checksum(self) -> str | None:
        """The checksum with its algorithm, such as "md5:0a1b…", None if there is none."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"md5:{self.md5}" if self.md5 else None


class DataFile(Content):
    """One file of a set.

    path: path in the set's folder, with forward slashes.
    url: address to fetch it from; None if it can only be fetched by hand.
    also: other accepted contents: the same pixels in other bytes.
    """

    path: InnerPath
    url: str | None = None
    also: Annotated[list[Content], Field(default_factory=list)]

    @property
    def contents(self) -> list[Content]:
        """All accepted contents; the first is that of `url`."""
        return [Content(size=self.size, sha256=self.sha256, md5=self.md5), *self.also]


class Listed(Section):
    """Files with a list of checksums: `base`, the URL of a pinned version (ending in /); `file`, name of the list."""

    base: Annotated[str, Field(pattern=r"^https?://.*/$")]
    file: Annotated[str, Field(pattern=r"^\w+\.tsv$")]


class Layout(Section):
    """Where the images of one split are in the set's folder, as in a source of kind `pairs`."""

    clean: InnerPath
    degraded: InnerPath | None = None


class DataSet(Section):
    """A published image set; `name` is its key in the registry.

    Attributes:
        about: description in one line.
        tasks: the tasks that it is commonly used for.
        licence: the licence, or what is known about it, in one line.
        terms: what a user must accept before the set is fetched, None if there are no terms.
        cite: the publication to cite.
        page: web page that describes the set, or from which it is fetched by hand.
        folder: its folder below DGUNET_DATA.
        listed, files: its files; exactly one of the two is given.
        splits: where the images of each split are; empty if the set has no images that the pipeline can read.
        use: "training", "test", or a sentence.
        verified: whether the files at the addresses have been compared with the checksums.
    """

    name: str
    about: str
    tasks: list[str]
    licence: str
    terms: str | None = None
    cite: str
    page: Annotated[str, Field(pattern=r"^https?://")]
    folder: Annotated[str, Field(pattern=r"^\w+$")]
    listed: Listed | None = None
    files: list[DataFile] | None = None
    splits: dict[str, Layout]
    use: str
    verified: bool

    @model_validator(mode="after")
    def _has_files_of_one_form(self) -> DataSet:
        if (self.listed is None) == (self.files is None):
            raise ValueError("give `listed` or `files`")
        return self

    def all_files(self) -> Sequence[DataFile]:
        """Return all files of the set."""
        return _read_list(self.listed.base, self.listed.file) if self.listed else self.files or []

    def has_checksums(self) -> bool:
        """Whether every file has a checksum."""
        return all(file.checksum for file in self.all_files())

    def layouts(self, split: str | None) -> dict[str, Layout]:
        """Return the layout of one split, of all if None. Raises ValueError if the set has no such split, or none."""
        if not self.splits:
            raise ValueError(f"{self.name}: {self.about}: {self.use} ({self.page})")
        if split is None:
            return dict(self.splits)
        if split not in self.splits:
            raise ValueError(f"data set {self.name} has no split `{split}`; available: {', '.join(self.splits)}")
        return {split: self.splits[split]}


class Overlap(Section):
    """Scenes that two sets share: for each set, the names of the images in its folder, without suffix, or "all"."""

    images: Annotated[dict[str, list[str] | Literal["all"]], Field(min_length=2, max_length=2)]


@lru_cache(maxsize=1)
def data_sets() -> Mapping[str, DataSet]:
    """Return all sets by name, in the order of the registry."""
    content: dict[str, dict[str, Any]] = yaml.safe_load((_HERE / "datasets.yaml").read_text(encoding="utf-8"))
    return {name: DataSet.model_validate({"name": name, **facts}) for name, facts in content.items()}


def data_set(name: str) -> DataSet:
    """Return a set by name. Raises ValueError, which lists all names, if there is no such set."""
    if name not in data_sets():
        raise ValueError(f"there is no data set `{name}`; available: {', '.join(data_sets())}")
    return data_sets()[name]


def set_of_folder(folder: str) -> DataSet | None:
    """Return the set whose folder below DGUNET_DATA has this name, None if there is none."""
    return next((found for found in data_sets().values() if found.folder == folder), None)


@lru_cache(maxsize=1)
def overlaps() -> Sequence[Overlap]:
    """Return all pairs of sets that share scenes."""
    content = yaml.safe_load((_HERE / "overlaps.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(list[Overlap]).validate_python([{"images": images} for images in content])


def shared_images(name: str, other: str) -> Sequence[str] | Literal["all"]:
    """Return which images of set `name` show scenes of set `other`: names without suffix, or "all"."""
    if name == other:
        return ALL
    found = [overlap.images[name] for overlap in overlaps() if set(overlap.images) == {name, other}]
    return found[0] if found else []


@lru_cache
def _read_list(base: str, name: str) -> Sequence[DataFile]:
    lines = (_HERE / "checksums" / name).read_text(encoding="utf-8").splitlines()
    return list(_parse_list(base, [line.split("\t") for line in lines]))


def _parse_list(base: str, rows: Sequence[Sequence[str]]) -> Iterator[DataFile]:
    also: dict[str, list[Content]] = {}
    for sha256, size, path, origin in rows:
        if origin == "-":
            also.setdefault(path, []).append(Content(size=int(size), sha256=sha256))
    for sha256, size, path, origin in rows:
        if origin != "-":
            yield DataFile(path=path, url=base + quote(origin), size=int(size), sha256=sha256, also=also.pop(path, []))
    if also:
        raise ValueError(f"no path at the source for {', '.join(also)}")
