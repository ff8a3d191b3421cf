"""Blocks on Ray Data: each has one result, a process that dies costs one block, errors arrive as they were."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from factories import pythonpath

from pipeline.cluster.map_blocks import Begin, Deaths, block_session, map_blocks, plan_actors
from pipeline.cluster.resources import WorkerResources

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
TWO = WorkerResources(2, 1.0, 0.0)


@dataclass(frozen=True)
class Numbered:
    name: str


def numbered(count: int) -> Iterator[Numbered]:
    return (Numbered(f"{number:03d}") for number in range(count))


def recording(log: Path) -> Callable[[Numbered, Begin], tuple[str, int]]:
    """A function that kills its process at the second item of block 005, twice, and fails at block 900.

    Of the first of these deaths it may be unknown which item it was: the process ends at once, its message may be lost.
    """

    def call(block: Numbered, begin: Begin) -> tuple[str, int]:
        deaths = begin(block.name, "")
        with log.open("a") as file:
            file.write(f"{block.name}\n")
        for item in ("first", "second"):
            before = begin(block.name, item)
            if block.name == "005" and item == "second":
                if log.read_text().split().count("005") < 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                assert before in (1, 2), "the second death was one of this item"
        if block.name == "900":
            raise OSError(28, "No space left on device", "/out")
        return block.name, deaths

    return call


@pytest.mark.slow
def test_a_process_that_dies_costs_one_block_and_errors_arrive_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", pythonpath(__file__))
    log = tmp_path / "log"
    with block_session():
        assert plan_actors().num_workers == os.cpu_count()
        monkeypatch.setenv("DGUNET_WORKERS", "1:2")
        assert (plan_actors().num_workers, plan_actors().max_workers) == (1, 2)
        results = list(map_blocks(partial(recording, log), partial(numbered, 30), TWO))
        assert sorted(results) == [(block.name, 2 if block.name == "005" else 0) for block in numbered(30)]
        times = Counter(log.read_text().split())
        assert times["005"] == 3
        assert times.total() - 3 == 29  # no other block was done twice
        with pytest.raises(OSError, match="No space left on device") as error:
            list(map_blocks(partial(recording, log), lambda: iter([Numbered("900")]), TWO))
        assert type(error.value) is OSError
        assert error.value.errno == 28
        with pytest.raises(ValueError, match="cannot be listed"):
            list(map_blocks(partial(recording, log), not_listed, TWO))
    assert capfd.readouterr().err == ""


def not_listed() -> Iterator[Numbered]:
    yield Numbered("000")
    raise ValueError("the place cannot be listed")


def test_deaths_are_those_of_the_item_that_was_worked_on() -> None:
    deaths = Deaths()
    for _ in range(2):
        deaths.begin("a", "")
        assert deaths.begin("a", "x") == 0
        deaths.begin("a", "y")
    assert deaths.begin("a", "") == 2
    assert deaths.begin("a", "x") == 0
    assert deaths.begin("a", "y") == 2
    deaths.end("a")
    assert deaths.begin("a", "") == 0
    assert deaths.begin("b", "") == 0
