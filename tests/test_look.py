"""Looking: a contact sheet of a task comes from params.yaml and photographs alone."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from dgunet.images import read_image, write_image
from pipeline import look
from pipeline.sheet import Cell, Row, describe, kind_sheet, pair_sheet

PARAMS = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
NOISE = {"kind": "gaussian_noise", "sigma": [50, 50], "per_channel": True}


def run(monkeypatch: pytest.MonkeyPatch, checkout: Path, source: dict[str, str], channels: int) -> np.ndarray:
    changes = {"degradation": NOISE, "channels": channels, "copies": 1, "real_pairs": []}
    if source["kind"] == "pairs":
        changes |= {"degradation": {"kind": "none"}, "real_pairs": [source["clean"]]}
    synthesize = {**PARAMS["denoise"]["synthesize"], **changes}
    prepare = {**PARAMS["prepare"], "sources": [source]}
    params = {"seed": 1, "prepare": prepare, "denoise": {"synthesize": synthesize}}
    (checkout / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(checkout)
    monkeypatch.setattr("sys.argv", ["look", "--task", "denoise"])
    look.main()
    return read_image("look/denoise.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_the_photographs_of_a_folder_and_leaves_out_what_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, channels: int
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    write_image(tmp_path / "photos" / "b.png", np.full((40, 300, 3), 0.5, np.float32))
    write_image(tmp_path / "photos" / "c.png", np.full((50, 60, 3), 0.25, np.float32))
    sheet = run(monkeypatch, tmp_path, {"kind": "folder", "path": "photos"}, channels)
    assert sheet.shape[0] == 40 + 50 + 3 * 8
    clean, degraded = sheet[8:48, 8:264], sheet[8:48, 272:528]
    assert clean.std() < 0.01
    assert degraded.std() > 0.1


def test_a_sheet_of_real_pairs_shows_the_real_partner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, value in (("clean", 0.25), ("rainy", 0.75)):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "1.png", np.full((32, 32, 3), value, np.float32))
    source = {"kind": "pairs", "clean": "clean/{}.png", "degraded": "rainy/{}.png"}
    sheet = run(monkeypatch, tmp_path, source, 3)
    np.testing.assert_allclose(sheet[8:40, 8:40], 0.25, atol=0.01)
    np.testing.assert_allclose(sheet[8:40, 48:80], 0.75, atol=0.01)


def test_the_difference_is_gray_where_nothing_changed() -> None:
    clean = np.full((20, 30, 1), 0.4, np.float32)
    degraded = clean.copy()
    degraded[:10] += 0.25
    sheet = pair_sheet([Row(clean, degraded, ["text"])])
    assert sheet[8 + 15, 8 + 2 * 38 + 3].tolist() == [128] * 3
    assert sheet[8 + 5, 8 + 2 * 38 + 3].tolist() == [191] * 3


def test_what_was_drawn_is_told_without_seeds() -> None:
    record = {"seed": [1], "steps": [{"kind": "haze", "beta": 1.23456, "airlight": [0.5, 1.0], "seed": 99}]}
    assert describe(record) == ["haze", "    beta  1.235", "    airlight  0.5, 1"]
    assert describe({"seed": [1], "steps": []}) == ["none"]


def test_the_sheet_of_kinds_is_a_grid() -> None:
    cells = [Cell(np.full((10, 20, 3), 0.5, np.float32), str(index)) for index in range(5)]
    assert kind_sheet(cells, columns=3).shape == (8 + 2 * (10 + 13 + 16), 8 + 3 * 28, 3)
