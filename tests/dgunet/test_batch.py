"""dgunet restore on folders as people have them: names, links, interruptions, full disks, reports."""

import contextlib
import errno
import io
import json
import os
import re
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import SmallDisk

from dgunet import console, images, jobs
from dgunet.__main__ import main
from dgunet.checkpoint import save_model
from dgunet.images import Photo, read_photo, write_photo
from dgunet.network import DGUNet, DGUNetConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "denoise"
    save_model(DGUNet.with_seed(DGUNetConfig(width=4, growth=2, head_growth=2, num_stages=2), 0), folder, {})
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Four photos in a folder of the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    (folder / "trip").mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png", "trip/d.png"):
        write_photo(folder / name, Photo(np.zeros((8, 9, 3), np.uint8)))
    return folder


def restore(model: str, *arguments: object) -> int:
    return main(["restore", *map(str, arguments), "--model", model])


def files(folder: Path | str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


ALL = ["a.png", "b.png", "c.png", "trip/d.png"]


# Which files


def test_files_that_are_no_photographs_are_counted_and_do_not_change_the_status(photos, model, capsys):
    for name in ("a.xyz", "b.XYZ", "notes.txt", "._a.png", "trip/Thumbs.db", ".DS_Store"):
        (photos / name).write_bytes(b"x")
    for name in ("__MACOSX", "@eaDir", ".thumbnails"):
        (photos / name).mkdir()
        (photos / name / "a.png").write_bytes(b"x")
    assert restore(model, photos, "out") == 0
    assert files("out") == ALL
    printed = capsys.readouterr()
    assert printed.out.endswith("3 files are not supported photographs: .xyz 2, .txt 1\n")
    assert printed.err == ""


def test_what_is_no_file_is_refused_with_the_reason_and_blocks_nothing(photos, model, capsys, monkeypatch):
    (photos / "itself.png").symlink_to("itself.png")
    (photos / "nothing.png").symlink_to("gone.png")
    (photos / "up").symlink_to("..")
    os.mkfifo(photos / "pipe.png")
    (photos / "locked").mkdir()
    scandir = os.scandir

    def denied(path: Path) -> os.PathLike:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert restore(model, photos, "out") == 1
    assert files("out") == ALL
    error = capsys.readouterr().err
    assert "photos/itself.png: refused: Too many levels of symbolic links\n" in error
    assert "photos/nothing.png: refused: a link to a file that does not exist: gone.png\n" in error
    assert "photos/up: refused: a link to a folder that contains it\n" in error
    assert "photos/pipe.png: refused: not a regular file\n" in error
    assert "photos/locked: refused: the folder cannot be opened: Permission denied\n" in error


def test_a_pipe_that_is_named_itself_is_refused(photos, model, capsys):
    os.mkfifo("pipe.png")
    for out in ("out", "out.png"):
        assert restore(model, "pipe.png", out) == 1
        assert "pipe.png: refused: not a regular file" in capsys.readouterr().err
        assert not Path(out).exists()


def test_a_linked_folder_is_restored_once_and_under_its_own_name_where_it_has_one(photos, model):
    (photos / "another name").symlink_to("trip")
    Path("elsewhere").mkdir()
    Path("elsewhere", "e.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "linked").symlink_to(Path("elsewhere").absolute())
    assert restore(model, photos, "out") == 0
    assert files("out") == sorted([*ALL, "linked/e.png"])


def test_a_folder_above_the_photos_can_be_written_to(photos, model):
    assert restore(model, photos, ".") == 0
    assert [name for name in files(".") if not name.startswith("photos/")] == ALL
    assert restore(model, photos, ".", "--skip-existing") == 0


def test_a_folder_without_photos_says_what_it_holds(photos, model, capsys):
    Path("empty").mkdir()
    Path("empty", "a.xyz").touch()
    assert restore(model, "empty", "out") == 2
    assert "empty: no photos in this folder" in (error := capsys.readouterr().err)
    assert ".xyz 1" in error
    assert restore(model, "empty", photos, "out") == 0


# Names


@pytest.mark.parametrize("length", [241, 242, 250, 255])
def test_the_longest_names_are_written(length, photos, model):
    name = "ä" * ((length - 4) // 2) + "n" * ((length - 4) % 2) + ".png"
    assert len(os.fsencode(name)) == length
    (photos / "a.png").rename(name)
    assert restore(model, name, "out") == 0
    assert files("out") == [name]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_names_that_the_terminal_cannot_show_are_restored_and_shown_with_replacements(
    encoding, errors, photos, model, monkeypatch
):
    names = [b"caf\xe9.png", "写真.png".encode(), "ü\u202e.png".encode(), b"new\nline.png", b"red\x1b[31m.png"]
    for name in names:
        Path(os.fsdecode(name)).write_bytes((photos / "a.png").read_bytes())
    Path(os.fsdecode(b"cut\xe9.png")).write_bytes(b"")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    given = [os.fsdecode(name) for name in [b"cut\xe9.png", *names]]
    assert restore(model, *given, "out") == 1
    assert {os.fsencode(name) for name in os.listdir("out")} == set(names)  # noqa: PTH208 (bytes matter)
    printed, error = out.buffer.getvalue(), err.buffer.getvalue()
    assert len(printed.splitlines()) == len(names) + 3
    for shown in (
        rb"caf\udce9.png",
        rb"new\nline.png",
        rb"red\x1b[31m.png",
        "写真".encode(encoding, "backslashreplace"),
    ):
        assert shown in printed
    assert rb"cut\udce9.png: refused" in error


def test_an_argument_that_the_terminal_cannot_show_is_shown_with_replacements(photos, model, monkeypatch):
    err = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    monkeypatch.setattr(sys, "stderr", err)
    assert restore("gone\udce9\x1b[1m", photos, "out") == 1
    assert rb"gone\udce9\x1b[1m" in err.buffer.getvalue()


def test_errors_that_the_user_has_chosen_for_the_terminal_stay(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii", "replace")
    monkeypatch.setattr(sys, "stdout", out)
    console.show_all_names()
    assert out.errors == "replace"


# What is written


def test_one_photo_can_be_written_to_a_file_of_another_name(photos, model, capsys):
    assert restore(model, photos / "a.png", "new/restored.jpg") == 0
    assert read_photo("new/restored.jpg").format == "JPEG"
    assert restore(model, photos / "a.png", "new/restored.jpg") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert restore(model, photos / "a.png", "new/restored.jpg", "--overwrite") == 0
    assert restore(model, photos / "a.png", "folder.jpg/") == 0
    assert restore(model, photos / "b.png", "folder.jpg") == 0, "the folder exists"
    assert files("folder.jpg") == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "out.png"], "add a /"),
        (["photos/a.png", "photos/b.png", "out.png"], "add a /"),
        (["photos/a.png", "photos/b.png", "photos/c.png"], "must be a folder"),
        (["photos/a.png", "photos/../photos/a.png"], "would be overwritten"),
        (["photos/a.png", "out.png", "--format", "jpg"], "contradicts --format jpg"),
        (["photos/a.png", "dangling"], "a link to a folder that does not exist"),
    ],
)
def test_an_output_that_does_not_fit_is_wrong_usage(arguments, message, photos, model, capsys):
    Path("dangling").symlink_to("gone")
    assert restore(model, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert files("photos") == ALL


def test_another_format_is_written_and_its_own_suffix_kept(photos, model):
    (photos / "b.png").rename(photos / "b.jpeg")
    write_photo(photos / "b.jpeg", Photo(np.zeros((8, 9, 3), np.uint8)))
    assert restore(model, photos, "out", "--format", "jpg") == 0
    assert files("out") == ["a.jpg", "b.jpeg", "c.jpg", "trip/d.jpg"]
    assert {read_photo(Path("out", name)).format for name in files("out")} == {"JPEG"}


def test_every_format_of_the_command_can_be_written():
    assert all(f".{name}" in images.WRITABLE_SUFFIXES for name in jobs.FORMATS)


def test_formats_that_cannot_be_written_become_png_beside_photos_of_the_same_name(photos, monkeypatch):
    monkeypatch.setattr(images, "SUFFIXES", {**images.SUFFIXES, ".heic": "HEIF", ".hif": "HEIF"})
    for name in ("a.heic", "A.HEIC", "e.heic", "e.hif"):
        (photos / name).touch()
    planned = jobs.plan([photos], "out")
    targets = {job.source.name: job.target.name for job in planned.jobs}
    assert targets["a.png"] == "a.png"
    assert targets["a.heic"] == "a.heic.png"
    assert (targets["A.HEIC"], targets["e.heic"], targets["e.hif"]) == ("A.png", "e.png", "e.hif.png")


def test_a_page_is_chosen(photos, model, capsys):
    pages = [Image.new("L", (16, 16), grey) for grey in (10, 200)]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    assert restore(model, "pages.tif", "out") == 1
    assert "2 pages" in capsys.readouterr().err
    assert restore(model, "pages.tif", "out", "--page", "2") == 0
    assert restore(model, "pages.tif", "first", "--page", "1") == 0
    assert read_photo("out/pages.tif").pixels.mean() > read_photo("first/pages.tif").pixels.mean() + 50


def test_a_photo_that_the_format_cannot_hold_is_refused_before_it_is_restored(photos, model, capsys, monkeypatch):
    write_photo("deep.png", Photo(np.zeros((8, 9, 3), np.uint16)))
    monkeypatch.setattr(DGUNet, "forward", lambda *_: pytest.fail("the photo was restored"))
    assert restore(model, "deep.png", "out.jpg") == 1
    assert "deep.png: refused: JPEG cannot hold 16 bits" in capsys.readouterr().err


def test_metadata_that_is_not_kept_is_named_once(photos, model, capsys):
    exif = Image.Exif()
    exif[0x010E] = "a caption"
    for name in ("e.jpg", "f.jpg"):
        Image.new("RGB", (16, 16)).save(photos / name, exif=exif)
    assert restore(model, photos, "out", "--format", "bmp") == 0
    assert len(re.findall(r"^not kept in 2 photos: .*EXIF.*$", capsys.readouterr().out, re.MULTILINE)) == 1


# Interruptions and disks


def count_writes(monkeypatch, error: BaseException | None = None, after: int = 0) -> Counter[str]:
    """Counts the files that are written; the first `after` succeed, then `error` is raised."""
    counts: Counter[str] = Counter()
    fsync = os.fsync

    def counted(file: int) -> None:
        counts["writes"] += 1
        if error is not None and counts["writes"] > after:
            raise error
        fsync(file)

    monkeypatch.setattr(os, "fsync", counted)
    return counts


def test_an_interrupted_batch_keeps_what_is_done_and_goes_on_with_skip_existing(photos, model, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        count_writes(patch, KeyboardInterrupt(), after=2)
        assert restore(model, photos, "out") == 130
    assert files("out") == ["a.png", "b.png"]
    printed = capsys.readouterr()
    assert re.search(r"^restored +2  in .*\nnot tried +2\n\Z", printed.out, re.MULTILINE)
    assert printed.err == "dgunet: interrupted; run again with --skip-existing to continue\n"
    counts = count_writes(monkeypatch)
    assert restore(model, photos, "out", "--skip-existing") == 0
    assert counts["writes"] == 2
    assert files("out") == ALL
    assert re.search(r"^restored +2  in .*\nskipped +2", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_keep_what_is_done(photos, model, capsys, monkeypatch, number):
    fsync, calls = os.fsync, []

    def killed(file: int) -> None:
        fsync(file)
        calls.append(file)
        if len(calls) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "fsync", killed)
    before = signal.signal(number, signal.SIG_DFL)  # Ray, in tests of the same process, sets one that ends it
    try:
        assert restore(model, photos, "out") == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert files("out") in (["a.png"], ["a.png", "b.png"])  # no temporary file
    assert "interrupted; run again with --skip-existing" in capsys.readouterr().err


def test_a_folder_that_does_not_tell_cases_apart_loses_no_photo(photos, model, capsys):
    write_photo(photos / "A.png", Photo(np.full((8, 9, 3), 200, np.uint8)))
    assert restore(model, photos / "A.png", "out/A.png") == 0
    Path("out/a.png").symlink_to("A.png")  # as such a file system answers
    before = Path("out/A.png").read_bytes()
    assert restore(model, photos, "out", "--overwrite") == 1
    assert "a.png: refused: would replace out/A.png: this folder does not distinguish" in capsys.readouterr().err
    assert Path("out/a.png").read_bytes() == before


@pytest.mark.parametrize(("name", "longest"), [("a.webp", 16383), ("a.jpg", 65500)])
def test_a_photo_too_long_for_a_format_is_refused_before_it_is_restored(photos, model, capsys, name, longest):
    write_photo(photos / "long.png", Photo(np.zeros((1, longest + 1, 3), np.uint8)))
    assert restore(model, photos / "long.png", name) == 1
    assert f"holds at most {longest} pixels a side, the photo has {longest + 1}x1" in capsys.readouterr().err


def test_nothing_is_loaded_where_nothing_is_to_do(photos, model):
    assert restore(model, photos, "out") == 0
    assert restore("no model", photos, "out", "--skip-existing") == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_stops_the_batch(number, photos, model, capsys, monkeypatch):
    counts = count_writes(monkeypatch, OSError(number, os.strerror(number)), after=1)
    assert restore(model, photos, "out") == 1
    assert counts["writes"] == 2
    assert files("out") == ["a.png"]
    printed = capsys.readouterr()
    assert re.search(r"^restored +1  in .*\nnot tried +3\n\Z", printed.out, re.MULTILINE)
    assert re.fullmatch(r"dgunet: out/b\.png: the .*; run again with --skip-existing to continue\n", printed.err)


def test_a_disk_that_is_full_leaves_no_half_file(photos, model, small_disk: SmallDisk, capsys):
    rng = np.random.default_rng(0)
    for name in ALL:
        write_photo(photos / name, Photo(rng.integers(0, 256, (100, 100, 3), np.uint8)))
    small_disk(Path("out"), "100k")
    assert restore(model, photos, "out", "--format", "bmp") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert files("out") == ["a.bmp", "b.bmp", "c.bmp"]


def test_a_limit_of_file_sizes_refuses_the_photos_that_exceed_it(photos, model, capsys):
    write_photo(photos / "b.png", Photo(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        status = restore(model, photos, "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    assert "photos/b.png: refused: File too large; the file was not written" in capsys.readouterr().err
    assert [path.name for path in sorted(Path("out").iterdir())] == ["a.png", "c.png", "trip"]


def test_an_output_that_cannot_be_written_to_is_one_error_before_the_model_is_loaded(
    photos, model, small_disk: SmallDisk, capsys
):
    small_disk(Path("out"), "100k,ro")
    for out in ("out", "out/deeper", "out/a.png"):
        assert restore("no model", photos / "a.png", out) == 1
        error = capsys.readouterr().err
        assert re.fullmatch(r"dgunet: out\S*: Read-only file system; nothing was restored\n", error)


def test_a_folder_that_was_made_for_nothing_is_removed(photos, capsys):
    assert restore("no model", photos, "new/out") == 1
    assert not Path("new").exists()


def test_a_target_that_is_a_folder_or_lies_in_a_file_is_refused(photos, model, capsys):
    Path("out", "a.png").mkdir(parents=True)
    Path("out", "trip").touch()
    assert restore(model, photos, "out", "--overwrite") == 1
    assert files("out") == ["b.png", "c.png", "trip"]
    error = capsys.readouterr().err
    assert "photos/a.png: refused: a folder of the same name exists" in error
    assert "photos/trip/d.png: refused: " in error


# Reports


def test_json_is_one_object_on_stdout_and_all_else_is_on_stderr(photos, model, capsys):
    (photos / "b.png").write_bytes(b"")
    (photos / "notes.txt").touch()
    Path("out").mkdir()
    Path("out", "c.png").write_bytes((photos / "c.png").read_bytes())
    assert restore(model, photos, "out", "--json", "--skip-existing") == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [entry["photo"] for entry in report["done"]] == ["photos/a.png", "photos/trip/d.png"]
    first = report["done"][0]
    assert (first["target"], first["width"], first["height"], first["dropped"]) == ("out/a.png", 9, 8, [])
    assert report["skipped"] == [{"photo": "photos/c.png", "target": "out/c.png"}]
    assert [entry["photo"] for entry in report["refused"]] == ["photos/b.png"]
    assert "empty" in report["refused"][0]["reason"]
    assert report["counts"] == {"done": 2, "skipped": 1, "refused": 1, "not_tried": 0, "unread": 1}
    assert (report["unread"], report["stopped"]) == ({".txt": 1}, None)
    assert report["seconds"] >= first["seconds"] > 0
    assert "out/a.png  9x8" in printed.err


def test_json_is_printed_after_an_interruption_too(photos, model, capsys, monkeypatch):
    count_writes(monkeypatch, KeyboardInterrupt(), after=1)
    assert restore(model, photos, "out", "--json") == 130
    report = json.loads(capsys.readouterr().out)
    assert (report["stopped"], report["counts"]["done"], report["counts"]["not_tried"]) == ("interrupted", 1, 3)


def test_many_refusals_of_one_reason_are_one_line_of_the_table(photos, model, capsys):
    for number in range(30):
        (photos / f"{number:02d}.png").write_bytes(b"")
        (photos / f"{number:02d}.bmp").write_bytes(f"no image {number}".encode())
    assert restore(model, photos, "out") == 1
    table = capsys.readouterr().out.split("restored")[1]
    assert re.search(r"^  30: an empty file: photos/00\.png, photos/01\.png, photos/02\.png and 27 more$", table, re.M)
    assert len(table.splitlines()) < 20


def test_an_error_of_any_type_and_length_is_one_line_and_refuses_one_photo(photos, model, capsys, monkeypatch):
    class EncoderError(Exception):
        pass

    def write(path: Path, photo: Photo) -> tuple[str, ...]:
        if path.name == "b.png":
            raise EncoderError("unable to call save\n  pngsave: too wide\n" + "x" * 1000)
        return write_photo(path, photo)

    monkeypatch.setattr("dgunet.batch.write_photo", write)
    assert restore(model, photos, "out") == 1
    assert files("out") == ["a.png", "c.png", "trip/d.png"]
    printed = capsys.readouterr()
    assert printed.err.startswith(
        "[2/4] photos/b.png: refused: EncoderError: unable to call save; pngsave: too wide; x"
    )
    assert printed.err.count("\n") == 1
    assert max(map(len, printed.out.splitlines())) < 300


def test_existing_photos_are_one_line(photos, model, capsys):
    assert restore(model, photos, "out") == 0
    capsys.readouterr()
    assert restore(model, photos, "out") == 1
    assert re.fullmatch(
        r"dgunet: 4 of 4 photos exist in OUT; --overwrite .* --skip-existing .*\n", capsys.readouterr().err
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def put_terminal(monkeypatch, *streams: str) -> Terminal:
    """A terminal in place of these streams; no fixture, as pytest sets the streams anew before the test."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    for stream in streams:
        monkeypatch.setattr(sys, stream, terminal)
    return terminal


def test_a_terminal_shows_photos_rate_and_time_left_on_one_line(photos, model, monkeypatch):
    terminal = put_terminal(monkeypatch, "stdout", "stderr")
    assert restore(model, photos, "out") == 0
    progress, table = terminal.getvalue().split("restored")
    assert "\n" not in progress, "the line stands for the lines of the photos"
    assert re.search(r"\r  3 of 4 photos  \S+ (photos per s|s per photo)  .* left", progress)
    assert progress.endswith("\r"), "the line is removed at the end"
    assert re.match(r" +4  in \S+ s\n\Z", table)


@pytest.mark.parametrize(("more", "num_lines"), [([], 4), (["--json"], 0)])
def test_a_log_beside_a_terminal_lists_the_photos(more, num_lines, photos, model, monkeypatch):
    terminal = put_terminal(monkeypatch, "stderr")
    with contextlib.redirect_stdout(io.StringIO()) as log:
        assert restore(model, photos, "out", *more) == 0
    assert len(re.findall(r"^\[\d/4\] ", log.getvalue(), re.MULTILINE)) == num_lines
    assert "of 4 photos" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error_and_its_lines_go_nowhere_else(closed, photos, model, monkeypatch, capsys):
    (photos / "b.png").write_bytes(b"")
    monkeypatch.setattr(sys, closed, None)
    assert restore(model, photos, "out", "--json") == 1
    printed = capsys.readouterr()
    assert "refused: an empty file" in printed.err if closed == "stdout" else json.loads(printed.out)


def test_no_progress_is_shown_where_stderr_is_no_terminal(photos, model, capsys):
    assert restore(model, photos, "out") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["restore", "photos", "out", "--model", "{model}"], ["info", "{model}"]])
def test_a_closed_pipe_ends_the_command_quietly(arguments, photos, model, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main([argument.format(model=model) for argument in arguments]) == console.BROKEN_PIPE_STATUS
    assert capsys.readouterr().err == ""
    assert not Path("out").exists() or files("out") == ["a.png"], "the batch ends with the first line"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_log_that_cannot_be_written_costs_no_photo(more, photos, model, monkeypatch, capsys):
    with Path("/dev/full").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert restore(model, photos, "out", *more) == (1 if more else 0)
    assert files("out") == ALL
    assert "the output cannot be written: No space left on device" in capsys.readouterr().err


def test_a_full_disk_behind_stdout_is_an_error_of_the_other_commands(model, monkeypatch, capsys):
    with Path("/dev/full").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["info", model]) == 1
    assert capsys.readouterr().err == "dgunet: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (185.0, "3 min 5 s"),
        (59.97, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (7830.0, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def test_compare_writes_before_and_after_side_by_side(photos, model, capsys):
    wide = np.zeros((40, 2000, 1), np.uint16)
    wide[:, 1000:] = 65535
    write_photo(photos / "wide.tif", Photo(wide))
    assert restore(model, photos / "a.png", photos / "wide.tif", "out", "--compare") == 0
    assert files("out") == ["a.compare.jpg", "a.png", "wide.compare.jpg", "wide.tif"]
    before, after = read_photo(photos / "a.png").pixels, read_photo("out/a.png").pixels
    shown = read_photo("out/a.compare.jpg").pixels
    height, width = before.shape[:2]
    assert shown.shape == (height, 2 * width + 8, 3)
    assert np.abs(shown[:, :width].mean() - before.mean()) < 3
    assert np.abs(shown[:, width + 8 :].mean() - after.mean()) < 3
    shown = read_photo("out/wide.compare.jpg").pixels
    assert shown.shape == (32, 2 * 1600 + 8, 3)
    assert shown[:, 100:700].mean() < 3
    assert shown[:, 900:1500].mean() > 252
