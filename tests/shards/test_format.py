"""Shards: the same bytes for the same pairs, what was written comes back, damage is never silent."""

import os
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from factories import pair, write_folder

from pipeline.shards.format import DamagedShard, Index, Pair, Shard, ShardEntry, read_index, write_index, write_shard


def test_pairs_come_back_as_they_were(tmp_path: Path) -> None:
    written = [pair(n) for n in range(3)] + [pair(3, degraded=False)]
    entry = write_shard(tmp_path / "000000.tar", written)
    shard = Shard(tmp_path, entry)
    assert len(shard) == 4
    for expected, found in zip(written, (shard[i] for i in range(4)), strict=True):
        assert found.key == expected.key
        assert found.record == expected.record
        np.testing.assert_array_equal(found.clean, expected.clean)
        if expected.degraded is None:
            assert found.degraded is None
        else:
            assert found.degraded is not None
            np.testing.assert_array_equal(found.degraded, expected.degraded)


def test_the_index_holds_the_shortest_side_of_all_pairs(tmp_path: Path) -> None:
    tall = Pair("tall", np.zeros((30, 9, 3), np.uint8), None, {})
    entries = [write_shard(tmp_path / "0.tar", [pair(0), tall, pair(1)]), write_shard(tmp_path / "1.tar", [pair(2)])]
    assert [entry.min_side for entry in entries] == [9, 24]
    write_index(tmp_path, Index({}, entries))
    assert read_index(tmp_path).min_side == 9


def test_the_same_pairs_make_the_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.tar", [pair(n) for n in range(3)])
    os.utime(tmp_path / "a.tar", (1, 1))
    second = write_shard(tmp_path / "b.tar", [pair(n) for n in range(3)])
    assert first.sha256 == second.sha256
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")  # theirs
def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [2])
    samples = list(wds.WebDataset(str(tmp_path / "s" / "000000.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["pair0000", "pair0001"]
    np.testing.assert_array_equal(samples[0]["clean.npy"], pair(0).clean)


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def pairs():  # type: ignore[no-untyped-def]
        yield pair(0)
        raise RuntimeError("the image is unreadable")

    with pytest.raises(RuntimeError, match="unreadable"):
        write_shard(tmp_path / "000000.tar", pairs())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["../evil", "a b", "a.b", "", "a/b"])
def test_a_key_that_is_no_plain_name_is_refused(tmp_path: Path, key: str) -> None:
    good = pair(0)
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "000000.tar", [Pair(key, good.clean, good.degraded, {})])


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_by_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_at_a_member(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 512 * 5])


def damage_a_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 512 * 512] ^= 0xFF
    path.write_bytes(content)


def damage_a_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[800] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [damage_missing, damage_by_a_byte, damage_at_a_member, damage_a_header, damage_a_pixel]
)
def test_a_damaged_shard_is_named_with_what_to_run(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    index = write_folder(tmp_path / "s", [4])
    path = tmp_path / "s" / "000000.tar"
    damage(path)
    with pytest.raises(DamagedShard, match=r"000000\.tar .*make repro"):
        Shard(tmp_path / "s", index.shards[0])


def test_an_index_that_promises_other_samples_is_refused(tmp_path: Path) -> None:
    entry = write_folder(tmp_path / "s", [4]).shards[0]
    with pytest.raises(DamagedShard, match="holds 4 samples, the index says 5"):
        Shard(tmp_path / "s", ShardEntry(entry.name, 5, entry.bytes, entry.sha256, entry.min_side))


def test_a_missing_or_broken_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing: run `make repro`"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"shards": [{"name": 1}]}')
    with pytest.raises(ValueError, match="not an index"):
        read_index(tmp_path)
