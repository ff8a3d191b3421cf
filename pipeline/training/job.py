"""The training job of one worker: builds network, batches and validation pairs, and runs the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dgunet.network import DGUNet, DGUNetConfig
from pipeline.dataloader import dataset, loader, pairs
from pipeline.runtime.environment import read_environment
from pipeline.runtime.fingerprint import fingerprint
from pipeline.shards.format import Index
from pipeline.training import loop
from pipeline.training.context import WorkerContext
from pipeline.training.settings import Train

LOADER_PROCESSES_ON_GPU = 4


def run_name(task: str, recipe: Train, data: Mapping[str, str], seed: int) -> str:
    """Return the name of a training run: the task, and a fingerprint of everything that decides its result.

    Args:
        task: a task of params.yaml.
        recipe: its section `train`.
        data: sha256 of the index of the train and of the val split.
        seed: seed of the run.
    """
    return f"{task}-{fingerprint('train', recipe.model_dump(), data, seed)}"


@dataclass(frozen=True)
class TrainingJob:
    """The input of a training run, the same for all workers.

    Attributes:
        recipe: the section `train` of the task.
        channels: image channels.
        shards: folder of the splits; if shards are at a URL, the folder exists only on the driver's node.
        indices: index of each split's shards, so that workers need not read it from `shards`.
        seed: seed of the weights, of the order of the samples and of what is sampled for them.
    """

    recipe: Train
    channels: int
    shards: Path
    indices: Mapping[str, Index]
    seed: int

    def __call__(self, context: WorkerContext) -> None:
        """Train as the worker that `context` describes."""
        recipe, on_gpu = self.recipe, context.device.type == "cuda"
        config = DGUNetConfig(image_channels=self.channels, **recipe.network.model_dump())
        network = DGUNet.with_seed(config, self.seed)
        patches = dataset.PatchDataset(
            self.shards / "train", recipe.batch_size, recipe.patch_size, self.seed, recipe.mixup_alpha,
            index=self.indices["train"],
        )  # fmt: skip
        processes = read_environment().loader_processes
        if processes is None:
            processes = LOADER_PROCESSES_ON_GPU if on_gpu else 0
        loop.fit(
            network,
            recipe,
            context,
            batches=lambda first_step: loader.batches(
                patches, rank=context.rank, world_size=context.world_size, first_step=first_step,
                num_steps=recipe.num_steps, num_loader_processes=processes, pin_memory=on_gpu,
            ),
            validation=lambda: pairs.pairs(
                self.shards / "val", rank=context.rank, world_size=context.world_size, index=self.indices["val"]
            ),
        )  # fmt: skip
