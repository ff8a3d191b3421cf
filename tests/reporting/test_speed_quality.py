"""The table and the plot of what restoration costs and gains."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from factories import changing_network

from benchmarks.speed_quality import Found, plot, table, ways
from dgunet.network import DGUNetConfig

FOUND = [
    Found("all 3 stages", 31.0, 10.0, math.inf, 6.0),
    Found("--stages 1", 30.2, 9.2, 40.4, 1.5),
    Found("--self-ensemble", 31.1, 10.1, 55.0, 48.0),
    Found("same", 31.0, 10.0, math.inf, 6.0),
]


def test_rows_are_compared_with_the_first() -> None:
    assert table(FOUND) == [
        "| all 3 stages | 31.00 | +10.00 |  |  | 6.00 | 1.00 |",
        "| --stages 1 | 30.20 | +9.20 | -0.80 | 40 dB | 1.50 | 4.00 |",
        "| --self-ensemble | 31.10 | +10.10 | +0.10 | 55 dB | 48.00 | 0.12 |",
        "| same | 31.00 | +10.00 | +0.00 | equal | 6.00 | 1.00 |",
    ]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(FOUND, "a task", tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))
    assert picture.shape[1] > 600
    assert (picture < 128).any()


def test_fewer_stages_are_the_earlier_estimates(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.speed_quality.find_spec", lambda _: None)  # without runtimes
    model = changing_network(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=3))
    found = ways(model, [], tmp_path)
    names = list(found)
    assert names[:4] == ["all 3 stages", "--stages 2", "--stages 1", "--self-ensemble"]
    image = np.random.default_rng(0).random((32, 40, 3), np.float32)
    images = [found[name](image) for name in names[:4]]
    assert all(np.abs(one - images[0]).max() > 1e-4 for one in images[1:])
