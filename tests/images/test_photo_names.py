"""Which names in a folder are photographs."""

import ast
from pathlib import Path

import pytest

from dgunet.images import names

SUFFIXES = (".jpg", ".png")


@pytest.mark.parametrize("name", ["a.jpg", "A.JPG", "a.b.png", "trip/day 1/ü.jpg", "Thumbs/a.jpg", "@home/a.jpg"])
def test_a_name_with_a_known_suffix_is_a_photograph(name):
    assert names.why_no_photo(name, SUFFIXES) is None


@pytest.mark.parametrize(
    "name",
    [
        "._a.jpg",
        ".a.jpg",
        ".thumbnails/a.jpg",
        "trip/.cache/deep/a.jpg",
        "__MACOSX/a.jpg",
        "trip/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "Thumbs.db",
        "THUMBS.DB",
        "$RECYCLE.BIN/a.jpg",
    ],
)
def test_hidden_files_and_those_of_programs_are_no_photographs(name):
    assert "hidden" in str(names.why_no_photo(name, SUFFIXES))
    assert names.count_unread([name], ()) == {}


@pytest.mark.parametrize(("name", "start"), [("a.heic", ".heic"), ("README", "no suffix"), ("a.jpg.part", ".part")])
def test_another_suffix_is_the_reason(name, start):
    assert str(names.why_no_photo(name, SUFFIXES)).startswith(start)


def test_unread_files_are_counted_by_suffix():
    listed = [*(f"{i}.HEIC" for i in range(9)), "a.txt", "b.txt", "trip/c.txt", "a.jpg", ".hidden", "Thumbs.db"]
    counts = names.count_unread(listed, SUFFIXES)
    assert counts == {".heic": 9, ".txt": 3}
    line = names.describe_unread(counts)
    assert line.startswith("12 files are not supported photographs: .heic 9, .txt 3")
    assert "dgunet[photos]" in line
    assert names.describe_unread({"": 1}) == "1 file is not a supported photograph: no suffix 1"
    assert names.describe_unread({}) == ""


def test_many_suffixes_are_shortened():
    line = names.describe_unread({f".{i:03d}": 1 for i in range(100)})
    assert line.startswith("100 files")
    assert line.endswith(".004 1, .005 1, 94 more suffixes")


def test_the_module_imports_the_standard_library_alone():
    tree = ast.parse(Path(names.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"collections", "collections.abc", "pathlib"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
