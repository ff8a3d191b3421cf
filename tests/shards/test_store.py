"""Shards at a URL: a local S3 server that loses, damages and refuses them; and a cache with little room."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import s3fs
from factories import pair, write_folder
from processes import S3Server
from synthesis_checkout import OUT, interrupted_after

from pipeline import synthesize
from pipeline.cluster import tasks
from pipeline.dataloader.dataset import PatchDataset
from pipeline.dataloader.pairs import pairs
from pipeline.shards import store
from pipeline.shards.format import INDEX, DamagedShard, Index, Shard, checksum, read_index
from pipeline.sources.manifest import SPLITS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DGUNET_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "WAITS", (0.01, 0.02))
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server where shards lie."""
    monkeypatch.setenv("DGUNET_SHARDS", f"s3://{s3_server.bucket}/here/")
    s3fs.S3FileSystem.clear_instance_cache()  # those of the server of another test
    return s3_server


@pytest.fixture
def place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that plays the URL."""
    monkeypatch.setenv("DGUNET_SHARDS", f"file://{tmp_path / 'place'}")
    return tmp_path / "place"


def renamed_aside(folder: Path, sizes: list[int]) -> Index:
    """A folder of shards whose tars lie at the URL."""
    index = write_folder(folder, sizes)
    for entry in index.shards:
        store.put(folder / entry.name, entry.sha256)
        (folder / entry.name).unlink()
    return index


@pytest.mark.slow
def test_shards_in_a_bucket_are_read_and_their_faults_are_reported(
    server: S3Server, cache: Path, tmp_path: Path
) -> None:
    client = server.client()
    folder = tmp_path / "train"
    index = renamed_aside(folder, [3, 4, 2, 2])
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=server.bucket)["Contents"]]
    assert sorted(keys) == sorted(f"here/{entry.sha256}.tar" for entry in index.shards)
    assert all(store.is_intact(entry.sha256) for entry in index.shards)
    np.testing.assert_array_equal(Shard(folder, index.shards[0])[1].clean, pair(1).clean)

    lost, damaged, late = (f"here/{entry.sha256}.tar" for entry in index.shards[1:])
    client.delete_object(Bucket=server.bucket, Key=lost)
    client.put_object(Bucket=server.bucket, Key=damaged, Body=b"x" * index.shards[2].bytes)
    assert [store.is_intact(entry.sha256) for entry in index.shards] == [True, False, False, True]
    with pytest.raises(DamagedShard, match=r"train/000001\.tar is missing at s3://bucket/here/.*dvc repro --force"):
        Shard(folder, index.shards[1])
    with pytest.raises(DamagedShard, match=r"train/000002\.tar has another checksum than its name .*dvc repro --force"):
        Shard(folder, index.shards[2])

    server.stop()
    with pytest.raises(store.OutOfReach, match=rf"s3://bucket/{late}: cannot be reached, tried 3 times"):
        Shard(folder, index.shards[3])
    assert len(Shard(folder, index.shards[0])) == 3, "what is in the cache needs no server"
    assert not list(cache.glob("*.partial"))


@pytest.mark.slow
def test_a_server_that_stops_in_the_middle_of_a_shard_is_reported_and_waited_for(
    server: S3Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client()
    index = renamed_aside(tmp_path / "train", [4])
    filesystem, _ = store._place(index.shards[0].sha256)

    def stop_in_the_middle(source: str, target: str) -> None:
        Path(target).write_bytes(filesystem.cat_file(source, end=4096))
        server.stop()
        filesystem.cat_file(source, start=4096)

    monkeypatch.setattr(filesystem, "get_file", stop_in_the_middle)
    with pytest.raises(store.OutOfReach, match="continues from here"):
        Shard(tmp_path / "train", index.shards[0])
    assert not list(cache.glob("*.tar")) and not list(cache.glob("*.partial"))


@pytest.mark.slow
def test_synthesis_writes_to_a_bucket_and_what_dvc_tracks_is_the_index(
    synthesis_checkout: Path,
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = server.client()
    synthesize.main()
    there = {split: (OUT / split / "index.json").read_bytes() for split in SPLITS}
    assert all(os.listdir(OUT / split) == ["index.json"] for split in SPLITS)  # noqa: PTH208
    read = [p.clean for split in SPLITS for p in pairs(OUT / split)]
    (one, *_) = client.list_objects_v2(Bucket=server.bucket)["Contents"]
    client.put_object(Bucket=server.bucket, Key=one["Key"], Body=b"damaged")
    synthesize.main()  # as `dvc repro --force` does
    assert {split: (OUT / split / "index.json").read_bytes() for split in SPLITS} == there
    assert client.head_object(Bucket=server.bucket, Key=one["Key"])["ContentLength"] == one["Size"]
    monkeypatch.delenv("DGUNET_SHARDS")
    synthesize.main()
    assert {split: (OUT / split / "index.json").read_bytes() for split in SPLITS} == there, (
        "the same, wherever they lie"
    )
    assert all(
        np.array_equal(a, p.clean) for a, p in zip(read, (p for s in SPLITS for p in pairs(OUT / s)), strict=True)
    )


def test_an_interrupted_synthesis_goes_on_with_what_is_missing_at_the_url(
    synthesis_checkout: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "map_unordered", interrupted_after(4))
    with pytest.raises(KeyboardInterrupt):
        synthesize.main()
    before = sorted(place.iterdir())
    assert len(before) == 4
    before[0].write_bytes(b"damaged")
    made: list[str] = []
    original = synthesize.write_shard
    monkeypatch.setattr(synthesize, "write_shard", lambda path, pairs: made.append(path.name) or original(path, pairs))
    monkeypatch.setattr(tasks, "map_unordered", map)
    synthesize.main()
    entries = [entry for split in SPLITS for entry in read_index(OUT / split).shards]
    assert len(made) == len(entries) - 3
    assert sorted(path.name for path in place.glob("*.tar")) == sorted(f"{entry.sha256}.tar" for entry in entries)
    (record,) = (place / "records").iterdir()
    known = json.loads(record.read_text())
    assert set(known["shards"]) == {entry.sha256 for entry in entries}
    assert known["indices"] == {split: checksum(OUT / split / INDEX) for split in SPLITS}
    assert all(store.is_intact(entry.sha256) for entry in entries)


def test_the_cache_keeps_what_was_used_last_and_no_more_than_it_may(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = renamed_aside(tmp_path / "s", [4, 4, 4, 4])
    size = index.shards[0].bytes
    monkeypatch.setenv("DGUNET_SHARD_CACHE_GB", str(2.5 * size / 1e9))
    shards = [Shard(tmp_path / "s", index.shards[n]) for n in (0, 1, 0, 3)]
    assert {path.name for path in cache.glob("*.tar")} == {f"{index.shards[n].sha256}.tar" for n in (0, 3)}
    shards.append(Shard(tmp_path / "s", index.shards[2]))
    assert {path.name for path in cache.glob("*.tar")} == {f"{index.shards[n].sha256}.tar" for n in (2, 3)}
    assert [shard[0].key for shard in shards] == ["pair0000", "pair0004", "pair0000", "pair0012", "pair0008"]
    for path in place.iterdir():
        path.unlink()
    Shard(tmp_path / "s", index.shards[3])
    with pytest.raises(DamagedShard, match="is missing at file://"):
        Shard(tmp_path / "s", index.shards[0])


def test_a_download_that_was_killed_is_removed_and_one_under_way_is_not(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = renamed_aside(tmp_path / "s", [4])
    cache.mkdir()
    (cache / "old.partial").write_bytes(b"x" * 1000)
    (cache / "new.partial").write_bytes(b"x" * 1000)
    os.utime(cache / "old.partial", (1, 1))
    monkeypatch.setenv("DGUNET_SHARD_CACHE_GB", "0.000001")
    Shard(tmp_path / "s", index.shards[0])
    assert sorted(path.name for path in cache.glob("*.partial")) == ["new.partial"]


def test_a_shard_damaged_in_the_cache_is_brought_again(place: Path, cache: Path, tmp_path: Path) -> None:
    index = renamed_aside(tmp_path / "s", [4])
    Shard(tmp_path / "s", index.shards[0])
    (copy,) = cache.glob("*.tar")
    content = bytearray(copy.read_bytes())
    content[700] ^= 1
    copy.unlink()
    copy.write_bytes(content)
    np.testing.assert_array_equal(Shard(tmp_path / "s", index.shards[0])[0].clean, pair(0).clean)


def test_many_at_once_bring_a_shard_once(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = renamed_aside(tmp_path / "s", [4, 4])
    brought: list[str] = []
    original = store._bring
    monkeypatch.setattr(
        store, "_bring", lambda path, sha256, most: brought.append(sha256) or original(path, sha256, most)
    )
    with ThreadPoolExecutor(8) as pool:
        shards = list(pool.map(lambda n: Shard(tmp_path / "s", index.shards[n % 2]), range(16)))
    assert [shard[0].key for shard in shards] == ["pair0000", "pair0004"] * 8
    assert sorted(brought) == sorted(entry.sha256 for entry in index.shards)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("slip", "message"),
    [
        ("DGUNET_SHARD_CACHE_GB=20 GB", "DGUNET_SHARD_CACHE_GB must be a number of gigabytes, 0 or more, not '20 GB'"),
        ("DGUNET_SHARDS=nowhere://here", "DGUNET_SHARDS=nowhere://here: Protocol not known: nowhere"),
        ("DGUNET_SHARDS=gs://bucket", "DGUNET_SHARDS=gs://bucket: .*gcsfs"),
    ],
)
def test_a_mistake_in_the_environment_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slip: str, message: str
) -> None:
    index = renamed_aside(tmp_path / "s", [4])
    monkeypatch.setenv(*slip.split("="))
    with pytest.raises(ValueError, match=message):
        Shard(tmp_path / "s", index.shards[0])


def test_a_place_that_comes_back_is_waited_for(
    place: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = renamed_aside(tmp_path / "s", [4])
    filesystem, _ = store._place(index.shards[0].sha256)
    original, failures = filesystem.get_file, [ConnectionError("gone"), TimeoutError()]

    def get_file(source: str, target: str) -> None:
        if failures:
            raise failures.pop()
        original(source, target)

    monkeypatch.setattr(filesystem, "get_file", get_file)
    assert len(Shard(tmp_path / "s", index.shards[0])) == 4
    assert not failures


def test_a_worker_touches_the_shards_of_its_streams_and_no_others(place: Path, cache: Path, tmp_path: Path) -> None:
    renamed_aside(tmp_path / "s", [4] * 8)
    patches = PatchDataset(tmp_path / "s", batch_size=8, patch_size=16, seed=1)
    for step in range(patches.order.steps_per_epoch):
        for stream in (0, 1):  # of eight: those of one of four workers
            patches[step, stream]
    assert len(list(cache.glob("*.tar"))) <= 3
    for path in cache.glob("*.tar"):
        path.unlink()
    assert len(list(pairs(tmp_path / "s", rank=2, world_size=4))) == 8
    assert len(list(cache.glob("*.tar"))) == 2


def test_with_mixup_a_worker_opens_few_more(place: Path, cache: Path, tmp_path: Path) -> None:
    renamed_aside(tmp_path / "s", [4] * 16)
    patches = PatchDataset(tmp_path / "s", batch_size=16, patch_size=16, seed=1, mixup_alpha=0.6)
    for step in range(patches.order.steps_per_epoch):
        for stream in range(3, 6):  # of sixteen: they are mixed within the first eight
            patches[step, stream]
    assert len(list(cache.glob("*.tar"))) <= 9


def test_a_worker_on_a_machine_without_the_folder_reads_by_the_index_it_was_given(
    place: Path, cache: Path, tmp_path: Path
) -> None:
    renamed_aside(tmp_path / "s", [4] * 2)
    index, elsewhere = read_index(tmp_path / "s"), tmp_path / "not here"
    here, there = PatchDataset(tmp_path / "s", 4, 16, seed=1), PatchDataset(elsewhere, 4, 16, seed=1, index=index)
    assert np.array_equal(here[1, 2][0], there[1, 2][0])
    assert [one.key for one in pairs(elsewhere, index=index)] == [one.key for one in pairs(tmp_path / "s")]


def test_a_shard_that_lies_neither_here_nor_there_says_how_to_name_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DGUNET_SHARDS", raising=False)
    index = write_folder(tmp_path / "s", [4])
    (tmp_path / "s" / index.shards[0].name).unlink()
    with pytest.raises(DamagedShard, match="DGUNET_SHARDS"):
        Shard(tmp_path / "s", index.shards[0])
