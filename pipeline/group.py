"""A run's group of workers as Ray's controller starts and ends it; what Ray 2.60 leaves undone there is mended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.train.torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback


class Group(WorkerGroupCallback):  # type: ignore[misc]
    """Tells the line when workers are gone, whoever ended them, and has a group that fails as it starts leave nothing.

    Of a group whose start fails Ray gives back what it holds of the cluster, but not once the first callback was told
    of the group (`WorkerGroup._start`): the next group would wait for that room for ever.
    """

    def __init__(self, line: Any) -> None:
        self.line: Any = line
        self.starting: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Surround the start of a group."""
        self.starting = None
        try:
            yield
        except Exception as error:
            if self.starting is not None:
                self.starting._clear_state()  # what has not started, as Ray sees it, is given back
            if isinstance(error, WorkerGroupStartupFailedError):
                self.line.leave.remote("workers died as they started; trying again")
            raise

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember the group, before the callbacks that may fail."""
        self.starting = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Pass on that the workers go: also where nothing failed, of a node that is drained or a group that grows."""
        self.line.leave.remote()


class Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """TorchTrainer whose first callback is `Group`: those of its configuration come after Ray's own."""

    def __init__(self, line: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.group = Group(line)

    def _create_default_callbacks(self) -> list[Any]:
        return [self.group, *super()._create_default_callbacks()]
