"""Blocks of photographs: which files, in which order, under which names; never all of them at once."""

from itertools import islice
from pathlib import Path

import pytest
from factories import write_pngs

from pipeline.restoration import blocks
from pipeline.restoration.blocks import count_photos, find_shards, photo_blocks, shard_blocks
from pipeline.sources.storage import list_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(place: str, size: int = 64, file_format: str | None = None) -> list[tuple[str, str]]:
    found = photo_blocks(str(Path(place).absolute()), size, file_format)
    return [(file.name, target) for block in found for file, target in zip(block.files, block.targets, strict=True)]


def test_photographs_come_in_the_order_of_their_paths_in_blocks_of_a_size() -> None:
    write_pngs("in/b.png", "in/a.png", "in/c/2.png", "in/c/1.png", "in/d.png", "in/.hidden.png", "in/@eaDir/a.png")
    Path("in/notes.txt").touch()
    found = list(photo_blocks(str(Path("in").absolute()), 2, None))
    assert [block.name for block in found] == ["000000", "000001", "000002"]
    assert [block.targets for block in found] == [("a.png", "b.png"), ("c/1.png", "c/2.png"), ("d.png",)]
    assert found[0].files[0].uri == str(Path("in/a.png").absolute())
    assert count_photos("in") == (5, {".txt": 1})


@pytest.mark.parametrize("file_format", ["png", None])
def test_names_are_those_that_dgunet_restore_writes(file_format: str | None) -> None:
    names = ["a.b.jpg", "a.jpeg", "a.jpg", "a.png", "b.heic", "v1.0/a.jpg", "v1.0/a.png", "a.d/x.jpg", "a.d/x.png"]
    write_pngs(*(f"in/{name}" for name in names))
    from dgunet.jobs import plan

    planned = {
        job.source.relative_to("in").as_posix(): job.target.relative_to("out").as_posix()
        for job in plan([Path("in")], "out", file_format).jobs
    }
    assert dict(named("in", file_format=file_format)) == planned


def test_files_are_listed_only_as_blocks_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    write_pngs(*(f"in/{number:02d}.png" for number in range(20)))
    listed = []

    def counting(place: str):
        for file in list_files(place):
            listed.append(file.name)
            yield file

    monkeypatch.setattr(blocks, "list_files", counting)
    assert len(list(islice(photo_blocks("in", 4, None), 2))) == 2
    assert len(listed) < 12


def test_what_cannot_be_read_is_part_of_a_block_with_the_reason() -> None:
    write_pngs("in/a.png")
    Path("in/nothing.png").symlink_to("gone.png")
    Path("in/up").symlink_to("..")
    (block,) = photo_blocks(str(Path("in").absolute()), 64, None)
    problems = {file.name: file.problem for file in block.files}
    assert problems["a.png"] is None
    assert "cannot be read" in str(problems["nothing.png"])
    assert problems["up"] == "a link to a folder that contains it"


def test_inputs_are_others_when_a_file_or_a_name_changes() -> None:
    write_pngs("in/a.png", "in/b.png")
    place = str(Path("in").absolute())

    def sha256(file_format: str | None = None) -> str:
        (block,) = photo_blocks(place, 64, file_format)
        return block.inputs_sha256

    before = sha256()
    assert before == sha256() != sha256("jpg")
    Path("in/b.png").write_bytes(Path("in/a.png").read_bytes() + b"x")
    assert sha256() != before


def test_shards_are_found_in_folders_patterns_and_by_name() -> None:
    Path("in").mkdir()
    for name in ("in/b.tar", "in/a.tar", "in/.c.tar", "in/a.json", "x.tar"):
        Path(name).touch()
    for places in (["in"], ["in/*.tar"], ["in/a.tar", "in/b.tar"]):
        assert sorted(block.name for block in shard_blocks(find_shards(places))) == ["a", "b"]
    assert find_shards(["."])[0].uri == str(Path("x.tar").absolute())
    assert find_shards(["in/none"]) == []
    with pytest.raises(ValueError, match=r"no\.tar: no such shard"):
        find_shards(["in/no.tar"])
    Path("x.tar").rename("a.tar")
    with pytest.raises(ValueError, match="have the same name"):
        find_shards(["in", "a.tar"])
