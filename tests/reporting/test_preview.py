"""Contact sheets of a task need params.yaml and photographs alone; training pairs are made again from the shards."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from factories import PROJECT, write_folder

from dgunet.images import quantise, read_image, read_photo, write_image
from dgunet.network import DGUNet, DGUNetConfig
from pipeline import preview
from pipeline.dataloader.pairs import online_pair
from pipeline.degradations.parsing import parse_degradation
from pipeline.reporting.contact_sheet import (
    COLUMN_WIDTH,
    GAP,
    LINE,
    Cell,
    Note,
    Row,
    describe,
    sheet_of_kinds,
    sheet_of_pairs,
)

PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text())
TOP, STEP = LINE + 2 * GAP, COLUMN_WIDTH + GAP  # where the first row begins; from one small image to the next
NOISE = {"kind": "gaussian_noise", "sigma": [50, 50], "per_channel": True}


def run(monkeypatch: pytest.MonkeyPatch, checkout: Path, source: dict[str, str], task: str = "noise") -> np.ndarray:
    synthesize = {**PARAMS["denoise"]["synthesize"], "degradation": NOISE}
    if source["kind"] == "pairs":
        synthesize |= {"degradation": {"kind": "none"}, "real_pairs": [source["clean"]]}
    prepare = {**PARAMS["prepare"], "sources": [source]}
    noise = {**PARAMS["denoise"], "synthesize": synthesize}
    gray = {**noise, "synthesize": {**synthesize, "channels": 1}}
    (checkout / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"prepare": prepare, "noise": noise, "gray": gray}))
    monkeypatch.chdir(checkout)
    preview.main(["--task", task])
    return read_image(f"preview/{task}.png")


@pytest.mark.parametrize("task", ["noise", "gray"])
def test_a_sheet_shows_the_photographs_of_a_folder_without_those_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    write_image(tmp_path / "photos" / "b.png", np.full((40, 300, 3), 0.5, np.float32))
    write_image(tmp_path / "photos" / "c.png", np.full((50, 60, 3), 0.25, np.float32))
    sheet = run(monkeypatch, tmp_path, {"kind": "folder", "path": "photos"}, task)
    assert sheet.shape[0] == TOP + 40 + 8 + 50 + 8
    clean, degraded = sheet[TOP : TOP + 40, 8:264], sheet[TOP : TOP + 40, 272:528]
    assert clean.std() < 0.01
    assert degraded.std() > 0.1


def test_a_sheet_of_real_pairs_shows_the_real_partner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, value in (("clean", 0.25), ("rainy", 0.75)):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "1.png", np.full((32, 32, 3), value, np.float32))
    source = {"kind": "pairs", "clean": "clean/{}.png", "degraded": "rainy/{}.png"}
    sheet = run(monkeypatch, tmp_path, source)
    np.testing.assert_allclose(sheet[TOP : TOP + 32, 8:40], 0.25, atol=0.01)
    np.testing.assert_allclose(sheet[TOP : TOP + 32, 8 + STEP : 8 + STEP + 32], 0.75, atol=0.01)


def test_the_difference_is_gray_where_the_images_are_equal() -> None:
    clean = np.full((20, 30, 1), 0.4, np.float32)
    degraded = clean.copy()
    degraded[:10] += 0.25
    sheet = sheet_of_pairs([Row(clean, degraded, [Note("text", [])])])
    assert sheet[TOP + 15, 8 + 2 * STEP + 3].tolist() == [128] * 3
    assert sheet[TOP + 5, 8 + 2 * STEP + 3].tolist() == [191] * 3


def test_sampled_parameters_are_described_without_seeds() -> None:
    record = {"seed": [1], "steps": [{"kind": "haze", "beta": 1.23456, "airlight": [0.5, 1.0], "seed": 99}]}
    assert describe(record) == [Note("haze", ["beta 1.23", "airlight 0.5, 1"])]
    assert describe({"seed": [1], "steps": []}) == [Note("none", ["image unchanged"])]


def test_notes_of_any_length_stay_beside_their_row_and_within_the_sheet() -> None:
    image = np.full((40, 40, 1), 0.5, np.float32)
    parameters = [f"parameter_{number} 0.{number}" for number in range(8)]
    sheet = sheet_of_pairs([Row(image, image, [Note("a_step", parameters)] * 5), Row(image, image, [])])
    background = (sheet == sheet[0, 0]).all(axis=2)
    top = next(row for row in range(TOP + 40, len(sheet)) if not background[row, 20])  # of the second row
    assert top > TOP + 5 * 3 * LINE
    assert background[top - GAP : top].all()
    assert background[:, -GAP:].all()
    assert background[-GAP:].all()


def test_rows_show_as_many_different_degradations_as_possible() -> None:
    choices = [NOISE, {"kind": "jpeg", "quality": [30, 95], "chroma": "4:2:0"}, {"kind": "bicubic", "scale": 2}]
    degradation = parse_degradation({"kind": "one_of", "weights": [8, 1, 1], "choices": choices})
    photo = np.full((40, 40, 3), 0.5, np.float32)
    rows = preview.sampled_rows([preview.SourcePhoto(photo, None)] * 4, degradation, seed=1)
    assert {row.notes[0].name for row in rows} == {"bicubic", "gaussian_noise", "jpeg"}


def test_compressive_sensing_shows_the_initial_estimate_and_the_number_of_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    rows, columns = np.mgrid[:64, :70]
    checks = np.where(
        (rows + columns) % 2, 0.25, 0.75
    )  # of the highest frequency, so the measurements keep the mean alone
    write_image(tmp_path / "photos" / "a.png", np.repeat(checks[:, :, None], 3, axis=2).astype(np.float32))
    sheet = run(monkeypatch, tmp_path, {"kind": "folder", "path": "photos"}, task="sensing_25")
    shown = sheet[TOP : TOP + 64, 8 + STEP : 8 + STEP + 70]
    np.testing.assert_allclose(shown[:, :64], 0.5, atol=0.06)
    row = preview.measured_row(checks[:, :, None].astype(np.float32), DGUNet(DGUNetConfig(1, sensing_ratio_percent=10)))
    assert row.notes[0].items == ["at 10 %", "103 numbers per block of 32 x 32 pixels"]
    assert row.degraded.shape == (64, 70, 1)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of an online task where the command looks for them: pair0000 to 0002 train, pair0000 and 0001 test."""
    monkeypatch.chdir(tmp_path)
    for split, number in (("train", 3), ("test", 2)):
        write_folder(tmp_path / "data" / "shards" / "noise" / split, [number], online=True)
    return tmp_path / "data" / "shards" / "noise"


def test_a_pair_of_an_online_task_is_made_again_as_training_saw_it(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview.main(["--task", "noise", "--pair", "pair0002", "--epoch", "3"])
    clean, degraded, sampled = capsys.readouterr().out.splitlines()
    assert [clean, degraded] == [f"preview/noise-pair0002-epoch3-{kind}.png" for kind in ("clean", "degraded")]
    assert sampled == "gaussian_noise: sigma 25, per_channel true"
    expected = online_pair(shards / "train", "pair0002", epoch=3, seed=1)
    np.testing.assert_array_equal(read_image(clean), expected.clean)
    pixels = read_photo(degraded).pixels
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, quantise(expected.degraded, np.uint16))
    preview.main(["--task", "noise", "--pair", "pair0002"])
    assert (read_photo("preview/noise-pair0002-epoch0-degraded.png").pixels != pixels).any(), "another epoch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pair", "pair0009"], "no shard in data/shards/noise has a pair pair0009"),
        (["--pair", "pair0009", "--shards", "nowhere"], "there are no shards in nowhere: run `make repro`"),
    ],
)
def test_a_pair_that_does_not_exist_is_an_error(shards: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preview.main(["--task", "noise", *arguments])


def test_a_pair_of_the_test_split_has_no_other_epoch(shards: Path) -> None:
    shutil.rmtree(shards / "train")
    with pytest.raises(ValueError, match="of the test split is the same in each epoch"):
        preview.main(["--task", "noise", "--pair", "pair0001", "--epoch", "1"])


def test_the_sheet_of_kinds_is_a_grid() -> None:
    cells = [Cell(np.full((10, 20, 3), 0.5, np.float32), str(index)) for index in range(5)]
    assert sheet_of_kinds(cells, columns=3).shape == (8 + 2 * (10 + 13 + 16), 8 + 3 * 28, 3)
