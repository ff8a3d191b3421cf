"""Synthesis: the same bytes whoever makes them, in whatever order, interrupted, killed or forced; and lazily."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from factories import PROJECT, pythonpath
from processes import SmallDisk
from synthesis_checkout import ARGUMENTS, OUT, SETTINGS, interrupted_after, photograph

from dgunet.images import quantise, read_image, read_photo, to_float, write_image
from pipeline import synthesize
from pipeline.cluster import tasks
from pipeline.config.params import validated
from pipeline.degradations import regenerate
from pipeline.runtime.provenance import digest
from pipeline.shards.format import Shard, checksum, read_index
from pipeline.sources.hashing import pixel_hash
from pipeline.sources.manifest import SPLITS, Entry, read_manifest
from pipeline.sources.overlaps import PHOTOGRAPHS
from pipeline.synthesis import tiles
from pipeline.synthesis.settings import Synthesize


def result() -> dict[str, str]:
    """Checksum of each folder of the output: of names and contents of all that is in it."""
    assert sorted(path.name for path in OUT.iterdir()) == sorted([*SPLITS, PHOTOGRAPHS])
    return {split: digest((OUT / split).iterdir()) for split in SPLITS} | {PHOTOGRAPHS: checksum(OUT / PHOTOGRAPHS)}


def backwards(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    return map(function, reversed(list(items)))


def test_forced_twice_or_made_in_another_order_the_bytes_are_the_same(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize.main()
    first = result()
    synthesize.main()
    assert result() == first
    monkeypatch.setattr(tasks, "map_unordered", backwards)
    synthesize.main()
    assert result() == first
    assert not list(Path(".cache/synthesize").iterdir())


def test_every_pair_is_made_again_from_its_record_bit_for_bit(synthesis_checkout: Path) -> None:
    synthesize.main()
    seen = 0
    for split in SPLITS:
        for entry in read_index(OUT / split).shards:
            shard = Shard(OUT / split, entry)
            for pair in (shard[i] for i in range(len(shard))):
                record = pair.record
                height, width = pair.clean.shape[:2]
                rows, columns = (
                    slice(record["top"], record["top"] + height),
                    slice(record["left"], record["left"] + width),
                )
                clean = quantise(read_image(record["where"])[rows, columns], np.uint8)
                np.testing.assert_array_equal(pair.clean, clean)
                again = quantise(regenerate(to_float(clean), record["degradation"]), np.uint8)
                np.testing.assert_array_equal(pair.degraded, again)
                seen += 1
    assert seen > 50


def test_the_pairs_of_a_gray_task_are_the_gray_of_colour_files(synthesis_checkout: Path) -> None:
    settings = validated({**SETTINGS, "channels": 1}, Synthesize)
    write_image("5.png", np.stack(np.broadcast_arrays(*np.ogrid[0:1:40j, 0:1:50j], 0.5), axis=2).astype(np.float32))
    photo = read_photo("5.png").pixels
    entry = replace(
        photograph("6.png", 6, "test"), uri="5.png", sha256=pixel_hash(to_float(photo)), height=40, width=50
    )
    (plan,) = tiles.plan_shards([entry], settings)
    for tile, pair in zip(plan, tiles.make_pairs(plan, settings, 0), strict=True):
        window = photo[tile.top : tile.top + tile.size, tile.left : tile.left + tile.size]
        gray = cv2.cvtColor(window[:, :, ::-1].copy(), cv2.COLOR_BGR2GRAY)
        np.testing.assert_array_equal(pair.clean[:, :, 0], gray)
        assert pair.degraded is not None
        assert pair.degraded.shape == pair.clean.shape


def test_shards_name_the_published_images_that_train_and_val_saw(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DGUNET_DATA", ".")
    synthesize.main()
    assert json.loads((OUT / "published.json").read_text()) == [f"dataset:{number}.png" for number in range(4)]
    seen = {entry.sha256 for entry in read_manifest(Path("manifest.jsonl")) if entry.split != "test"}
    assert json.loads((OUT / "photographs.json").read_text()) == sorted(seen)
    monkeypatch.setenv("DGUNET_DATA", "elsewhere")
    synthesize.main()
    assert not (OUT / "published.json").exists()


def test_an_interrupted_run_goes_on_with_what_is_missing_or_damaged(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize.main()
    expected = result()
    monkeypatch.setattr(tasks, "map_unordered", interrupted_after(4))
    with pytest.raises(KeyboardInterrupt):
        synthesize.main()
    assert result() == expected, "what was there stays until all is made anew"
    (work_dir,) = Path(".cache/synthesize").iterdir()
    with (work_dir / synthesize.PROGRESS_LOG).open("a") as progress_log:
        progress_log.write('{"shard": "train/00')  # the line at which the run was killed
    damaged = work_dir / "shards/train/000001.tar"
    damaged.chmod(0o644)
    content = bytearray(damaged.read_bytes())
    content[900] ^= 1
    damaged.write_bytes(content)
    (work_dir / "shards/train/000002.tar").unlink()
    written: list[str] = []
    monkeypatch.setattr(tasks, "map_unordered", map)
    original = synthesize.write_shard
    monkeypatch.setattr(
        synthesize, "write_shard", lambda path, pairs: written.append(path.name) or original(path, pairs)
    )
    synthesize.main()
    assert result() == expected
    assert written[:2] == ["000001.tar", "000002.tar"]
    assert len(written) == sum(len(read_index(OUT / split).shards) for split in SPLITS) - 2


KILL_POINTS = {
    "before the first index": (synthesize, "write_index", 0),
    "between the indexes": (synthesize, "write_index", 1),
    "after the last index": (synthesize, "_replace_folder", 0),
    "before the output is removed": (shutil, "rmtree", 0),
    "after the output is removed": (Path, "rename", 0),
    "in the middle of the copy": (shutil, "copyfile", 4),
    "before the copy is renamed": (Path, "rename", 1),
}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_run_killed_after_the_last_shard_is_finished_without_making_one_again(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    # A forked process must not decode, as the threads of libvips do not live on in it.
    monkeypatch.setattr(tiles, "read_photo", cache(tiles.read_photo))
    synthesize.main()
    expected = result()
    owner, name, calls_before = KILL_POINTS[point]
    if "copy" in point:
        monkeypatch.setattr(Path, "rename", rename_on_another_file_system)
    child = os.fork()
    if child == 0:
        kill_at_call(owner, name, calls_before)
        synthesize.main()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not OUT.exists() or result() == expected, "the output is complete or absent"
    monkeypatch.setattr(synthesize, "write_shard", None)  # fails if a shard is made again
    synthesize.main()
    assert result() == expected
    assert not list(Path(".cache/synthesize").iterdir())
    assert os.listdir(OUT.parent) == [OUT.name]  # noqa: PTH208


def kill_at_call(owner: Any, name: str, calls_before: int) -> None:
    """Let the process die in the next call of a function after so many."""
    function, calls = getattr(owner, name), iter(range(calls_before))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, call)


_rename = Path.rename


def rename_on_another_file_system(path: Path, target: Path) -> Path:
    if path.name == synthesize.SHARDS:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return _rename(path, target)


def test_the_output_may_be_on_another_file_system(synthesis_checkout: Path, small_disk: SmallDisk) -> None:
    synthesize.main()
    expected = result()
    small_disk((synthesis_checkout / ".cache").resolve(), "16m")
    synthesize.main()
    assert result() == expected
    assert not list(Path(".cache/synthesize").iterdir())


def test_a_full_disk_is_reported_and_the_next_run_goes_on(synthesis_checkout: Path, small_disk: SmallDisk) -> None:
    synthesize.main()
    expected = result()
    cache = (synthesis_checkout / ".cache").resolve()
    small_disk(cache, "200k")
    with pytest.raises(OSError, match="No space left"):
        synthesize.main()
    assert result() == expected
    (work_dir,) = (cache / "synthesize").iterdir()
    assert list(work_dir.rglob("*.tar"))
    small_disk(cache, "16m")
    synthesize.main()
    assert result() == expected


@pytest.mark.parametrize("change", ["other pixels", "other size", "gone", "cut"])
def test_a_source_that_changed_since_it_was_listed_is_named_and_never_used(
    synthesis_checkout: Path, change: str
) -> None:
    image = read_image("1.png")
    if change == "other pixels":
        image[5, 5] = 1 - image[5, 5]
        write_image("1.png", image)
    elif change == "other size":
        write_image("1.png", np.tile(image, (2, 1, 1)))
    elif change == "gone":
        Path("1.png").unlink()
    else:
        Path("1.png").write_bytes(Path("1.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"1\.png: .*make repro"):
        synthesize.main()
    assert not OUT.exists()


def listed(number: int, height: int = 480, width: int = 320) -> Entry:
    sha256 = f"{number:016x}" * 4
    return Entry(uri=f"{number}.png", sha256=sha256, height=height, width=width, split="train", scene="", source="s")


@pytest.mark.parametrize("per_shard", [1, 3, 7, 1000])
def test_shards_hold_all_tiles_once_in_order_and_are_full_but_for_the_last(per_shard: int) -> None:
    settings = validated({**SETTINGS, "tiles_per_shard": per_shard}, Synthesize)
    images = [listed(number, *size) for number, size in enumerate([(32, 32), (90, 61), (10, 200), (33, 31), (56, 80)])]
    shards = list(tiles.plan_shards(images, settings))
    whole = [tile for plan in shards for tile in plan]
    (alone,) = tiles.plan_shards(images, validated({**SETTINGS, "tiles_per_shard": 10**6}, Synthesize))
    assert whole == list(alone)
    assert len({tile.key for tile in whole}) == len(whole) == sum(tiles.num_tiles(image, settings) for image in images)
    assert [len(plan) for plan in shards[:-1]] == [per_shard] * (len(shards) - 1)
    assert all(len(list(plan)) == len(plan) for plan in shards)


def test_planning_takes_no_more_memory_for_more_tiles() -> None:
    settings = validated({**SETTINGS, "tiles_per_shard": 64}, Synthesize)

    def peak(num_images: int) -> int:
        tracemalloc.start()
        total = sum(len(plan) for plan in tiles.plan_shards((listed(number) for number in range(num_images)), settings))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == num_images * tiles.num_tiles(listed(0), settings)
        return found

    assert peak(1000) < peak(100) + 20_000


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def killed_once(shards: Path, seed: int, job: synthesize.ShardJob) -> tuple[str, Any]:
    mark = Path(os.environ["DGUNET_TEST_MARK"])
    if job.name == "train/000003.tar" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _make_shard(shards, seed, job)


_make_shard = synthesize.make_shard


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_workers_of_ray_one_of_them_killed_make_the_same_bytes_as_a_loop(
    synthesis_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthesize.main()
    expected = result()
    monkeypatch.undo()
    monkeypatch.chdir(synthesis_checkout)
    monkeypatch.setattr(sys, "argv", ARGUMENTS)
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    monkeypatch.setenv("DGUNET_TEST_MARK", str(synthesis_checkout / "killed"))
    monkeypatch.setattr(synthesize, "make_shard", killed_once)
    synthesize.main()
    assert (synthesis_checkout / "killed").exists()
    assert result() == expected


@pytest.mark.cluster
@pytest.mark.slow
def test_a_driver_killed_in_the_middle_goes_on_where_it_was(synthesis_checkout: Path) -> None:
    synthesize.main()
    expected = result()
    many = {**SETTINGS, "stride": 5, "copies": 1, "tiles_per_shard": 12}
    content = {"tasks": ["restore"], "seed": 5, "restore": {"synthesize": many}}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "pipeline.synthesize", *ARGUMENTS[1:]]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(progress_log()) >= 3 or first.poll() is not None)
    finally:
        first.kill()
        first.wait()
    assert result() == expected, "the old output stays until the new one is whole"
    (work_dir,) = Path(".cache/synthesize").iterdir()
    kept = {line["shard"]: (work_dir / "shards" / line["shard"]).stat().st_mtime_ns for line in progress_log()}
    (work_dir / "shards/train" / ".000000.tar.1.partial").touch()
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    assert kept
    assert not list(OUT.rglob("*.partial"))
    assert all((OUT / name).stat().st_mtime_ns == time_ns for name, time_ns in kept.items())
    continued = result()
    synthesize.main()
    assert result() == continued


def progress_log() -> list[dict[str, Any]]:
    files = Path(".cache/synthesize").glob(f"*/{synthesize.PROGRESS_LOG}")
    return [
        json.loads(line) for path in files for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]
