"""The forward and the backward pass of a training step as one CUDA graph.

The GPU computes the kernels of a small network faster than the host starts them. A graph starts all of them at once.
Source: Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog, 2021.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_PASSES = 2  # in which libraries choose algorithms and allocate memory; a capture allows neither
# If the host is done earlier, it waits for the GPU: a graph would gain nothing, and would keep its memory.
LEAST_SHARE_OF_HOST = 0.8

Gradients = Callable[[Tensor, Tensor], Tensor]


class GradientGraph:
    """The forward and the backward pass, captured once and replayed for each batch.

    A replay overwrites the gradients of the parameters. They, the loss and the activations keep their addresses in the
    graph's own memory pool, which stays reserved.
    """

    def __init__(self, gradients: Gradients, clean: Tensor, degraded: Tensor) -> None:
        self.clean, self.degraded = clean, degraded
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: calls of other threads, such as the one that pins memory, do not end the capture.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss = gradients(clean, degraded)

    def __call__(self, clean: Tensor, degraded: Tensor) -> Tensor:
        """Set the gradients for a batch, B C H W, on the host; return its loss, a scalar on the device.

        Raises ValueError if the batch has another shape than the captured one.
        """
        if clean.shape != self.clean.shape:
            raise ValueError(f"the graph is for batches of {tuple(self.clean.shape)}, this one is {tuple(clean.shape)}")
        self.clean.copy_(clean, non_blocking=True)
        self.degraded.copy_(degraded, non_blocking=True)
        self.graph.replay()
        return self.loss.clone()


def gradient_graph(gradients: Gradients, clean: Tensor, degraded: Tensor, device: torch.device) -> GradientGraph | None:
    """Return the graph of a function; None if the GPU takes longer than the host, where a graph gains nothing.

    Args:
        gradients: clean and degraded batch on the device -> loss; sets the gradients, and never waits for the device.
        clean: a batch, B C H W, on any device; those that follow have its shape.
        degraded: the degraded images of the batch, of the same shape.
        device: the GPU.

    Raises:
        RuntimeError: the function cannot be captured.
    """
    with torch.cuda.device(device):
        clean, degraded = clean.to(device), degraded.to(device)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch declares no types for it
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_PASSES):
                gradients(clean, degraded)
            share = share_of_host(lambda: gradients(clean, degraded), torch.cuda.synchronize)
        torch.cuda.current_stream().wait_stream(aside)
        if share < LEAST_SHARE_OF_HOST:
            return None
        with torch.cuda.stream(torch.cuda.current_stream()):  # torch does not restore it after a capture that failed
            return GradientGraph(gradients, clean, degraded)


def share_of_host(
    start: Callable[[], object], synchronise: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the time in which the host starts work on the device, divided by the time until the work is done."""
    synchronise()
    begin = clock()
    start()
    started = clock()
    synchronise()
    return (started - begin) / (clock() - begin)
