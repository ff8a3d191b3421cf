"""The command line as a user meets it: photos of every kind, bad ones among them, and wrong arguments."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import PROJECT
from PIL import Image, ImageCms

import dgunet
from dgunet.__main__ import main
from dgunet.checkpoint import save_model
from dgunet.images import Photo, read_photo, write_photo
from dgunet.network import DGUNet, DGUNetConfig

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The folder of a network of the smallest size."""
    folder = tmp_path_factory.mktemp("models") / "denoise"
    network = DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), 0)
    card = {"task": "denoise", "provenance": {"commit": "abc", "data": None, "metrics": {"psnr": 29.5}}}
    save_model(network, folder, card)
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three good photos, one of them deeper, and one that is cut off."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    write_photo(folder / "colour.jpg", photo(3))
    write_photo(folder / "deep gray.png", photo(1, np.uint16))
    write_photo(folder / "deeper" / "alpha.png", photo(3, has_alpha=True))
    (folder / "cut.png").write_bytes((folder / "deep gray.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("not a photo")
    return folder


def photo(channels: int, dtype: type = np.uint8, has_alpha: bool = False) -> Photo:
    codes = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (18, 26, channels + 1), dtype)
    return Photo(codes[..., :channels], codes[..., channels:] if has_alpha else None)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_photos_keep_their_kind_and_a_bad_one_stops_no_other(photos, tmp_path, model, capsys):
    out = tmp_path / "out"
    status = main(["restore", str(photos), str(out), "--model", model])
    printed = capsys.readouterr()
    assert status == 1
    assert files(out) == ["colour.jpg", "deep gray.png", "deeper/alpha.png"]
    deep, alpha = read_photo(out / "deep gray.png"), read_photo(out / "deeper" / "alpha.png")
    assert (deep.pixels.dtype, deep.pixels.shape) == (np.uint16, (18, 26, 1))
    np.testing.assert_array_equal(alpha.alpha, photo(3, has_alpha=True).alpha)
    assert not np.array_equal(alpha.pixels, photo(3).pixels)
    assert len(re.findall(r"^\[\d/4\] .*  26x18  \d+\.\d s$", printed.out, re.MULTILINE)) == 3
    assert re.search(r"^\[2/4\] .*cut\.png: failed: .+$", printed.err, re.MULTILINE)
    assert printed.err.endswith("1 of 4 photos failed\n")


def test_all_good_is_status_zero_and_nothing_on_stderr(photos, tmp_path, model, capsys):
    assert main(["restore", str(photos / "colour.jpg"), str(tmp_path / "out"), "--model", model]) == 0
    assert capsys.readouterr().err == ""


def test_restored_twice_is_the_same_bytes_if_asked_for_and_refused_if_not(photos, tmp_path, model, capsys):
    arguments = ["restore", str(photos / "deep gray.png"), str(tmp_path / "out"), "--model", model]
    assert main(arguments) == 0
    first = (tmp_path / "out" / "deep gray.png").read_bytes()
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "out" / "deep gray.png").read_bytes() == first


def test_files_of_other_kinds_and_missing_ones_are_failures_not_the_end(photos, tmp_path, model, capsys):
    names = [photos / "notes.txt", photos / "none.png", photos / "colour.jpg"]
    assert main(["restore", *map(str, names), str(tmp_path / "out"), "--model", model]) == 1
    assert files(tmp_path / "out") == ["colour.jpg"]
    assert "No such file" in capsys.readouterr().err


def test_the_output_folder_may_lie_inside_the_input_folder(photos, model):
    (photos / "cut.png").unlink()
    arguments = ["restore", str(photos), str(photos / "restored"), "--model", model]
    assert main(arguments) == 0
    before = files(photos)
    assert main([*arguments, "--overwrite"]) == 0
    assert files(photos) == before


def test_photos_are_never_overwritten(photos, model, capsys):
    before = (photos / "colour.jpg").read_bytes()
    for out in (photos, photos / "deeper" / ".."):
        arguments = ["restore", str(photos / "colour.jpg"), str(out), "--model", model, "--overwrite"]
        assert main(arguments) == 2
        assert "would be overwritten" in capsys.readouterr().err
    assert (photos / "colour.jpg").read_bytes() == before


def test_two_photos_of_one_name_are_refused_before_anything_is_done(photos, tmp_path, model, capsys):
    write_photo(photos / "deeper" / "colour.jpg", photo(3))
    names = [photos / "colour.jpg", photos / "deeper" / "colour.jpg"]
    assert main(["restore", *map(str, names), str(tmp_path / "out"), "--model", model]) == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["restore", str(names[0]), str(names[0]), str(tmp_path / "out"), "--model", model]) == 0


def test_orientation_is_upright_and_the_profile_kept(tmp_path, model):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(3).pixels).save(tmp_path / "turned.jpg", exif=exif, icc_profile=SRGB)
    assert main(["restore", str(tmp_path / "turned.jpg"), str(tmp_path / "out"), "--model", model]) == 0
    with Image.open(tmp_path / "out" / "turned.jpg") as written:
        assert written.size == (18, 26)
        assert written.getexif()[0x0112] == 1
        assert written.info["icc_profile"] == SRGB


def test_a_full_disk_is_told_and_leaves_nothing(photos, tmp_path, model, capsys, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["restore", str(photos / "colour.jpg"), str(tmp_path / "out"), "--model", model]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files(tmp_path / "out") == []


def test_too_little_memory_is_told_with_a_remedy(photos, tmp_path, model, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte.\nstack of pages")

    monkeypatch.setattr(DGUNet, "forward", fail)
    assert main(["restore", str(photos / "colour.jpg"), str(tmp_path / "out"), "--model", model]) == 1
    assert "--tile" in capsys.readouterr().err


def test_an_interruption_is_status_130_and_leaves_no_part(photos, tmp_path, model, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    assert main(["restore", str(photos), str(tmp_path / "out"), "--model", model]) == 130
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "{photo}", "{photo}", "--model", "{model}"], "is a file"),
        (["restore", "{empty}", "{out}", "--model", "{model}"], "no photos in this folder"),
        (["restore", "{photo}", "{out}", "--model", "{model}", "--device", "abacus"], "--device abacus"),
        (["import", "{photo}", "{model}"], "is there already"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(arguments, message, photos, model, capsys):
    (photos / "empty").mkdir()
    places = {"photo": photos / "colour.jpg", "empty": photos / "empty", "out": photos / "out", "model": model}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["mend"], ["restore", "a.png", "out"], ["restore", "a.png", "out", "--model", "m", "--tile", "100"]],
)
def test_wrong_arguments_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


@pytest.mark.parametrize("command", ["restore", "info"])
def test_a_model_that_is_none_is_status_1_and_one_line(command, photos, tmp_path, capsys):
    arguments = {
        "restore": ["restore", str(photos), str(tmp_path / "out"), "--model", str(tmp_path)],
        "info": ["info", str(tmp_path)],
    }[command]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"dgunet: {tmp_path}: no model folder")
    assert error.count("\n") == 1


def test_info_shows_the_card(model, capsys):
    assert main(["info", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"task: denoise", "config:", "  width: 4", "  commit: abc", "  data: -", "    psnr: 29.5"} <= set(lines)
    weights = dgunet.load_model(model).state_dict().values()
    assert f"parameters: {sum(tensor.numel() for tensor in weights):,}" in lines


def test_a_published_checkpoint_becomes_a_model_folder_that_restores(photos, tmp_path, capsys, monkeypatch):
    asked = {}

    def load(path: Path, **options: object) -> DGUNet:
        asked.update(options)
        return DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=3), 0)

    monkeypatch.setattr("dgunet.published.load", load)
    (tmp_path / "derain.pth").write_bytes(b"weights")
    arguments = ["import", str(tmp_path / "derain.pth"), str(tmp_path / "derain"), "--task", "derain"]
    assert main([*arguments, "--num-stages", "3", "--blockwise"]) == 0
    assert asked == {"num_stages": 3, "full_image": False}
    card = json.loads((tmp_path / "derain" / "config.json").read_text())
    assert (card["task"], card["provenance"]["imported"]["checkpoint"]) == ("derain", "derain.pth")
    out = str(tmp_path / "out")
    assert main(["restore", str(photos / "colour.jpg"), out, "--model", str(tmp_path / "derain")]) == 0


def test_what_is_no_checkpoint_is_status_1_and_one_line(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"nothing")
    assert main(["import", str(tmp_path / "a.pth"), str(tmp_path / "folder")]) == 1
    assert str(tmp_path / "a.pth") in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["restore", "--help"], ["restore", "a.png"], ["nonsense"]])
def test_help_and_wrong_arguments_import_no_torch(arguments):
    code = f"import sys\nfrom dgunet.__main__ import main\ntry:\n    main({arguments!r})\nfinally:\n    " + (
        "print([name for name in ('torch', 'cv2', 'mlflow', 'numpy') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1] == "[]"
