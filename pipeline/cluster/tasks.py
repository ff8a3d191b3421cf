"""Maps a function over items on all cores of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_unordered(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Call `function(item)` for each item on all cores of the cluster; yield results as they finish.

    Items are read only as fast as they are processed, so neither they nor the results fill the memory. An item whose
    process or node died is processed again, up to three times. A ValueError or OSError of `function` is raised here as
    it is, any other exception as a RayTaskError.
    """
    shared, remote = ray.put(function), ray.remote(num_cpus=1, max_retries=3)(_apply)
    max_running = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: list[ray.ObjectRef] = []
    for item in items:
        running.append(remote.remote(shared, item))
        if len(running) >= max_running:
            done, running = ray.wait(running, num_returns=1)
            yield _result(done[0])
    while running:
        done, running = ray.wait(running, num_returns=1)
        yield _result(done[0])


def start_task(function: Callable[[], Result]) -> Callable[[bool], Result | None]:
    """Call a function in another process, and return a function that returns its result.

    The argument of the returned function says whether to wait; if not, and the result is not there yet, it returns
    None. It raises exceptions of `function` as `map_unordered` does.
    """
    reference = ray.remote(num_cpus=0, max_retries=3)(_apply).remote(lambda _: function(), None)

    def result(wait: bool) -> Result | None:
        return _result(reference) if wait or ray.wait([reference], timeout=0)[0] else None

    return result


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # A user error is raised unchanged; for any other, Ray's error has the traceback of the task.
        raise (error.cause if isinstance(error.cause, ValueError | OSError) else error) from None
