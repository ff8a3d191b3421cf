"""Plans how many workers a run has, and what each gets of the cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
import ray.train
import ray.train.torch

from pipeline.runtime.environment import number


@dataclass(frozen=True)
class WorkerResources:
    """What one run uses of the cluster: so many workers, each with so many CPUs and GPUs (a fraction: shared).

    at_most: where it is larger than `num_workers`, the run shrinks when a node leaves and grows when one joins.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    max_workers: int = 0


def num_workers() -> tuple[int, int]:
    """Return the least and the most training workers: DGUNET_WORKERS ("4", "2:8"), else one per GPU, else one."""
    asked = os.environ.get("DGUNET_WORKERS")
    if not asked:
        gpus_per_worker = int(ray.cluster_resources().get("GPU", 0)) or 1
        return gpus_per_worker, gpus_per_worker
    try:
        least, _, most = asked.partition(":")
        bounds = int(least), int(most or least)
        if not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(asked)
    except ValueError:
        raise ValueError(f'DGUNET_WORKERS must be a number of workers, or "least:most", not {asked!r}') from None
    return bounds


def plan_resources(nodes: Sequence[Mapping[str, float]], most_workers: int | None = None) -> WorkerResources:
    """Return all that one run can use of `nodes`, each given by its resources; ValueError if its workers do not fit."""
    least, most = (min(asked, most_workers or asked) for asked in num_workers())
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    gpus_per_worker, asked = 1.0 if total["GPU"] else 0.0, number("DGUNET_CPUS_PER_WORKER", 0.0)
    # Of a GPU that is not used the CPUs are not either: with them a node would hold fewer workers than it has GPUs.
    whole = range(max(1, int(total["CPU"] // max(most, total["GPU"]))), 0, -1)
    for cpus_per_worker in (
        [asked] if asked else [*map(float, whole), 1 / 2, 1 / 4, 1 / 8]
    ):  # fewer where nodes are cut up badly
        share = WorkerResources(least, cpus_per_worker, gpus_per_worker, max_workers=most)
        if num_workers_that_fit(share, nodes) >= least:
            return share
    raise ValueError(
        f"{least} workers do not fit on the cluster, which has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on "
        f"{len(nodes)} nodes: lower DGUNET_WORKERS" + (" or DGUNET_CPUS_PER_WORKER" if asked else "")
    )


def num_workers_that_fit(share: WorkerResources, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many workers fit on `nodes`, each given by its resources."""
    needed = {"CPU": share.cpus_per_worker, "GPU": share.gpus_per_worker}
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needed.items() if amount) for node in nodes
    )


def nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
