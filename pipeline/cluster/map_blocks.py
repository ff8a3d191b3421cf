"""Maps a function over blocks with Ray Data, one actor per GPU or core.

Each block is a row that is alone in a block of Ray Data, so a process that dies costs one block: Ray Data starts
another and gives it the block again. One task lists the blocks, no faster than they are processed.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.ray_internals import without_lines_of_nodes, without_stderr
from pipeline.cluster.resources import WorkerResources, nodes, num_workers_that_fit, plan_resources
from pipeline.cluster.session import session
from pipeline.runtime.environment import read_environment, restored_environ

Result = TypeVar("Result")


class Named(Protocol):
    """A block; no two have the same name."""

    @property
    def name(self) -> str:
        """The name."""


Block = TypeVar("Block", bound=Named)
Begin = Callable[[str, str], int]


@contextmanager
def block_session() -> Iterator[None]:
    """A Ray session without the error that Ray's C++ code prints of each pool of actors that Ray Data starts."""
    with restored_environ(), ExitStack() as stack:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with without_stderr():  # a line says that the level was set
            stack.enter_context(session())
        yield


def plan_actors() -> WorkerResources:
    """Return the actors for all nodes: DGUNET_WORKERS, else one per GPU, else one per DGUNET_CPUS_PER_WORKER or core.

    Raises:
        ValueError: they do not fit on the nodes.
    """
    environment, found = read_environment(), nodes()
    one = WorkerResources(1, environment.cpus_per_worker or 1.0, 0.0)
    if environment.workers or any(node.get("GPU") for node in found) or not num_workers_that_fit(one, found):
        return plan_resources(found)
    return WorkerResources(num_workers_that_fit(one, found), one.cpus_per_worker, 0.0)


def map_blocks(
    function: Callable[[], Callable[[Block, Begin], Result]],
    blocks: Callable[[], Iterable[Block]],
    resources: WorkerResources,
) -> Iterator[Result]:
    """Yield the result of each block, as they are finished.

    Args:
        function: called once in each actor; returns a function of a block and of `begin`, which it calls with the name
            of the block and "" at the start, and with the name and each item before that item (`Deaths.begin`).
        blocks: called in a task; returns the blocks. If the task dies it is called again, and must return the same.
        resources: number of actors, and CPUs and GPUs of each.

    Raises:
        Exception: a ValueError or OSError of either function.
        RayError: another error of theirs.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    deaths = ray.remote(num_cpus=0, scheduling_strategy=here)(Deaths).remote()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: each row is a block
    context.raise_original_map_exception = True
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)
    with ray.data.DataContext.current(context), without_lines_of_nodes():
        listed = ray.data.read_datasource(_Listing(blocks), override_num_blocks=1, num_cpus=0)
        results = listed.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(function), deaths),
            batch_size=None,
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            compute=ray.data.ActorPoolStrategy(
                min_size=resources.num_workers, max_size=max(resources.num_workers, resources.max_workers)
            ),
        )
        try:
            for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
                yield from map(pickle.loads, batch["pickled"])
        except ray.exceptions.RayTaskError as error:
            # A user's error is raised as it was; of any other, Ray's error has the traceback of the task.
            raise (error.cause if isinstance(error.cause, ValueError | OSError) else error) from None


class Deaths:
    """Counts the processes that died, by the block and the item of it that they worked on."""

    def __init__(self) -> None:
        self._current: dict[str, str] = {}
        self._deaths: dict[str, Counter[str]] = {}

    def begin(self, block: str, item: str) -> int:
        """Record that a process begins a block (`item` is "") or an item of it; return the number of deaths so far.

        For an item, these are the processes that died while they worked on it; for "", those of the whole block.
        """
        deaths = self._deaths.setdefault(block, Counter())
        if not item and block in self._current:
            deaths[self._current[block]] += 1
        self._current[block] = item
        return deaths[item] if item else deaths.total()

    def end(self, block: str) -> None:
        """Forget a block that is finished."""
        self._current.pop(block, None)
        self._deaths.pop(block, None)


class _Listing(ray.data.Datasource):  # type: ignore[misc]
    def __init__(self, blocks: Callable[[], Iterable[Any]]) -> None:
        super().__init__()
        self._blocks = blocks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, **_: Any) -> list[Any]:
        return [ray.data.ReadTask(partial(_tables, self._blocks), BlockMetadata(None, None, None, None))]


def _tables(blocks: Callable[[], Iterable[Any]]) -> Iterator[pa.Table]:
    return (_row(block) for block in blocks())


def _row(value: Any) -> pa.Table:
    return pa.table({"pickled": [pickle.dumps(value)]})


class _Worker:
    def __init__(self, function: ray.ObjectRef, deaths: Any) -> None:
        self._call, self._deaths, self._num_deaths = ray.get(function)(), deaths, 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for block in map(pickle.loads, batch["pickled"]):
            results.append(self._call(block, self._begin))
            self._deaths.end.remote(block.name)
        return {"pickled": list(map(pickle.dumps, results))}

    def _begin(self, block: str, item: str) -> int:
        answer = self._deaths.begin.remote(block, item)
        # Waiting for the answer takes time. It is done only if a process has died over this block: so may this one, and
        # the actor must know of the item first.
        if item and not self._num_deaths:
            return 0
        num_deaths: int = ray.get(answer)
        if not item:
            self._num_deaths = num_deaths
        return num_deaths
