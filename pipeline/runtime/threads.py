"""How the OpenMP threads of PyTorch wait for each other."""

from __future__ import annotations

from collections.abc import Mapping

SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


def thread_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables to set before torch is loaded, which reads them then; none if the user has set one of SETTINGS.

    By default a thread that waits for another keeps its core busy for long. If other processes use the machine, the
    other thread may have no core, and a training step takes many times as long. Threads that sleep at once wake up
    late. So GNU's OpenMP asks 1000 times before it sleeps (benchmarks/results/cpu_contention.md); others sleep at once.
    """
    return {} if any(name in environ for name in SETTINGS) else dict(SETTINGS)
