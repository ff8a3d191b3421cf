"""The command line: photos of every kind, damaged ones among them, wrong arguments, exit status and messages."""

import errno
import hashlib
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
from dgunet.__main__ import THREAD_SETTINGS, main
from dgunet.checkpoint import save_model
from dgunet.images import Photo, read_photo, write_photo
from dgunet.network import DGUNet, DGUNetConfig
from pipeline.runtime.threads import thread_settings

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model folder with a network of the smallest size."""
    folder = tmp_path_factory.mktemp("models") / "denoise"
    network = DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), 0)
    card = {"task": "denoise", "provenance": {"commit": "abc", "data": None, "metrics": {"psnr": 29.5}}}
    save_model(network, folder, card)
    return str(folder)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three valid photos, one of them in a subfolder, and a truncated one."""
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


def test_photos_keep_their_format_and_a_damaged_one_does_not_stop_the_others(photos, tmp_path, model, capsys):
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
    assert re.search(r"^\[2/4\] .*cut\.png: refused: .+$", printed.err, re.MULTILINE)
    assert re.search(
        r"^restored +3  in .*\nrefused +1\n  1: .*truncated.*: .*cut\.png\n1 file is not .* \.txt 1\n\Z",
        printed.out,
        re.M,
    )


def test_success_is_status_zero_without_output_on_stderr(photos, tmp_path, model, capsys):
    assert main(["restore", str(photos / "colour.jpg"), str(tmp_path / "out"), "--model", model]) == 0
    assert capsys.readouterr().err == ""


def test_existing_photos_are_replaced_with_overwrite_only_and_by_the_same_bytes(photos, tmp_path, model, capsys):
    arguments = ["restore", str(photos / "deep gray.png"), str(tmp_path / "out"), "--model", model]
    assert main(arguments) == 0
    first = (tmp_path / "out" / "deep gray.png").read_bytes()
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "out" / "deep gray.png").read_bytes() == first


def test_missing_files_and_files_of_other_formats_fail_without_stopping_the_others(photos, tmp_path, model, capsys):
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


def test_two_photos_of_one_name_are_refused_before_any_is_restored(photos, tmp_path, model, capsys):
    write_photo(photos / "deeper" / "colour.jpg", photo(3))
    names = [photos / "colour.jpg", photos / "deeper" / "colour.jpg"]
    assert main(["restore", *map(str, names), str(tmp_path / "out"), "--model", model]) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["restore", str(names[0]), str(names[0]), str(tmp_path / "out"), "--model", model]) == 0


def test_a_restored_photo_is_upright_and_keeps_its_profile(tmp_path, model):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(3).pixels).save(tmp_path / "turned.jpg", exif=exif, icc_profile=SRGB)
    assert main(["restore", str(tmp_path / "turned.jpg"), str(tmp_path / "out"), "--model", model]) == 0
    with Image.open(tmp_path / "out" / "turned.jpg") as written:
        assert written.size == (18, 26)
        assert written.getexif()[0x0112] == 1
        assert written.info["icc_profile"] == SRGB


def test_a_full_disk_is_reported_and_leaves_no_file(photos, tmp_path, model, capsys, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["restore", str(photos / "colour.jpg"), str(tmp_path / "out"), "--model", model]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files(tmp_path / "out") == []


def test_too_little_memory_is_reported_with_a_remedy(photos, tmp_path, model, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte.\nstack of pages")

    monkeypatch.setattr(DGUNet, "forward", fail)
    assert main(["restore", str(photos / "colour.jpg"), str(tmp_path / "out"), "--model", model]) == 1
    assert "--tile" in capsys.readouterr().err


def test_an_interruption_is_status_130_and_leaves_no_file(photos, tmp_path, model, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    assert main(["restore", str(photos), str(tmp_path / "out"), "--model", model]) == 130
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["restore", "{photo}", "{notes}", "--model", "{model}"], "but is a file"),
        (["restore", "{photo}", "{folder}", "{photo}", "--model", "{model}"], "but is a file"),
        (["restore", "{photo}", "{photo}", "--model", "{model}"], "would be overwritten"),
        (["restore", "{folder}", "{folder}", "--model", "{model}"], "the photos are in this folder"),
        (["restore", "{empty}", "{out}", "--model", "{model}"], "no photos in this folder"),
        (["restore", "{photo}", "{out}", "--model", "{model}", "--device", "abacus"], "--device abacus"),
        (["import", "{photo}", "{model}"], "exists; remove it"),
    ],
)
def test_wrong_usage_is_status_2_with_one_line(arguments, message, photos, model, capsys):
    (photos / "empty").mkdir()
    paths = {
        "photo": photos / "colour.jpg",
        "empty": photos / "empty",
        "folder": photos,
        "notes": photos / "notes.txt",
        "out": photos / "out",
        "model": model,
    }
    assert main([argument.format(**paths) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["repair"],
        ["restore", "a.png", "out"],
        ["restore", "a.png", "out", "--model", "m", "--tile", "100"],
        ["restore", "", "out", "--model", "m"],
        ["restore", "a.png", "", "--model", "m"],
        ["restore", "a.png", "out", "--model", "m", "--page", "0"],
        ["restore", "a.png", "out", "--model", "m", "--overwrite", "--skip-existing"],
    ],
)
def test_wrong_arguments_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


@pytest.mark.parametrize("command", ["restore", "info"])
def test_a_folder_without_a_model_is_status_1_with_one_line(command, photos, tmp_path, capsys):
    arguments = {
        "restore": ["restore", str(photos), str(tmp_path / "out"), "--model", str(tmp_path)],
        "info": ["info", str(tmp_path)],
    }[command]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"dgunet: {tmp_path}: not a model folder")
    assert error.count("\n") == 1


def test_info_shows_the_card(model, capsys):
    assert main(["info", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"task: denoise", "config:", "  width: 4", "  commit: abc", "  data: -", "    psnr: 29.5"} <= set(lines)
    weights = dgunet.load_model(model).state_dict().values()
    assert f"parameters: {sum(tensor.numel() for tensor in weights):,}" in lines


def test_import_writes_a_model_folder_that_restores(photos, tmp_path, capsys, monkeypatch):
    options_of_load = {}

    def load(path: Path, **options: object) -> DGUNet:
        options_of_load.update(options)
        return DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=3), 0)

    monkeypatch.setattr("dgunet.published.load", load)
    (tmp_path / "derain.pth").write_bytes(b"weights")
    arguments = ["import", str(tmp_path / "derain.pth"), str(tmp_path / "derain"), "--task", "derain"]
    assert main([*arguments, "--num-stages", "3", "--blockwise", "--key", "params"]) == 0
    assert options_of_load == {"num_stages": 3, "full_image": False, "key": "params"}
    card = json.loads((tmp_path / "derain" / "config.json").read_text())
    origin = card["provenance"]["imported"]
    assert (card["task"], origin["checkpoint"], origin["key"]) == ("derain", "derain.pth", "params")
    assert origin["sha256"] == hashlib.sha256(b"weights").hexdigest()
    out = str(tmp_path / "out")
    assert main(["restore", str(photos / "colour.jpg"), out, "--model", str(tmp_path / "derain")]) == 0


def test_a_file_that_is_no_checkpoint_is_status_1_with_its_name(tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "passive 1000"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_has_said_otherwise(given, expected, tmp_path):
    code = "import os, dgunet.__main__ as m; m.main(['info', 'nowhere']); "
    code += "print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**inherited, "PYTHONPATH": str(PROJECT), **given}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected


def test_restoration_and_workers_have_the_same_settings_of_threads():
    assert thread_settings({}) == THREAD_SETTINGS


def test_a_process_that_has_torch_keeps_its_environment(monkeypatch, capsys):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    main(["info", "nowhere"])
    assert dict(os.environ) == before


def test_statistics_and_stages_are_those_of_restore(photos, tmp_path, model, monkeypatch):
    path = str(photos / "colour.jpg")
    assert main(["restore", path, str(tmp_path / "a.png"), "--model", model, "--stages", "1"]) == 0
    network = dgunet.load_model(model)
    first = dgunet.restore(network, read_photo(path).pixels, num_stages=1)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels, first)
    calls: list[str] = []
    monkeypatch.setattr("dgunet.inference._local", lambda model, choice: calls.append(choice))
    assert main(["restore", path, str(tmp_path / "b.png"), "--model", model, "--statistics", "tile"]) == 0
    assert calls == ["tile"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--stages", "3"], "stages 1 to 2, not 3"), (["--statistics", "local"], "no local statistics")],
)
def test_what_a_model_does_not_have_is_refused(photos, model, capsys, options, message):
    assert main(["restore", str(photos / "colour.jpg"), str(photos / "out"), "--model", model, *options]) == 1
    assert message in capsys.readouterr().err
