"""One block restored: the same as each photograph by itself, whole files alone, records, refusals."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_folder
from processes import S3Server
from restored import expected, member_bytes, model_files, save_small_model, write_photos, write_shard_of

from dgunet.checkpoint import load_model
from dgunet.images import read_photo
from dgunet.inference import restore
from pipeline.restoration import restorer as restorer_module
from pipeline.restoration.blocks import find_shards, photo_blocks, shard_blocks
from pipeline.restoration.output import Output
from pipeline.restoration.restorer import Job, Restorer, Result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("models") / "denoise")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return Job(
        output=Output(str(tmp_path / "out")), to_shards=False, options={}, file_format=None, page=None,
        existing="continue", made_by="this job", most_deaths=3,
    )  # fmt: skip


def no_deaths(block: str, item: str) -> int:
    return 0


def run(
    model: Path, job: Job, place: str, size: int = 64, begin: Callable[[str, str], int] = no_deaths
) -> list[Result]:
    restorer = Restorer(job, model_files(model), device="cpu", num_threads=1)
    shards = find_shards([place])
    found = shard_blocks(shards) if shards else photo_blocks(str(Path(place).absolute()), size, job.file_format)
    return [restorer(block, begin) for block in found]


def total(results: list[Result]) -> tuple[int, int, int]:
    return sum(r.done for r in results), sum(r.skipped for r in results), sum(len(r.refused) for r in results)


def files(folder: str = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_folder_becomes_a_folder_as_dgunet_restore_writes_it(model: Path, job: Job) -> None:
    names = write_photos("in")
    assert total(run(model, job, "in", 3)) == (len(names), 0, 0)
    assert files() == sorted(names)
    for name in names:
        assert Path("out", name).read_bytes() == expected(model, Path("in", name))
    Path("out", names[0]).unlink()
    assert total(run(model, job, "in", 3)) == (1, len(names) - 1, 0)
    assert total(run(model, replace(job, existing="replace"), "in", 3)) == (len(names), 0, 0)


def test_shards_become_shards_with_keys_captions_and_order(model: Path, job: Job) -> None:
    names = write_photos("photos")
    write_shard_of("in/a.tar", [Path("photos", name) for name in names])
    (result,) = run(model, replace(job, to_shards=True), "in")
    assert (result.done, result.refused) == (len(names), [])
    assert files() == ["a.json", "a.tar"]
    before, after = member_bytes("in/a.tar"), member_bytes("out/a.tar")
    assert list(before) == list(after)
    for name in names:
        key = name.replace("/", "-").rpartition(".")[0]
        assert after[f"{key}.txt"] == before[f"{key}.txt"]
        assert after[name.replace("/", "-")] == expected(model, Path("photos", name))
    record = json.loads(Path("out/a.json").read_text())
    assert [entry["target"] for entry in record["done"]] == [name.replace("/", "-") for name in names]


def test_a_folder_becomes_shards_and_shards_a_folder(model: Path, job: Job) -> None:
    names = write_photos("in")
    Path("in", names[0]).rename("in/first.of.all.png")
    results = run(model, replace(job, to_shards=True, file_format="png"), "in", 4)
    assert total(results) == (len(names), 0, 0)
    members = [name for block in results for name in member_bytes(f"out/{block.block}.tar")]
    assert "first%2Eof%2Eall.png" in members
    assert all(name.endswith(".png") and name.partition("/")[2].count(".") <= 1 for name in members)
    assert total(run(model, replace(job, output=Output(str(Path("back").absolute()))), "out", 4)) == (len(names), 0, 0)
    assert sorted(name.partition("/")[2] for name in files("back") if name.endswith(".png")) == sorted(members)


def test_files_of_shards_that_exist_are_kept_if_asked(model: Path, job: Job) -> None:
    names = [name.replace("/", "-") for name in write_photos("photos")]
    write_shard_of("in/a.tar", [path for path in Path("photos").rglob("*") if path.is_file()])
    Path("out/a").mkdir(parents=True)
    Path("out/a", names[0]).write_text("of another job")
    assert total(run(model, replace(job, existing="skip"), "in")) == (len(names) - 1, 1, 0)
    assert Path("out/a", names[0]).read_text() == "of another job"
    assert total(run(model, replace(job, existing="replace"), "in")) == (len(names), 0, 0)
    assert Path("out/a", names[0]).read_bytes() != b"of another job"


def test_shards_of_the_project_are_restored_from_their_degraded_arrays(model: Path, job: Job) -> None:
    write_folder(Path("in"), [2])
    (result,) = run(model, replace(job, to_shards=True), "in")
    assert result.done == 2
    before, after = member_bytes("in/000000.tar"), member_bytes("out/000000.tar")
    assert after["pair0000.clean.npy"] == before["pair0000.clean.npy"]
    assert "pair0000.degraded.npy" not in after
    degraded = np.load(io.BytesIO(before["pair0000.degraded.npy"]))
    restored = read_photo(after["pair0000.restored.png"]).pixels
    assert np.array_equal(restored, restore(load_model(model), degraded))


def test_a_damaged_photograph_is_refused_with_the_reason_and_the_others_are_restored(model: Path, job: Job) -> None:
    names = write_photos("in")
    broken = Path("in", names[1])
    broken.write_bytes(broken.read_bytes()[:-30])
    Path("in/nothing.png").symlink_to("gone.png")
    for to_shards in (False, True):
        results = run(model, replace(job, to_shards=to_shards), "in")
        refused = dict(results[0].refused)
        assert results[0].done == len(names) - 1
        assert "damaged or truncated" in refused[str(broken.absolute())]
        assert "cannot be read" in refused[str(Path("in/nothing.png").absolute())]
        assert not Path("out", names[1]).exists()
    assert len(json.loads(Path("out/000000.json").read_text())["refused"]) == 2


def test_a_shard_is_made_anew_only_where_its_record_is_not_of_the_same(model: Path, job: Job) -> None:
    names = write_photos("in")
    job = replace(job, to_shards=True)
    assert total(run(model, job, "in", 4)) == (len(names), 0, 0)
    first = Path("out/000000.tar").read_bytes()
    assert total(run(model, job, "in", 4)) == (0, len(names), 0)
    Path("out/000000.tar").write_bytes(first[:1024])  # as if it was cut off
    assert total(run(model, job, "in", 4)) == (4, len(names) - 4, 0)
    assert Path("out/000000.tar").read_bytes() == first
    Path("out/000001.json").unlink()
    assert total(run(model, job, "in", 4)) == (4, len(names) - 4, 0)
    assert total(run(model, replace(job, made_by="another"), "in", 4)) == (len(names), 0, 0)
    Path("in", names[0]).write_bytes(Path("in", names[2]).read_bytes())
    assert total(run(model, replace(job, made_by="another"), "in", 4)) == (4, len(names) - 4, 0)
    assert total(run(model, replace(job, existing="skip"), "in", 4))[0] == 0


def test_a_shard_that_is_cut_off_or_damaged_is_refused_as_a_whole(model: Path, job: Job) -> None:
    names = write_photos("photos")
    write_shard_of("in/a.tar", [Path("photos", name) for name in names])
    whole = Path("in/a.tar").read_bytes()
    with tarfile.open("in/a.tar") as tar:
        last = tar.getmembers()[-1].offset
    garbage = whole[: last + 100] + b"\xff" * 100 + whole[last + 200 :]
    for content in (whole[:last], whole[: last + 700], whole[:-9000][: last + 20], garbage, b"no tar at all" * 99, b""):
        Path("in/a.tar").write_bytes(content)
        (result,) = run(model, replace(job, to_shards=True), "in")
        assert (result.done, result.skipped) == (0, 0)
        assert "not a whole tar file" in result.refused[0][1]
        assert files() == ["a.json"]


def test_names_in_a_shard_that_lead_elsewhere_or_repeat_are_refused(model: Path, job: Job) -> None:
    (photo,) = write_photos("photos", 1)
    content = Path("photos", photo).read_bytes()
    Path("in").mkdir()
    names = ["../up.png", "/root.png", "a/../../b.png", "twice.png", "twice.png", ".png", "no-extension", "good.png"]
    with tarfile.open("in/a.tar", "w") as tar:
        for member in names:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (result,) = run(model, job, "in")
    assert files(".") == ["in/a.tar", "out/a.json", "out/a/good.png", "out/a/twice.png", f"photos/{photo}"]
    assert len(result.refused) == 6


def test_a_photograph_that_processes_die_of_is_refused(model: Path, job: Job) -> None:
    names = write_photos("in")
    calls = []

    def begin(block: str, item: str) -> int:
        calls.append(item)
        return 3 if item.endswith(names[1]) or not item else 0

    for to_shards in (False, True):
        (result,) = run(model, replace(job, to_shards=to_shards), "in", begin=begin)
        ((photo, reason),) = result.refused
        assert photo.endswith(names[1])
        assert "3 processes died" in reason
        assert result.num_deaths == 3
        assert len(calls) == 1 + len(names)
        calls.clear()


def test_an_interruption_leaves_no_part_of_a_shard(model: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos("in")
    count = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return restore(*arguments, **options)

    monkeypatch.setattr(restorer_module, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, replace(job, to_shards=True), "in")
    assert files() == []


def test_a_full_disk_ends_the_run(model: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos("in")

    def full(self: Output, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(Output, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(model, job, "in")


def test_photographs_and_shards_may_lie_at_a_url(model: Path, job: Job, s3_server: S3Server) -> None:
    names = write_photos("photos", 5)
    client = s3_server.client()
    for name in names:
        client.upload_file(str(Path("photos", name)), "bucket", f"in/{name}")
    place, out = "s3://bucket/in", Output("s3://bucket/out")
    assert out.is_empty()
    restorer = Restorer(replace(job, output=out), model_files(model), device="cpu", num_threads=1)
    assert total([restorer(block, no_deaths) for block in photo_blocks(place, 4, None)]) == (5, 0, 0)
    assert total([restorer(block, no_deaths) for block in photo_blocks(place, 4, None)]) == (0, 5, 0)
    for name in names:
        content = client.get_object(Bucket="bucket", Key=f"out/{name}")["Body"].read()
        assert content == expected(model, Path("photos", name))
    shards = Output("s3://bucket/shards")
    restorer = Restorer(replace(job, output=shards, to_shards=True), model_files(model), device="cpu", num_threads=1)
    assert total([restorer(block, no_deaths) for block in photo_blocks(place, 4, None)]) == (5, 0, 0)
    again = Output("s3://bucket/again")
    restorer = Restorer(replace(job, output=again, to_shards=True), model_files(model), device="cpu", num_threads=1)
    blocks = list(shard_blocks(find_shards(["s3://bucket/shards"])))
    assert [block.name for block in blocks] == ["000000", "000001"]
    assert total([restorer(block, no_deaths) for block in blocks]) == (5, 0, 0)
    assert total([restorer(block, no_deaths) for block in blocks]) == (0, 5, 0)
    assert not again.is_empty()
