"""What one training worker does: joins network, loader and loop; told by the cluster who it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dgunet.network import DGUNet, DGUNetConfig
from pipeline.dataloader import dataset, loader, pairs
from pipeline.runtime import environment
from pipeline.shards.format import Index
from pipeline.training import context, loop
from pipeline.training.settings import Train


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker has to know; the same for each.

    shards: the folder of the splits; `indices`, by split, come along: where shards lie at a URL, the folder is on the
        driver's node alone.
    """

    recipe: Train
    channels: int
    shards: Path
    indices: Mapping[str, Index]
    seed: int

    def __call__(self, worker: context.Worker) -> None:
        """Train as one of the workers."""
        recipe, world = self.recipe, {"rank": worker.rank, "world_size": worker.num_workers}
        config = DGUNetConfig(image_channels=self.channels, **recipe.network.model_dump())
        network = DGUNet.with_seed(config, self.seed)
        patches = dataset.PatchDataset(
            self.shards / "train", recipe.batch_size, recipe.patch_size, self.seed, recipe.mixup_alpha,
            index=self.indices["train"],
        )  # fmt: skip
        processes = environment.number("DGUNET_LOADER_PROCESSES", 4 if worker.device.type == "cuda" else 0)
        ports = loop.Ports(
            batches=lambda first_step: loader.batches(
                patches, first_step=first_step, num_steps=recipe.num_steps, num_loader_processes=processes,
                pin_memory=worker.device.type == "cuda", **world,
            ),
            validation=lambda: pairs.pairs(self.shards / "val", index=self.indices["val"], **world),
            report=worker.report,
            progress=worker.progress,
            stop_requested=worker.stop_requested,
            save_requested=worker.save_requested,
            keep=worker.keep,
            retry_while_unavailable=worker.retry_while_unavailable,
            seconds_between_checkpoints=60.0 * environment.number("DGUNET_CHECKPOINT_MINUTES", 10.0),
        )  # fmt: skip
        loop.fit(network, recipe, ports, device=worker.device, resume=worker.resume)
