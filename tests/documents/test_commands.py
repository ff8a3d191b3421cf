"""Runs the `bash` and `python` blocks of the documents, in their order, in a checkout with tiny values.

`yaml` blocks of the documents that are run are merged into its params.yaml, as the text asks of the reader.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import Checkout
from fenced_blocks import Block, blocks, documents
from test_documents import merge

from pipeline.sources.listing import STARTER_PHOTOS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

RUN = [document for document in documents() if any(block.language in ("bash", "python") for block in blocks(document))]
SYNTHESIZE = {"tile_size": 64, "stride": 256, "held_out_tile_size": 160, "copies": 1}
TRAIN = {
    "network": {"width": 8, "growth": 4, "head_growth": 4},
    "num_steps": 12,
    "warmup_steps": 2,
    "validate_every": 6,
    "patch_size": 32,
    "batch_size": 2,
}
EVALUATE = {"local_statistics": [{"window": 96, "of": ["norm"]}]}  # each that is tried measures the val split again

SET_CHAMPIONS = """
from mlflow import MlflowClient

client = MlflowClient("sqlite:///mlflow.db")
for model in client.search_registered_models():
    if "champion" not in model.aliases:
        client.set_registered_model_alias(model.name, "champion", "1")
"""


def shrink(params: dict[str, Any]) -> None:
    """Tiny values for all tasks, and the photographs in the folder that the documents name."""
    merge(params, {"tasks": ["denoise"], "prepare": {"sources": [{"kind": "folder", "path": "~/photos"}]}})
    for section in (params["defaults"], params["denoise"]):
        merge(section, {"synthesize": SYNTHESIZE, "train": TRAIN, "evaluate": EVALUATE})


class Reader:
    """Someone with a checkout in which `make setup` has run, some photographs, and a terminal to answer questions."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        variables = {"HOME": str(home), "MPLBACKEND": "Agg", "PYTHONPATH": str(folder / "checkout")}
        self.checkout = Checkout(folder / "checkout", shrink, variables)
        environment = self.checkout.folder / ".venv"
        environment.mkdir()
        for path in Path(sys.prefix).iterdir():
            if path.name != ".ready":
                (environment / path.name).symlink_to(path)
        (environment / ".ready").touch()  # nothing is to be installed
        (home / "photos").mkdir(parents=True)
        for package, names in STARTER_PHOTOS.items():
            spec = find_spec(package)
            assert spec is not None and spec.origin is not None
            for name in names:
                shutil.copy(Path(spec.origin).parent / name, home / "photos")
        shutil.copy(home / "photos" / "rocket.jpg", self.checkout.folder / "photo.jpg")
        for name in ("scans", "rain/target", "rain/input"):
            (self.checkout.folder / name).mkdir(parents=True)
            shutil.copy(home / "photos" / "chelsea.png", self.checkout.folder / name)

    def follow(self, block: Block) -> None:
        """Do what a block says; a failure shows the document, the line, and what was printed."""
        if block.language == "yaml":
            changes = yaml.safe_load(block.code)
            for section in changes.values():
                if isinstance(section, dict) and "train" in section:  # the small defaults are to hold
                    section["train"] = {name: value for name, value in section["train"].items() if name not in TRAIN}
            self.checkout.change(lambda params: merge(params, changes))
            return
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        reader, terminal = os.openpty()
        os.write(reader, b"y\n")  # `make apply` asks on a terminal before it writes
        try:
            done = subprocess.run(
                [*command, block.code],
                cwd=self.checkout.folder,
                env=self.checkout.environment,
                stdin=terminal,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            os.close(terminal)
            os.close(reader)
        assert done.returncode == 0, f"{block}\n{block.code}\n{done.stdout}\n{done.stderr}"
        if "make repro" in block.code:
            self._set_champions()

    def _set_champions(self) -> None:
        """Give each new model the alias `champion`: after so few steps none is better than its baseline."""
        self.checkout.run(sys.executable, "-c", SET_CHAMPIONS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    made = Reader(tmp_path_factory.mktemp("documents"))
    made.follow(Block("make repro", 0, "bash", "make repro"))
    return made


@pytest.mark.parametrize("document", RUN)
def test_the_commands_of_a_document_work(reader: Reader, document: str) -> None:
    for block in blocks(document):
        if block.language in ("bash", "python", "yaml"):
            reader.follow(block)


def test_a_block_that_fails_is_noticed(reader: Reader) -> None:
    for block in (Block("x.md", 1, "bash", "make no-such-target"), Block("x.md", 1, "python", "import no_such_module")):
        with pytest.raises(AssertionError, match=re.escape("x.md:1")):
            reader.follow(block)
