"""The images of infra/images, built by buildah on a Debian of mmdebstrap, and started as their user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import Checkout
from factories import PROJECT

missing = [name for name in ("buildah", "mmdebstrap", "git") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: apt-get install buildah mmdebstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("images") / "checkout", lambda params: params, {})


def build_and_start(name: str, checkout: Checkout, folder: Path, *options: str) -> None:
    """Run check.sh; the size that it prints must be the one that the Dockerfile states."""
    environment = checkout.environment | {"TMPDIR": str(folder)}
    done = subprocess.run(
        ["infra/images/check.sh", name, *options],
        cwd=checkout.folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    printed = re.search(rf"^{name}: starts as user 10001; ([\d.]+)G$", done.stdout, re.MULTILINE)
    stated = re.search(r"([\d.]+) GB", (PROJECT / "infra" / "images" / f"{name}.Dockerfile").read_text())
    assert printed and stated, done.stdout[-2000:]
    assert float(printed[1]) == pytest.approx(float(stated[1]), rel=0.1)
    assert list(folder.iterdir()) == [], "nothing is kept"


def test_the_image_of_mlflow(checkout: Checkout, tmp_path: Path) -> None:
    build_and_start("mlflow", checkout, tmp_path)


@pytest.mark.skipif(torch.version.cuda is not None, reason="an image with CUDA takes 20 GB: needs torch's CPU build")
def test_the_image_for_training(checkout: Checkout, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    # pip here knows where the CPU build of torch lies. In the container it is found in an index of this wheel alone.
    index = tmp_path_factory.mktemp("index")
    pinned = re.search(r"^torch==\S+$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(index / "torch"),
        pinned[0],
    ]
    subprocess.run(download, check=True)
    (wheel,) = (index / "torch").iterdir()
    (index / "torch" / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>')
    options = [f"--volume={index}:/index:ro", "--build-arg=PIP_EXTRA_INDEX_URL=file:///index"]
    build_and_start("train", checkout, tmp_path, *options)
