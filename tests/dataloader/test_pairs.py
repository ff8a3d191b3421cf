"""Whole pairs of a folder of shards: the same for any world size, with a record that makes them again."""

from pathlib import Path

import numpy as np
from factories import write_folder

from pipeline.dataloader.pairs import online_pair, pairs
from pipeline.degradations import regenerate


def test_the_record_of_a_pair_made_online_holds_the_sampled_parameters(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [2], online=True)
    for number, one in enumerate(pairs(tmp_path / "s")):
        assert one.record["number"] == number
        (step,) = one.record["degradation"]["steps"]
        assert (step["kind"], step["sigma"]) == ("gaussian_noise", 25.0)
        assert np.array_equal(regenerate(one.clean, one.record["degradation"]), one.degraded)
        assert np.array_equal(online_pair(tmp_path / "s", one.key, epoch=0, seed=1).degraded, one.degraded)


def test_pairs_of_all_ranks_are_each_pair_once_and_do_not_depend_on_the_world_size(tmp_path: Path) -> None:
    write_folder(tmp_path / "s", [2, 5, 1], online=True)
    whole = list(pairs(tmp_path / "s"))
    assert [pair.key for pair in whole] == [f"pair{n:04d}" for n in range(8)]
    for world_size in (2, 3):
        shares = [list(pairs(tmp_path / "s", rank, world_size)) for rank in range(world_size)]
        assert sorted(pair.key for part in shares for pair in part) == [pair.key for pair in whole]
        by_key = {pair.key: pair for part in shares for pair in part}
        assert all(np.array_equal(by_key[pair.key].degraded, pair.degraded) for pair in whole)
