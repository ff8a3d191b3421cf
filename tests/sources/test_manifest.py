"""The manifest and the splits."""

import os
from pathlib import Path

import pytest

from pipeline.preparation.splits import check_splits, smallest_filling_seed, split_of
from pipeline.sources.manifest import Entry, read_manifest, write_manifest


@pytest.fixture(autouse=True)
def _in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_another_seed_draws_other_splits_of_about_the_asked_size() -> None:
    names = [f"{number:016x}" for number in range(4000)]
    shares = {"val": 0.1, "test": 0.2}
    first, second = ([split_of(name, seed=seed, shares=shares) for name in names] for seed in (0, 1))
    assert 0.18 < first.count("test") / 4000 < 0.22 and 0.08 < first.count("val") / 4000 < 0.12
    assert 0.4 < sum(a == b for a, b in zip(first, second, strict=True)) / 4000 < 0.65


def test_a_larger_val_share_moves_nothing_out_of_test() -> None:
    names = [f"{number:016x}" for number in range(500)]
    for name in names:
        before = split_of(name, seed=0, shares={"val": 0.1, "test": 0.2})
        after = split_of(name, seed=0, shares={"val": 0.3, "test": 0.2})
        assert after == before or (before, after) == ("train", "val")


def test_the_manifest_is_read_as_it_was_written_in_the_order_of_hashes() -> None:
    entries = [
        Entry(uri="é\udcff.png", sha256="b", height=1, width=2, split="val", scene="b", source="folder:p"),
        Entry(uri="a.png", sha256="a", height=1, width=2, split="train", scene="a", source="s", degraded="d.png"),
    ]
    write_manifest(Path("data/manifest.jsonl"), entries)
    assert read_manifest(Path("data/manifest.jsonl")) == entries[::-1]
    assert "degraded" not in Path("data/manifest.jsonl").read_text().splitlines()[1]


def test_a_line_that_is_none_of_a_manifest_is_named() -> None:
    Path("m.jsonl").write_text('{"where": "a.png"}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:1: not a line of a manifest"):
        read_manifest(Path("m.jsonl"))


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_the_old_manifest_stays_when_the_new_one_cannot_be_written(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(uri="a.png", sha256="a", height=1, width=2, split="val", scene="a", source="s")
    write_manifest(Path("m.jsonl"), [entry])

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(OSError, match="No space"):
        write_manifest(Path("m.jsonl"), [])
    assert read_manifest(Path("m.jsonl")) == [entry]
    assert os.listdir() == ["m.jsonl"]  # noqa: PTH208


def test_the_seed_that_is_offered_fills_every_split() -> None:
    groups, shares = ["a", "b", "c", "d"], {"val": 0.2, "test": 0.2}
    seed = smallest_filling_seed(groups, shares)
    assert seed is not None
    check_splits(groups, seed=seed, shares=shares, origin="p")
    for smaller in range(seed):
        with pytest.raises(ValueError, match=f"set seed to {seed}"):
            check_splits(groups, seed=smaller, shares=shares, origin="p")


def test_too_few_scenes_are_helped_by_no_seed() -> None:
    with pytest.raises(ValueError, match="no seed helps"):
        check_splits(["a", "b"], seed=0, shares={"val": 0.2, "test": 0.2}, origin="p")


def test_a_split_without_a_share_may_stay_empty() -> None:
    check_splits(["a"], seed=0, shares={"val": 0.0, "test": 0.0}, origin="p")
