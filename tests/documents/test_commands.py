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
from factories import PROJECT
from fenced_blocks import Block, blocks, documents, tracked_files
from mlflow import MlflowClient
from test_documents import merge

from pipeline.sources.listing import STARTER_PHOTOS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

RUN = [document for document in documents() if any(block.language in ("bash", "python") for block in blocks(document))]
TINY_SYNTHESIZE = {"tile_size": 64, "stride": 256, "held_out_tile_size": 160, "copies": 1}
TINY_TRAIN = {
    "network": {"width": 8, "growth": 4, "head_growth": 4, "num_stages": 3},
    "num_steps": 12,
    "warmup_steps": 2,
    "validate_every": 6,
    "patch_size": 32,
    "batch_size": 2,
}


class Checkout:
    """A copy of the tracked files, as of a reader who has run `make setup` and has some photographs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder / "checkout of the project", folder / "home"
        for name in tracked_files():
            if name != "dvc.lock":
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, self.folder / name)
        params = self.read_params()
        sources = [{"kind": "folder", "path": "~/photos"}]  # as the documents ask
        merge(
            params,
            {
                "prepare": {"sources": sources},
                "tasks": ["denoise"],
                "defaults": {"synthesize": TINY_SYNTHESIZE, "train": TINY_TRAIN},
            },
        )
        merge(params, {"denoise": {"synthesize": TINY_SYNTHESIZE, "train": TINY_TRAIN}})
        self.write_params(params)
        self._install()
        self._add_photographs()
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DGUNET_", "RAY_", "GIT_"))}
        self.environment = variables | {
            "HOME": str(self.home),
            "PATH": f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "MPLBACKEND": "Agg",
            "DVC_NO_ANALYTICS": "true",
        }
        for command in (
            "git init --quiet",
            "git add .",
            "git -c user.name=t -c user.email=t@t commit --quiet -m start",
        ):
            subprocess.run(command.split(), cwd=self.folder, env=self.environment, check=True)

    def read_params(self) -> dict[str, Any]:
        read: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return read

    def write_params(self, params: dict[str, Any]) -> None:
        text = yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
        (self.folder / "params.yaml").write_text(text)

    def _install(self) -> None:
        """The environment that runs the tests, as `make setup` leaves it: nothing is to be installed."""
        environment = self.folder / ".venv"
        environment.mkdir()
        for path in Path(sys.prefix).iterdir():
            if path.name != ".ready":
                (environment / path.name).symlink_to(path)
        (environment / ".ready").touch()

    def _add_photographs(self) -> None:
        """photo.jpg, scans/ and real pairs in the checkout, and the default photographs as files in ~/photos."""
        (self.home / "photos").mkdir(parents=True)
        for package, names in STARTER_PHOTOS.items():
            spec = find_spec(package)
            assert spec is not None and spec.origin is not None
            for name in names:
                shutil.copy(Path(spec.origin).parent / name, self.home / "photos")
        shutil.copy(self.home / "photos" / "rocket.jpg", self.folder / "photo.jpg")
        for folder in ("scans", "rain/target", "rain/input"):
            (self.folder / folder).mkdir(parents=True)
            shutil.copy(self.home / "photos" / "chelsea.png", self.folder / folder)

    def run(self, block: Block) -> None:
        """Run one block; a failure shows the document, the line, and what was printed."""
        if block.language == "yaml":
            params = self.read_params()
            merge(params, yaml.safe_load(block.code))
            self.write_params(params)
            return
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        reader, terminal = os.openpty()
        os.write(reader, b"y\n")  # `make apply` asks on a terminal before it writes
        try:
            done = subprocess.run(
                [*command, block.code],
                cwd=self.folder,
                env=self.environment,
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
        client = MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        for model in client.search_registered_models():
            if "champion" not in model.aliases:
                client.set_registered_model_alias(model.name, "champion", "1")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("documents"))
    made.run(Block("make repro", 0, "bash", "make repro"))
    return made


@pytest.mark.parametrize("document", RUN)
def test_the_commands_of_a_document_work(checkout: Checkout, document: str) -> None:
    for block in blocks(document):
        if block.language in ("bash", "python", "yaml"):
            checkout.run(block)


def test_a_block_that_fails_is_noticed(checkout: Checkout) -> None:
    for block in (Block("x.md", 1, "bash", "make no-such-target"), Block("x.md", 1, "python", "import no_such_module")):
        with pytest.raises(AssertionError, match=re.escape("x.md:1")):
            checkout.run(block)
