"""How the threads of PyTorch on a CPU wait for each other."""

from __future__ import annotations

from collections.abc import Mapping

# By default a thread of OpenMP that waits for another keeps its core busy. Where other processes run beside, the other
# thread may not be scheduled meanwhile, and a training step takes several times as long.
SETTINGS = {"OMP_WAIT_POLICY": "passive"}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def thread_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables to set where a process starts that computes; empty if `environ` has one of VARIABLES.

    OpenMP reads them once, when PyTorch is imported.
    """
    return {} if any(name in environ for name in VARIABLES) else dict(SETTINGS)
