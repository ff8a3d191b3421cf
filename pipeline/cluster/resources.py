"""Plans how many workers a run has, and the CPUs and GPUs of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from pipeline.runtime.environment import read_environment


@dataclass(frozen=True)
class WorkerResources:
    """Workers of a run and their shares of the cluster.

    Attributes:
        num_workers: number of workers; the minimum if `max_workers` is larger.
        cpus_per_worker: CPUs of each; may be a fraction.
        gpus_per_worker: GPUs of each; a fraction if workers share one.
        max_workers: if larger than `num_workers`, the run grows when a node joins and shrinks when one leaves.
    """

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    max_workers: int = 0


@dataclass(frozen=True)
class ClusterState:
    """What the head of a cluster reports before a process joins it.

    Attributes:
        nodes: resources of each live node, by address.
        sockets: path of each node's local socket, by address; a driver needs the socket of its own machine.
        ray_version: version of Ray on the head.
        python_version: version of Python on the head.
    """

    nodes: Mapping[str, Mapping[str, float]]
    sockets: Mapping[str, str]
    ray_version: str
    python_version: str


def requested_workers() -> tuple[int, int]:
    """Return minimum and maximum number of workers: DGUNET_WORKERS ("4", "2:8"), else one per GPU, else one."""
    if workers := read_environment().workers:
        return workers
    default = int(ray.cluster_resources().get("GPU", 0)) or 1
    return default, default


def plan_resources(nodes: Sequence[Mapping[str, float]], most_workers: int | None = None) -> WorkerResources:
    """Return the workers of a run that uses all nodes.

    Args:
        nodes: resources of each node.
        most_workers: limit of the number of workers.

    Raises:
        ValueError: the workers do not fit on the nodes.
    """
    least, most = (min(number, most_workers or number) for number in requested_workers())
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    gpus_per_worker, cpus_asked = 1.0 if total["GPU"] else 0.0, read_environment().cpus_per_worker
    # If some GPUs stay unused, so do their CPUs: fewer workers would fit on a node if each had more CPUs.
    whole = range(max(1, int(total["CPU"] // max(most, total["GPU"]))), 0, -1)
    # With an equal share of all CPUs, fewer workers may fit on a node than with a smaller share.
    for cpus_per_worker in [cpus_asked] if cpus_asked else [*map(float, whole), 1 / 2, 1 / 4, 1 / 8]:
        resources = WorkerResources(least, cpus_per_worker, gpus_per_worker, max_workers=most)
        if num_workers_that_fit(resources, nodes) >= least:
            return resources
    raise ValueError(
        f"{least} workers do not fit on the cluster, which has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on "
        f"{len(nodes)} nodes: lower DGUNET_WORKERS" + (" or DGUNET_CPUS_PER_WORKER" if cpus_asked else "")
    )


def num_workers_that_fit(resources: WorkerResources, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many workers fit on `nodes`, each given by its resources."""
    needed = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needed.items() if amount) for node in nodes
    )


def nodes() -> list[dict[str, float]]:
    """Return the resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
