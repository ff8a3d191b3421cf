"""Restore a film frame by frame, with FFmpeg's libraries through PyAV (the extra `video`).

Sound and subtitles are copied unchanged. Frames keep their times, even if the rate varies. The film is written as H.264
of high quality, or as FFV1, which is lossless, if the name ends in .mkv. Each frame is restored alone, so a strong
restoration may flicker.
"""

import secrets
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm")
WRITABLE = (".mp4", ".mov", ".mkv")
QUALITY = "14"  # CRF of x264; 18 is said to be hard to tell from the source
HD_LINES = 720  # films that do not name a matrix: with at least this many lines BT.709, else BT.601
WEIGHTS = {  # of red and blue in the luma: BT.709, FCC, BT.601 twice, SMPTE 240M, by FFmpeg's numbers
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
}
FULL_RANGE = 2
HDR_CURVES = {16: "PQ", 18: "HLG"}
Frame = UInt8[np.ndarray, "H W 3"]


def restore_film(
    source: Path, target: Path, restore: Callable[[Frame], Frame], progress: Callable[[int, int], None]
) -> int:
    """Restore a film, and return its number of frames. The target is replaced as a whole, or stays unchanged.

    Args:
        source: the film.
        target: file to write, of a suffix of WRITABLE.
        restore: restores one frame, RGB of 8 bits.
        progress: called after each frame with the number of frames done and of all frames, 0 if the film does not say.

    Raises:
        ValueError: the file is not a film or holds no frame, or it has more than 8 bits, high dynamic range or
            interlaced frames; the message has one line.
        OSError: the target cannot be written.
        ImportError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("restoring films needs PyAV: pip install 'dgunet[video]'") from error

    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        with av.open(str(source)) as read:
            if not read.streams.video:
                raise ValueError(f"{source}: contains no film")
            _check(source, read.streams.video[0])
            with av.open(str(source)) as peeked:
                first = next(peeked.decode(video=0), None)
            if first is None:
                raise ValueError(f"{source}: holds no frame")
            with av.open(str(temporary), "w") as written:
                num_frames = _copied(read, written, first, restore, progress)
        temporary.replace(target)
    except av.error.FFmpegError as error:
        if error.errno and error.filename != str(source):
            raise OSError(error.errno, f"{error.strerror}; the film was not written", str(target)) from error
        raise ValueError(f"{source}: {error.strerror or 'damaged, or not a film'}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return num_frames


def _check(source: Path, film: Any) -> None:
    context = film.codec_context
    bits = max((component.bits for component in context.format.components), default=8) if context.format else 8
    if context.color_trc in HDR_CURVES:
        raise ValueError(
            f"{source}: a film of high dynamic range ({HDR_CURVES[context.color_trc]}), which is not supported"
        )
    if bits > 8:
        raise ValueError(f"{source}: a film of {bits} bits, which is not supported; convert it to 8 bits first")


def _copied(
    read: Any, written: Any, first: Any, restore: Callable[[Frame], Frame], progress: Callable[[int, int], None]
) -> int:
    import av

    film = read.streams.video[0]
    lossless = written.format.name == "matroska"
    out = written.add_stream("ffv1" if lossless else "libx264", rate=film.average_rate or Fraction(25))
    out.pix_fmt = "bgr0" if lossless else "yuv420p"
    out.options = {} if lossless else {"crf": QUALITY, "preset": "medium"}
    out.codec_context.time_base = film.time_base
    _set_up(out, first, lossless=lossless)  # before anything is written
    kept = {
        stream.index: written.add_stream_from_template(stream)
        for stream in (*read.streams.audio, *read.streams.subtitles)
    }
    num_frames = 0
    for packet in read.demux(film, *(stream for stream in read.streams if stream.index in kept)):
        if packet.stream.index != film.index:
            if packet.dts is not None:
                packet.stream = kept[packet.stream.index]
                written.mux(packet)
            continue
        for frame in packet.decode():
            if frame.interlaced_frame:
                raise ValueError("interlaced frames are not supported: deinterlace the film first")
            written.mux(out.encode(_restored(av, frame, restore, out, lossless=lossless)))
            num_frames += 1
            progress(num_frames, film.frames)
    written.mux(out.encode(None))
    return num_frames


def _set_up(out: Any, frame: Any, *, lossless: bool) -> None:
    turned = frame.rotation % 180 != 0
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    even = 1 if lossless else 2  # the colours of H.264 have half the resolution: an odd line or column is left out
    out.width, out.height = width // even * even, height // even * even
    if not lossless:
        out.codec_context.colorspace = _matrix(frame)
        out.codec_context.color_range = 1  # 16 to 235


def _matrix(frame: Any) -> int:
    """Return FFmpeg's number of the matrix between RGB and the film's luma and colours."""
    number = int(frame.colorspace)
    return number if number in WEIGHTS else 1 if frame.height >= HD_LINES else 6


def _restored(av: Any, frame: Any, restore: Callable[[Frame], Frame], out: Any, *, lossless: bool) -> Any:
    rgb = frame.to_ndarray(format="rgb24") if frame.format.is_rgb else _rgb(frame, *WEIGHTS[_matrix(frame)])
    if frame.rotation:
        rgb = np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))
    pixels = np.ascontiguousarray(restore(rgb)[: out.height, : out.width])
    if lossless:
        new = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    else:
        new = av.VideoFrame.from_ndarray(_planes(pixels, *WEIGHTS[_matrix(frame)]), format="yuv420p")
    new.pts, new.time_base = frame.pts, frame.time_base
    return new


# FFmpeg's own conversions between luma and colours and RGB are darker by one grey level, in both directions.
def _rgb(frame: Any, red: float, blue: float) -> Frame:
    is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    planes = frame.reformat(format="yuvj444p" if is_full else "yuv444p").to_ndarray().astype(np.float32)
    black, luma_levels, colour_levels = (0, 255, 255) if is_full else (16, 219, 224)
    luma = (planes[0] - black) / luma_levels
    of_blue, of_red = ((plane - 128) / colour_levels for plane in planes[1:])
    r, b = luma + 2 * (1 - red) * of_red, luma + 2 * (1 - blue) * of_blue
    g = (luma - red * r - blue * b) / (1 - red - blue)
    pixels: Frame = np.rint(255 * np.stack([r, g, b], axis=2)).clip(0, 255).astype(np.uint8)
    return pixels


def _planes(pixels: Frame, red: float, blue: float) -> UInt8[np.ndarray, "rows W"]:
    """Return luma, and the two colours of half the resolution, below each other."""
    height, width = pixels.shape[:2]
    rgb = pixels.astype(np.float32) / 255
    luma = rgb @ np.array([red, 1 - red - blue, blue], np.float32)
    quarters = np.stack([(rgb[..., 2] - luma) / (2 * (1 - blue)), (rgb[..., 0] - luma) / (2 * (1 - red))])
    colours = quarters.reshape(2, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    levels = [16 + 219 * luma, (128 + 224 * colours).reshape(height // 2, width)]
    planes: UInt8[np.ndarray, "rows W"] = np.rint(np.concatenate(levels)).clip(0, 255).astype(np.uint8)
    return planes
