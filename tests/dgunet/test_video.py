"""Films: each frame is restored and keeps its time, colours do not shift, sound is copied, nothing is half-written."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import skimage.data

from dgunet.__main__ import main
from dgunet.checkpoint import save_model
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.video import WEIGHTS, _matrix, _rgb, restore_film

TIMES = (0, 1, 2, 4, 5, 9, 10, 11)  # of the frames, in units of the rate: it varies


def picture(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    cat = cv2.resize(skimage.data.chelsea(), (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.roll(cat, 5 * number, axis=1))


def write_film(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    sound: bool = False,
    trc: int = 0,
) -> None:
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        if codec == "libx264":
            stream.options = {"crf": "8"}
        if trc:
            stream.codec_context.color_trc = trc
        if rotation:
            stream.set_display_rotation(rotation)
        tones = film.add_stream("aac", rate=48000, layout="mono") if sound else None
        for number, time in enumerate(TIMES):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = time
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        for start in range(0, 20480 if tones else 0, 1024):
            wave = np.sin(np.arange(start, start + 1024) / 20)[None].astype(np.float32)
            samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 48000, start
            film.mux(tones.encode(samples))
        if tones:
            film.mux(tones.encode(None))


def frames(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    with av.open(str(path)) as film:
        return [
            (
                frame.pts * frame.time_base,
                frame.to_ndarray(format="rgb24") if frame.format.is_rgb else _rgb(frame, *WEIGHTS[_matrix(frame)]),
            )
            for frame in film.decode(video=0)
        ]


def restored(source: Path, target: Path, restore: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels) -> int:
    return restore_film(source, target, restore, lambda *_: None)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_frames_keep_their_times_and_colours(tmp_path, suffix):
    write_film(tmp_path / "a.mp4")
    assert restored(tmp_path / "a.mp4", tmp_path / f"b{suffix}") == len(TIMES)
    before, after = frames(tmp_path / "a.mp4"), frames(tmp_path / f"b{suffix}")
    step = Fraction(1, 1000) if suffix == ".mkv" else 0  # Matroska counts in milliseconds
    for (time, _), (again, _) in zip(before, after, strict=True):
        assert abs((time - before[0][0]) - (again - after[0][0])) <= step
    difference = np.stack([one.astype(int) - other for (_, one), (_, other) in zip(before, after, strict=True)])
    if suffix == ".mkv":
        assert not difference.any()
    else:
        assert abs(difference.mean()) < 0.3
        assert np.abs(difference).mean() < 4


def test_every_frame_is_restored(tmp_path):
    write_film(tmp_path / "a.mp4")
    seen: list[tuple[int, int]] = []
    restore_film(tmp_path / "a.mp4", tmp_path / "b.mkv", lambda pixels: 255 - pixels, lambda *each: seen.append(each))
    for (_, one), (_, other) in zip(frames(tmp_path / "a.mp4"), frames(tmp_path / "b.mkv"), strict=True):
        np.testing.assert_array_equal(255 - one, other)
    assert seen == [(number, len(TIMES)) for number in range(1, len(TIMES) + 1)]


def test_sound_is_copied_bit_for_bit(tmp_path):
    write_film(tmp_path / "a.mp4", sound=True)
    restored(tmp_path / "a.mp4", tmp_path / "b.mp4")

    def packets(path: Path) -> list[tuple[Any, bytes]]:
        with av.open(str(path)) as film:
            return [(each.pts * each.time_base, bytes(each)) for each in film.demux(audio=0) if each.dts is not None]

    assert len(packets(tmp_path / "a.mp4")) >= 20
    assert packets(tmp_path / "b.mp4") == packets(tmp_path / "a.mp4")


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_film_of_a_phone_is_turned_upright(tmp_path, rotation):
    write_film(tmp_path / "a.mp4", rotation=rotation)
    restored(tmp_path / "a.mp4", tmp_path / "b.mkv")
    (_, shown), (_, stored) = frames(tmp_path / "b.mkv")[0], frames(tmp_path / "a.mp4")[0]
    np.testing.assert_array_equal(shown, np.rot90(stored, rotation // 90))


def test_what_is_no_film_is_refused_and_nothing_stays(tmp_path):
    (tmp_path / "garbage.mp4").write_bytes(b"garbage" * 100)
    write_film(tmp_path / "deep.mp4", pix_fmt="yuv420p10le")
    write_film(tmp_path / "bright.mp4", trc=16)
    write_film(tmp_path / "cut.mp4")
    content = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "old.mkv").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    for name, reason in {
        "garbage": "Invalid data found",
        "deep": "a film of 10 bits, which is not supported",
        "bright": r"a film of high dynamic range \(PQ\)",
        "cut": "Invalid data found",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}\.mp4: .*{reason}"):
            restored(tmp_path / f"{name}.mp4", tmp_path / "old.mkv")

    def interrupted(_: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    write_film(tmp_path / "whole.mp4")
    with pytest.raises(KeyboardInterrupt):
        restored(tmp_path / "whole.mp4", tmp_path / "old.mkv", interrupted)
    (tmp_path / "whole.mp4").unlink()
    assert (tmp_path / "old.mkv").read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_an_error_that_names_the_target(tmp_path, small_disk):
    write_film(tmp_path / "a.mp4")
    small_disk(tmp_path / "full", "16k")
    with pytest.raises(OSError, match="the film was not written"):
        restored(tmp_path / "a.mp4", tmp_path / "full" / "b.mkv")
    assert list((tmp_path / "full").iterdir()) == []


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_film(Path("a.mp4"))
    save_model(DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), 0), Path("model"), {})
    assert main(["film", "a.mp4", "out/b.mp4", "--model", "model"]) == 0
    assert "out/b.mp4  8 frames" in capsys.readouterr().out
    assert len(frames(Path("out/b.mp4"))) == len(TIMES)
    for arguments, message in (
        (["a.mp4", "out/b.mp4"], "exists; --overwrite replaces it"),
        (["a.mp4", "a.mp4", "--overwrite"], "unless it is the film itself"),
        (["a.mp4", "b.gif"], "give a name that ends in .mp4, .mov, .mkv"),
        (["none.mp4", "b.mp4"], "none.mp4: there is no such file"),
        (["model/config.json", "b.mp4"], "not a supported film"),
    ):
        assert main(["film", *arguments, "--model", "model"]) == 2
        assert message in capsys.readouterr().err
