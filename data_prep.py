"""Every data set of nav.py becomes one file, data/NAME.npz, with a contact sheet data/NAME.png beside it.

    python data_prep.py folder PATH --name mine            # your own: GIF, APNG, WebP, avi, strips, folders of frames
    python data_prep.py folder clips.npz --name w4 --grid  # one [T, H, W, 3] uint8 array a clip, named static_transient
    python data_prep.py draw chair --clips 64              # drawn stand-ins: nav.py draws the same ones by itself
    python data_prep.py draw weizmann

An existing data/NAME.npz is left alone unless --force says otherwise. Frames are cut to a centred square and resized.
"""

import argparse
import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# What is read is never trusted: these bounds hold before memory is taken.
MAX_PIXELS = 1 << 24  # of one picture (4096 x 4096), read from its header
MAX_FILE = 1 << 28  # bytes of one picture or clip
MAX_FRAMES = 1000  # of one clip; a longer one is cut there
MAX_CLIP = 1 << 30  # bytes of one clip once decoded
MAX_BYTES = 1 << 32  # of one array of a prepared set
MAX_CLIPS = 100_000
MAX_MEMBER = 1 << 30  # bytes of one member of an archive, wanted or not
MAX_ARCHIVE = 1 << 37  # bytes of a download: the golf archive has tens of GB
BACKOFF = 0.5  # seconds after the first failure of a connection; doubled after each further one
MAX_FILMS = 1000
MAX_SPARE = 1000
PICTURES = ("PNG", "GIF", "WEBP", "JPEG", "BMP")  # the decoders that hostile bytes may reach
SUFFIXES = (".png", ".apng", ".gif", ".webp", ".jpg", ".jpeg", ".bmp", ".avi")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DataError(ValueError):
    """Data that cannot be used. One line: what is wrong, where, and what to do."""


def shown(name):
    """A name from an archive or a file system, safe to print: one line, no control characters, not endless."""
    text = ascii(str(name))[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(text):
    """A text or an error without its line breaks."""
    return " ".join(str(text).split())


# ---- A prepared set: Clips, and its file ----------------------------------------------------------------------------


@dataclasses.dataclass
class Clips:
    """N clips of L frames and the rows of the two dictionaries that describe them (paper section 3, figure 2)."""

    videos: np.ndarray  # uint8 [N, L, H, W, 3]
    static_id: np.ndarray  # int64 [N], row of the static dictionary
    transient_id: np.ndarray  # int64 [N], row of the transient dictionary
    static_names: list
    transient_names: list
    names: list  # one a clip
    source: str  # one line; drawn stand-ins start with 'drawn'
    full: np.ndarray = None  # uint8 [sum of lengths, H, W, 3]: every clip at its full length, one after another
    length: np.ndarray = None  # int64 [N], full frames of each clip, at least L

    def __post_init__(self):
        if self.full is None:  # nothing longer than L was kept
            self.full = self.videos.reshape(-1, *self.videos.shape[2:])
            self.length = np.full(len(self.videos), self.videos.shape[1], np.int64)

    @property
    def standin(self):
        return self.source.startswith("drawn")


def write_beside(path, write):
    """Write a file whole or not at all: `write(temporary path)` beside `path`, flushed to disk, then renamed over it.

    The temporary name keeps the suffix. On failure it is removed, `path` is as before, and the error goes on (OSError:
    no space, no permission, not a folder)."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(clips, path):
    """Write Clips to `path` as a compressed npz; `full` and `length` only where a clip is longer than L. OSError."""
    arrays = dict(videos=clips.videos, static_id=clips.static_id, transient_id=clips.transient_id)
    for key in ("static_names", "transient_names", "names"):
        arrays[key] = np.array(getattr(clips, key), dtype=str)
    arrays["source"] = np.array(clips.source)
    if len(clips.full) > clips.videos.shape[0] * clips.videos.shape[1]:
        arrays.update(full=clips.full, length=clips.length)

    def write(temporary):
        with open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_beside(path, write)


def open_zip(file, where):
    """A ZipFile whose directory is small enough to be read. Raises DataError."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(max(0, size - 66_000))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise DataError(f"{where}: not a whole zip file (no directory): truncated? make or fetch it again")
    entries, directory = struct.unpack("<HI", tail[end + 10 : end + 16])
    if b"PK\6\7" in tail[max(0, end - 20) : end] or directory > 1 << 22:
        raise DataError(f"{where}: a zip directory of {directory} bytes or of 64 bits: more than any set needs")
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, struct.error) as error:  # damaged, or of a later version
        raise DataError(f"{where}: not a whole zip file ({error}): truncated? make or fetch it again") from None


def read_npy(archive, info, where, peek=False):
    """One array of an npz; with `peek`, its (shape, dtype) alone. Nothing is unpickled, and nothing is allocated before
    the header, the declared size and what deflate can reach at most (1032 : 1) agree. Raises DataError."""
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
        if dtype.hasobject:
            raise DataError(f"{where}: holds Python objects, plain numbers or text expected")
        count = dtype.itemsize
        for side in shape:
            count *= side
        if not 0 <= count <= MAX_BYTES or min(shape, default=0) < 0:
            raise DataError(f"{where}: {shape} {dtype} is {count} bytes, at most {MAX_BYTES} expected: split the set")
        if not count <= info.file_size <= count + 65_536 or count > 1040 * info.compress_size:
            raise DataError(f"{where}: promises {shape} {dtype} but holds {info.file_size} bytes: make the file again")
        if peek:
            return shape, dtype
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # zlib, zipfile and numpy each raise their own on damaged bytes
        raise DataError(f"{where}: damaged ({shown(error)}): make the file again") from None


def load(path):
    """Read and check a prepared set -> Clips. Raises DataError naming the key and what was expected."""
    layout = dict(videos=("uint8", 5), static_id=("int64", 1), transient_id=("int64", 1), static_names=("str", 1),
                  transient_names=("str", 1), names=("str", 1), source=("str", 0), full=("uint8", 4),
                  length=("int64", 1))
    try:
        file = open(path, "rb")
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror}): see python data_prep.py --help") from None
    with file, open_zip(file, shown(path)) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        optional = set() if {"full", "length"} & members.keys() else {"full", "length"}
        missing = [key for key in layout if key not in members and key not in optional]
        if missing:
            raise DataError(f"{shown(path)}: key {missing[0]!r} is missing; a prepared set holds {', '.join(layout)}")
        arrays = {}
        for key in (key for key in layout if key in members):
            where, (kind, rank) = f"{shown(path)}: key {key!r}", layout[key]
            shape, dtype = read_npy(archive, members[key], where, peek=True)
            if dtype.kind != "U" if kind == "str" else dtype != np.dtype(kind):
                raise DataError(f"{where} is {dtype}, {kind} expected")
            if len(shape) != rank:
                raise DataError(f"{where} has shape {shape}, {rank} dimensions expected")
            arrays[key] = read_npy(archive, members[key], where)

    def check(good, key, text):
        if not good:
            raise DataError(f"{shown(path)}: key {key!r} {text}")

    videos = arrays["videos"]
    clips, frames = videos.shape[:2]
    check(clips > 0, "videos", "holds no clip: at least one expected")
    check(videos.size > 0 and videos.shape[4] == 3, "videos", f"has shape {videos.shape}, [N, L, H, W, 3] expected")
    for key in ("static_id", "transient_id", "names"):
        check(len(arrays[key]) == clips, key, f"has {len(arrays[key])} entries, one for each of {clips} clips expected")
    for key in ("static", "transient"):
        ids, rows = arrays[key + "_id"], len(arrays[key + "_names"])
        check(ids.min() >= 0 and ids.max() < rows, key + "_id",
              f"runs from {ids.min()} to {ids.max()}, 0 to {rows - 1} expected ({rows} names in {key}_names)")
    if "full" in arrays:
        full, length = arrays["full"], arrays["length"]
        check(len(length) == clips, "length", f"has {len(length)} entries, one for each of {clips} clips expected")
        check(length.min() >= frames and length.max() <= len(full) and length.sum() == len(full), "length",
              f"adds up to {length.sum()} frames, at least {length.min()} each; {len(full)} and {frames} expected")
        check(full.shape[1:] == videos.shape[2:], "full",
              f"has frames of {full.shape[1:]}, {videos.shape[2:]} expected")
    texts = {key: arrays[key].tolist() for key in ("static_names", "transient_names", "names")}
    source = " ".join(str(arrays["source"]).split())  # one line
    return Clips(videos, arrays["static_id"], arrays["transient_id"], **texts, source=source,
                 full=arrays.get("full"), length=arrays.get("length"))


def together(clips, frames, names, static, transient, source):
    """Clips of any lengths >= frames, each uint8 [T, H, W, 3], with their static and transient names -> Clips.

    The dictionaries hold each name once, in the order in which they first appear. `clips` is emptied as it is copied:
    the set is in memory once, not twice."""
    static_names, transient_names = list(dict.fromkeys(static)), list(dict.fromkeys(transient))
    length = np.array([len(clip) for clip in clips], np.int64)
    videos = np.empty((len(clips), frames, *clips[0].shape[1:]), np.uint8)
    full = np.empty((length.sum(), *clips[0].shape[1:]), np.uint8) if length.max() > frames else None
    begin = np.cumsum(length) - length
    for index in range(len(clips)):
        clip, clips[index] = clips[index], None
        videos[index] = clip[:frames]
        if full is not None:
            full[begin[index] : begin[index] + length[index]] = clip
    ids = [np.array([rows.index(name) for name in every], np.int64)
           for rows, every in ((static_names, static), (transient_names, transient))]
    return Clips(videos, *ids, static_names, transient_names, names, source, full, None if full is None else length)


# ---- Pictures out: contact sheets and GIFs --------------------------------------------------------------------------


def sheet(rows, path, scale=1, gap=2, frames=None, row_labels=None, column_labels=None, ground=255):
    """One PNG grid. rows: uint8 [R, K, H, W, 3], or lists of images [H, W, 3] of one size with None for a blank.

    scale: integer magnification, pixels stay square. frames: [R][K] of a colour or None, drawn around single cells.
    row_labels, column_labels: short texts at the left and above. ground: grey of the gaps, 0 to 255."""
    size = next(cell.shape[:2] for row in rows for cell in row if cell is not None)
    high, wide = size[0] * scale, size[1] * scale
    font = ImageFont.load_default(12)
    left = gap + max([int(font.getlength(text)) + 6 for text in row_labels or []], default=0)
    top = gap + (18 if column_labels else 0)
    columns = max(len(row) for row in rows)
    picture = Image.new("RGB", (left + columns * (wide + gap), top + len(rows) * (high + gap)), (ground,) * 3)
    draw, ink = ImageDraw.Draw(picture), (0,) * 3 if ground > 127 else (255,) * 3
    for r, row in enumerate(rows):
        y = top + r * (high + gap)
        if row_labels:
            draw.text((3, y + high // 2), row_labels[r], ink, font, anchor="lm")
        for k, cell in enumerate(row):
            x = left + k * (wide + gap)
            if cell is not None:
                picture.paste(Image.fromarray(np.asarray(cell)).resize((wide, high), Image.Resampling.NEAREST), (x, y))
            if frames is not None and frames[r][k] is not None:
                line = max(2, gap)
                draw.rectangle((x - line, y - line, x + wide + line - 1, y + high + line - 1), None, frames[r][k], line)
    for k, text in enumerate(column_labels or []):
        draw.text((left + k * (wide + gap) + wide // 2, 9), text, ink, font, anchor="mm")
    write_beside(path, lambda temporary: picture.save(temporary))


def chart(path, lines, x_title, y_title, size=(640, 400)):
    """A PNG of lines over a pair of axes. lines: {name: ([x, ...], [y, ...])}, at least two points in all; x from 0."""
    font, colours = ImageFont.load_default(13), [(31, 119, 180), (214, 80, 40), (44, 140, 60), (130, 90, 180)]
    xs, ys = ([value for line in lines.values() for value in line[axis]] for axis in (0, 1))
    left, top, right, bottom = 56, 34, size[0] - 20, size[1] - 44
    x_end, low = max(xs) or 1, math.floor(min(ys))
    high = max(math.ceil(max(ys)), low + 1)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)

    def ticks(start, end):  # at most eight round numbers
        step = next(s for e in range(-3, 12) for s in (10.0 ** e, 2 * 10.0 ** e, 5 * 10.0 ** e) if (end - start) / s <= 8)
        return [k * step for k in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1)]

    def at(x, y):
        return left + (right - left) * x / x_end, bottom - (bottom - top) * (y - low) / (high - low)

    for y in ticks(low, high):
        draw.line((at(0, y), at(x_end, y)), (225,) * 3)
        draw.text((left - 8, at(0, y)[1]), f"{y:g}", "black", font, anchor="rm")
    for x in ticks(0, x_end):
        draw.line((at(x, low), at(x, high)), (225,) * 3)
        draw.text((at(x, low)[0], bottom + 8), f"{x:g}", "black", font, anchor="mt")
    draw.line((at(0, high), at(0, low), at(x_end, low)), "black")
    draw.text((right, size[1] - 6), x_title, "black", font, anchor="rs")
    draw.text((4, 4), y_title, "black", font)
    for i, (name, (x, y)) in enumerate(lines.items()):
        draw.line([at(*point) for point in zip(x, y)], colours[i % 4], 2, joint="curve")
        draw.line((left + 12 + 130 * i, 12, left + 32 + 130 * i, 12), colours[i % 4], 3)
        draw.text((left + 38 + 130 * i, 12), name, "black", font, anchor="lm")
    write_beside(path, lambda temporary: picture.save(temporary))


def write_gif(video, path, fps=8):
    """A looped GIF of uint8 [T, H, W, 3]. One palette for all frames and no dithering: a still ground stays still."""
    high, wide = video.shape[1:3]
    palette = Image.fromarray(video.reshape(-1, wide, 3)).quantize(256, Image.Quantize.MEDIANCUT)
    frames = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in video]
    write_beside(path, lambda temporary: frames[0].save(
        temporary, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0))


# ---- Clips in: pictures, strips, folders of frames, avi -------------------------------------------------------------


def fit(image, size, crop=True, share=1.0):
    """A PIL RGB image -> uint8 [size, size, 3]: the largest centred square, or that share of its side (all of the
    picture without `crop`), resized with an antialiased bicubic filter. size None keeps the picture as it is."""
    if size is None:
        return np.asarray(image)
    wide, high = image.size
    side = min(wide, high) * share
    box = ((wide - side) / 2, (high - side) / 2, (wide + side) / 2, (high + side) / 2) if crop else None
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))


def pictures(data, where):
    """Yield every frame of one picture file (path or bytes) as a PIL RGB image, transparent parts on white.

    At most MAX_FRAMES; each size is checked before its pixels are decoded. Raises DataError."""
    try:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the tighter bound
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=PICTURES) as image:
            first = 1 if image.info.get("default_image") else 0  # an APNG's still picture for old viewers is no frame
            for index in range(first, first + MAX_FRAMES):
                if index:
                    try:
                        image.seek(index)
                    except EOFError:
                        break
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{where}: {image.width} x {image.height} pixels, at most {MAX_PIXELS} expected")
                if image.mode[0] in "IF":
                    raise DataError(f"{where}: {image.mode} pixels (more than 8 bits): save it with 8 bits a channel")
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    ground = Image.new("RGBA", image.size, "white")
                    yield Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
                else:
                    yield image.convert("RGB")
                if not getattr(image, "is_animated", False):
                    break
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ... on damaged bytes
        raise DataError(f"{where}: cannot be decoded ({shown(error)})") from None


def read_strip(image, where):
    """One still picture, a whole number of squares high or wide -> its frames, PIL images. Raises DataError."""
    wide, high = image.size
    side = min(wide, high)
    if max(wide, high) % side or wide == high:
        raise DataError(f"{where}: one picture of {wide} x {high} is no strip: the long side must be a multiple")
    if max(wide, high) // side > MAX_FRAMES:
        raise DataError(f"{where}: a strip of {max(wide, high) // side} frames, at most {MAX_FRAMES} expected")
    if high > wide:
        return [image.crop((0, y, side, y + side)) for y in range(0, high, side)]
    return [image.crop((x, 0, x + side, side)) for x in range(0, wide, side)]


def read_avi(data, where):
    """Uncompressed 24-bit RIFF avi (bytes) -> its frames, uint8 [H, W, 3] RGB, right way up. Raises DataError.

    Stored bottom-up (a negative height says top-down), BGR, rows padded to 4 bytes. Frames are counted as found, at
    most MAX_FRAMES: what the header promises is only compared."""

    def chunks(begin, end, depth=0):  # the leaves, in the order of the file
        while begin + 8 <= end:
            tag, size = data[begin : begin + 4], int.from_bytes(data[begin + 4 : begin + 8], "little")
            begin += 8
            if tag == b"LIST" and data[begin : begin + 4] in (b"hdrl", b"strl", b"movi", b"rec ") and depth < 4:
                yield from chunks(begin + 4, min(begin + size, end), depth + 1)
            else:
                yield tag, begin, size
            begin += size + size % 2

    if data[:4] != b"RIFF" or data[8:12] != b"AVI ":
        raise DataError(f"{where}: not an avi file (no RIFF AVI header)")
    promised, shape, frames = 0, None, []
    for tag, begin, size in chunks(12, len(data)):
        if tag == b"avih" and size >= 40:
            promised = int.from_bytes(data[begin + 16 : begin + 20], "little")
        elif tag == b"strf" and shape is None:
            if size < 40 or begin + 40 > len(data):
                raise DataError(f"{where}: the avi header ends early: truncated? fetch it again")
            wide, high, _, bits, codec = struct.unpack("<iiHH4s", data[begin + 4 : begin + 20])
            if codec not in (b"\0\0\0\0", b"DIB ", b"RGB ", b"RAW ") or bits != 24:
                name = "uncompressed" if codec == b"\0\0\0\0" else "codec " + shown(codec.decode("latin-1"))
                raise DataError(f"{where}: {name}, {bits} bits a pixel; only uncompressed 24-bit is read: convert it")
            if wide < 1 or not 0 < wide * abs(high) <= MAX_PIXELS:
                raise DataError(f"{where}: frames of {wide} x {high} pixels, at most {MAX_PIXELS} in all expected")
            shape, row = (abs(high), wide), (3 * wide + 3) // 4 * 4
        elif tag[2:] in (b"db", b"dc") and shape is not None and len(frames) < MAX_FRAMES:
            if size != shape[0] * row:
                raise DataError(f"{where}: frame {len(frames)} holds {size} bytes, {shape[0] * row} expected")
            if begin + size > len(data):
                raise DataError(f"{where}: ends inside frame {len(frames)}: truncated? fetch it again")
            frame = np.frombuffer(data, np.uint8, size, begin).reshape(shape[0], row)[:, : 3 * shape[1]]
            frames.append(frame.reshape(*shape, 3)[:: -1 if high > 0 else 1, :, ::-1])  # a view: nothing is copied
    if promised > len(frames) and len(frames) < MAX_FRAMES:
        raise DataError(f"{where}: the header promises {promised} frames, the file holds {len(frames)}: fetch it again")
    if not frames:
        raise DataError(f"{where}: holds no frame")
    return frames


def natural(name):
    """A sort key under which frame2 comes before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(name))]


def listing(folder):
    """What a folder holds, hidden files left out, in natural order. Raises DataError."""
    try:
        return sorted((entry for entry in os.scandir(folder) if entry.name[0] not in "._"),
                      key=lambda entry: natural(entry.name))
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be read ({error.strerror}): check the path") from None


def read_file(path):
    """The bytes of one regular file of at most MAX_FILE. Raises DataError."""
    try:
        if not os.path.isfile(path):
            what = "not a regular file" if os.path.exists(path) else "does not exist"
            raise DataError(f"{shown(path)}: {what}: check the path")
        if os.path.getsize(path) > MAX_FILE:
            raise DataError(f"{shown(path)}: {os.path.getsize(path)} bytes, at most {MAX_FILE} expected")
        with open(path, "rb") as file:
            return file.read(MAX_FILE)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror}): check the path") from None


def read_clip(path, frames=None, size=None, crop=True):
    """One clip -> uint8 [T, H, W, 3]: a GIF, animated PNG or WebP, an uncompressed avi, a strip, or a folder of frames.

    frames: keep that many, fewer is an error; None keeps all, at most MAX_FRAMES. size: as `fit`. Raises DataError."""
    where = shown(path)
    if os.path.isdir(path):
        found = [entry for entry in listing(path) if entry.name.lower().endswith(SUFFIXES) and not entry.is_symlink()]
        images = (image for entry in found[: frames or MAX_FRAMES]
                  for image in [next(pictures(read_file(entry.path), shown(entry.path)))])
    else:
        data = read_file(path)
        if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
            images = (Image.fromarray(frame) for frame in read_avi(data, where))
        else:
            images = pictures(data, where)
    video = []
    for image in images:
        video.append(fit(image, size, crop))
        if video[-1].shape != video[0].shape:
            raise DataError(f"{where}: frames of different sizes: give them one size")
        if video[0].nbytes * len(video) > MAX_CLIP:
            raise DataError(f"{where}: more than {MAX_CLIP} bytes once decoded: give a shorter clip or smaller frames")
        if len(video) == frames:
            break
    if len(video) == 1 and not os.path.isdir(path):  # one still picture
        video = [fit(image, size, crop) for image in read_strip(next(pictures(data, where)), where)[:frames]]
    if len(video) < (frames or 1):
        raise DataError(f"{where}: {len(video)} frames, {frames or 1} expected: give a longer clip")
    return np.stack(video)


# ---- Drawn chairs: what `--dataset chair` trains on until the real renders are there --------------------------------
# A chair is a list of convex pieces, [2, n, 3]: a lower and an upper ring of n corners (metres; z up, the front is +y).
# The camera of 'Seeing 3D Chairs': azimuth k * 360 / 31, elevation 20, white ground.

AZIMUTHS = 31
SUPERSAMPLE = 4


def beam(p, q, at_p, at_q=None, sides=4):
    """A prism or frustum from p to q. at_p, at_q: half sizes (u, v) of its sections, which lie square to the axis (x, y
    or z) along which it is longest, so that faces stay flat however far it leans. sides: 4, or more for a round one."""
    p, q = np.asarray(p, float), np.asarray(q, float)
    axis = int(np.abs(q - p).argmax())
    u, v = [(1, 2), (2, 0), (0, 1)][axis]
    if q[axis] < p[axis]:
        p, q, at_p, at_q = q, p, at_q or at_p, at_p
    angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) / np.cos(np.pi / sides)  # sides touch the half sizes
    piece = np.stack([np.tile(p, (sides, 1)), np.tile(q, (sides, 1))])
    for end, half in enumerate((at_p, at_q or at_p)):
        piece[end][:, [u, v]] += ring * np.asarray(half)
    return piece


def turned(piece, degrees):
    """A piece turned about the z axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return piece @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def wood(rng):
    """A colour for frames and legs: woods, black, white, grey metal."""
    base = np.array([(96, 58, 32), (140, 88, 48), (186, 132, 82), (214, 178, 128), (46, 40, 40), (232, 230, 224),
                     (150, 154, 160), (112, 40, 30)])[rng.integers(8)]
    return np.clip(base * rng.uniform(0.85, 1.1) + rng.normal(0, 5, 3), 20, 240)


def colour(hue, saturation, value):
    """Hue, saturation and value, each 0 to 1 -> RGB, 0 to 255."""
    sector = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return 255 * value * (1 - saturation * (1 - np.clip(sector, 0, 1)))


def make_chair(rng):
    """A random chair -> [(piece, colour)]. No two pieces share inner points, so that they can be sorted."""
    frame = wood(rng)
    soft = colour(rng.uniform(), rng.uniform(0.25, 0.9), rng.uniform(0.45, 0.95))
    if rng.random() < 0.3:
        soft = frame.copy()
    parts = []

    def add(piece, colour=frame):
        parts.append((piece, colour))

    # Half width, half depth, underside, thickness of the seat; height and lean of the back.
    w, d, z, t = rng.uniform(0.21, 0.28), rng.uniform(0.20, 0.27), rng.uniform(0.34, 0.46), rng.uniform(0.03, 0.07)
    height, lean = rng.uniform(0.36, 0.62), rng.uniform(0.02, 0.14)
    leg = rng.uniform(0.018, 0.032)  # nothing is thinner than a pixel of a 64 x 64 frame
    back = rng.choice(["panel", "slats", "spindles", "padded", "tub"])
    legs = rng.choice(["straight", "splayed", "pedestal", "sled", "star"])
    arms = rng.choice(["none", "none", "posts", "panels"])
    top = z + t
    round_seat = back in ("spindles", "tub") and rng.random() < 0.5

    # Legs, from the floor to the underside of the seat.
    x, y = w - leg - 0.01, d - leg - 0.01
    inner = 0.68 if round_seat else 0.8 if legs == "splayed" else 1.0
    if legs in ("straight", "splayed"):
        out, sides = (rng.uniform(0.03, 0.09), 8) if legs == "splayed" else (0.0, 4)
        for sx in (-1, 1):
            for sy in (-1, 1):
                foot = leg * (0.6 if legs == "splayed" else 1.0)
                add(beam((sx * (x * inner + out), sy * (y * inner + out), 0), (sx * x * inner, sy * y * inner, z),
                         (foot, foot), (leg, leg), sides))
        if rng.random() < 0.6:  # stretchers between the legs, at the height h
            h, bar = rng.uniform(0.25, 0.45), 0.6 * leg
            px, py = (side * inner + out * (1 - h) for side in (x, y))
            for s in (-1, 1):
                add(beam((s * px, -py + leg, h * z), (s * px, py - leg, h * z), (bar, bar)))
                if legs == "straight":
                    add(beam((-px + leg, s * py, 0.8 * h * z), (px - leg, s * py, 0.8 * h * z), (bar, bar)))
    elif legs == "pedestal":
        foot, column = rng.uniform(0.8, 1.05) * w, rng.uniform(0.025, 0.05)
        add(beam((0, 0, 0), (0, 0, 0.03), (foot, foot), (0.9 * foot, 0.9 * foot), 16))
        add(beam((0, 0, 0.03), (0, 0, z), (1.6 * column, 1.6 * column), (column, column), 10))
    elif legs == "sled":
        x, y = x * inner, y * inner
        for s in (-1, 1):
            add(beam((s * x, -y - leg, leg), (s * x, y + leg, leg), (leg, leg)))
            add(beam((s * x, y, 2 * leg), (s * x, y, z), (leg, leg)))
            add(beam((s * x, -y, 2 * leg), (s * x, -y, z), (leg, leg)))
    else:
        column, arm = rng.uniform(0.025, 0.04), rng.uniform(0.85, 1.05) * w
        add(beam((0, 0, 0.09), (0, 0, z), (column, column), sides=10))
        points = int(rng.integers(4, 6))
        for k in range(points):
            ray = beam((1.3 * column, 0, 0.07), (arm, 0, 0.05), (0.022, 0.022), (0.016, 0.014))
            wheel = beam((arm - 0.02, 0, 0), (arm - 0.02, 0, 0.033), (0.02, 0.02), sides=8)
            add(turned(ray, 360 * k / points + 45))
            add(turned(wheel, 360 * k / points + 45))
        add(beam((0, 0, 0.04), (0, 0, 0.09), (1.2 * column, 1.2 * column), sides=10))

    # Seat, with a cushion on some.
    add(beam((0, 0, z), (0, 0, top), (w, d), sides=16 if round_seat else 4), soft if rng.random() < 0.6 else frame)
    post = rng.uniform(0.018, 0.026)
    if back != "tub" and rng.random() < 0.5:
        u, v = (w - 0.06, d - 0.06 - post) if round_seat else (w - 0.03, d - 0.03 - post)
        add(beam((0, post, top), (0, post, top + 0.04), (u, v), (u - 0.02, v - 0.02), 16 if round_seat else 4), soft)

    # Back: everything stands on the rear edge of the seat and leans away by `lean` at the top.
    rear = -d + post + 0.005
    inset = 0.55 if round_seat else 1.0
    px = (w - post) * inset

    def at(x, h, shift=0.0):  # a point of the leaning back, at the share h of its height
        return np.array([x, rear - lean * h + shift, top + height * h])

    if back == "panel":
        crown = rng.uniform(0.7, 1.0)
        add(beam(at(0, 0), at(0, 1), (w, post), (crown * w, post)), soft)
        if rng.random() < 0.4 and arms == "none":  # wings
            for s in (-1, 1):
                low, high = s * (w * (1 + crown) / 2 - 0.012), s * (w * crown - 0.012)
                add(beam(at(low, 0.45, post + 0.07), at(high, 1, post + 0.05), (0.012, 0.07), (0.012, 0.05)), soft)
    elif back in ("slats", "padded", "spindles"):
        for s in (-1, 1):
            add(beam(at(s * px, 0), at(s * px, 1), (post, post)))
        if back == "slats":
            count = int(rng.integers(2, 4))
            for k in range(count):
                h = 0.94 - k * 0.72 / count
                half = 0.5 * rng.uniform(0.5, 0.6) * 0.72 / count * height
                add(beam(at(-px + post, h), at(px - post, h), (0.009, half)), soft if rng.random() < 0.5 else frame)
        elif back == "padded":
            low = rng.uniform(0.15, 0.4)
            add(beam(at(0, low), at(0, 0.97), (px - post, 0.018)), soft)
        else:
            add(beam(at(-px - post, 1) + (0, 0, 0.02), at(px + post, 1) + (0, 0, 0.02), (1.3 * post, 0.02)))
            count = int(rng.integers(2, 5))
            for x in np.linspace(-px, px, count + 2)[1:-1]:
                add(beam(at(x, 0), at(x, 1), (0.013, 0.013), sides=6))
    else:  # a shell of wedges around the seat, highest in the middle, opening with the height
        spread, high, flare = np.radians(rng.uniform(100, 125)), rng.uniform(0.5, 0.75) * height, rng.uniform(0.0, 0.7)
        bounds = np.linspace(-spread, spread, 10)
        for ends in zip(bounds[:-1], bounds[1:]):
            shell = np.array([(r * w * np.sin(a), -r * d * np.cos(a), high * (1 - 0.5 * (a / spread) ** 2))
                              for r, a in ((0.88, ends[0]), (0.88, ends[1]), (0.99, ends[1]), (0.99, ends[0]))])
            opened = shell[:, :2] * (1 + flare * shell[:, 2:])
            add(np.stack([shell * (1, 1, 0), np.concatenate([opened, shell[:, 2:]], 1)]) + (0, 0, top), soft)

    # Arms.
    if arms != "none" and back != "tub" and not round_seat:
        h, front = rng.uniform(0.17, 0.26), d - 0.04
        if arms == "posts":
            for x in (0.02 - w, w - 0.02):
                add(beam((x, front - 0.02, top), (x, front - 0.02, top + h), (0.018, 0.018)))
                add(beam((x, rear + post, top + h + 0.014), (x, front + 0.01, top + h + 0.014), (0.014, 0.026)))
        else:
            thick, low = rng.uniform(0.02, 0.04), rng.uniform(0.3, 0.9)
            for s in (-1, 1):
                add(beam((s * (w + thick), 0, z * low), (s * (w + thick), 0, top + h), (thick, d)), soft)
    return parts


def faces_of(piece):
    """The faces of a piece: lists of corner indices into its 2n corners, outward unit normals [F, 3], offsets [F]."""
    n = piece.shape[1]
    faces = [list(range(n)), list(range(n, 2 * n))] + [[k, (k + 1) % n, n + (k + 1) % n, n + k] for k in range(n)]
    corners = piece.reshape(-1, 3)
    a, b, c = (corners[[face[i] for face in faces]] for i in range(3))
    u, v = b - a, c - b
    normals = u[:, [1, 2, 0]] * v[:, [2, 0, 1]] - u[:, [2, 0, 1]] * v[:, [1, 2, 0]]
    normals /= np.sqrt((normals**2).sum(1, keepdims=True))
    normals *= np.where(((a - corners.mean(0)) * normals).sum(1, keepdims=True) < 0, -1, 1)
    return faces, normals, (a * normals).sum(1)


def paint_order(pieces, surfaces, cameras):
    """Which piece hides which: bool [K, P, P], [k, a, b] true where a must be painted before b, as seen from camera k.

    Two convex pieces are always separated by a plane; here by a face of either, the one with the widest gap. What lies
    on the camera's side of that plane can hide the other piece and is never hidden by it."""
    normals = np.concatenate([normal for _, normal, _ in surfaces])
    offsets = np.concatenate([offset for _, _, offset in surfaces])
    last = np.cumsum([len(offset) for _, _, offset in surfaces])
    corners = np.concatenate([piece.reshape(-1, 3) for piece in pieces])
    starts = np.cumsum([0] + [2 * piece.shape[1] for piece in pieces])[:-1]
    gaps = np.minimum.reduceat(corners @ normals.T - offsets, starts)  # [P, F]: how far piece p stays outside face f
    outside = cameras @ normals.T > offsets  # [K, F]
    count = len(pieces)
    gap, out = np.empty((count, count)), np.empty((len(cameras), count, count), bool)
    for a in range(count):
        first = last[a] - len(surfaces[a][2])
        best = first + gaps[:, first : last[a]].argmax(1)  # for every other piece, the face of a it is farthest from
        gap[a], out[:, a] = gaps[np.arange(count), best], outside[:, best]
    return np.where(gap >= gap.T, out, ~out.transpose(0, 2, 1)) & ~np.eye(count, dtype=bool)


def in_order(before, farthest):
    """Indices of pieces, hidden ones first: always the farthest for which nothing is left to paint first."""
    waiting, order = before.sum(0), []
    while farthest:
        pick = next((piece for piece in farthest if not waiting[piece]), farthest[0])  # the farthest, too, of a ring
        farthest.remove(pick)
        waiting -= before[pick]
        order.append(pick)
    return order


def render_chair(parts, frames, size, fill):
    """Pieces -> uint8 [frames, size, size, 3], one azimuth a frame. fill: share of the frame's height that the chair
    spans; the camera's zoom is the same for all of its frames."""
    pieces, colours = zip(*parts)
    surfaces = [faces_of(piece) for piece in pieces]
    corners = np.concatenate([piece.reshape(-1, 3) for piece in pieces])
    begin = np.cumsum([0] + [2 * piece.shape[1] for piece in pieces])
    middle = (corners.min(0) + corners.max(0)) / 2
    distance = 5 * np.linalg.norm(corners - middle, axis=1).max()
    azimuth, elevation = np.arange(AZIMUTHS) * 2 * np.pi / AZIMUTHS, np.radians(20)
    ahead, side, zero = np.cos(azimuth), np.sin(azimuth), np.zeros(AZIMUTHS)
    towards = np.stack([side * np.cos(elevation), ahead * np.cos(elevation), zero + np.sin(elevation)], 1)  # [K, 3]
    right = np.stack([-ahead, side, zero], 1)
    up = np.cross(towards, right)
    cameras = middle + distance * towards

    seen = (corners - middle) @ np.stack([right, -up, towards], 2)  # [K, V, 3]: right, down, nearer
    screen = seen[..., :2] / (distance - seen[..., 2:])
    low, high = screen.min((0, 1)), screen.max((0, 1))
    big = size * SUPERSAMPLE
    screen = (screen - (low + high) / 2) * big * min(fill / (high[1] - low[1]), 0.92 / (high[0] - low[0])) + big / 2
    lowest, highest = (extreme.reduceat(screen, begin[:-1], 1) for extreme in (np.minimum, np.maximum))  # [K, P, 2]
    meet = (lowest[:, :, None] < highest[:, None]).all(3)
    before = paint_order(pieces, surfaces, cameras) & meet & meet.transpose(0, 2, 1)
    farthest = np.argsort(np.add.reduceat(seen[..., 2], begin[:-1], 1) / np.diff(begin), 1)

    light = 0.45 * right + 0.75 * up + 0.6 * towards  # over the camera's left shoulder: it turns with the camera
    light /= np.linalg.norm(light, axis=1, keepdims=True)
    paint = []  # for each piece the colour of its faces, [K, F, 3], and whether they face the camera, [K, F]
    for (_, normals, offsets), colour in zip(surfaces, colours):
        shade = 0.42 + 0.5 * np.maximum(light @ normals.T, 0) + 0.12 * normals[:, 2]
        paint.append((np.clip(shade[..., None] * colour, 0, 245).astype(int), cameras @ normals.T > offsets))

    video = np.empty((frames, size, size, 3), np.uint8)
    for t in range(frames):
        k = t % AZIMUTHS
        picture = Image.new("RGB", (big, big), "white")
        draw = ImageDraw.Draw(picture)
        points = list(map(tuple, screen[k].tolist()))
        for piece in in_order(before[k], farthest[k].tolist()):
            tints, facing = paint[piece]
            for f in np.flatnonzero(facing[k]):
                draw.polygon([points[begin[piece] + c] for c in surfaces[piece][0][f]], tuple(tints[k, f].tolist()))
        video[t] = np.asarray(picture.reduce(SUPERSAMPLE))
    return video


def draw_chairs(clips=64, frames=16, size=64, seed=0, progress=None):
    """Drawn chairs -> Clips of uint8 [clips, frames, size, size, 3]: one identity a clip, one rotation for all.

    Clip j depends on seed and j alone. progress(done, total) is called after every clip."""
    videos = np.empty((clips, frames, size, size, 3), np.uint8)
    for index in range(clips):
        rng = np.random.default_rng([seed, index])
        videos[index] = render_chair(make_chair(rng), frames, size, fill=rng.uniform(0.76, 0.84))
        if progress:
            progress(index + 1, clips)
    names = [f"chair{index:03d}" for index in range(clips)]
    return Clips(videos, np.arange(clips), np.zeros(clips, np.int64), names, ["rotation"], names,
                 f"drawn chairs (seed {seed}), a stand-in: python data_prep.py chair prepares the real ones")


# ---- Drawn people: what `--dataset weizmann` trains on until the real films are there -------------------------------
# 9 persons x 10 actions. A person is a build, clothes and a still background; an action is a motion, in the same phase
# for everybody, so that a clip is one row of the static dictionary and one of the transient dictionary.

PERSONS = ("daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar")
ACTIONS = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
KEPT = 28  # frames of a drawn clip, the length of the shortest real one


def pose(action, t):
    """The body at frame t. Angles are degrees from straight down: forwards in a side view, outwards in a front view.

    -> dict: view, x (share of the frame's width), facing (1 right, -1 left), lift off the ground and squash of the legs
    (shares of the height), lean of the trunk, arms and legs: two (upper, bend of the joint), far or left first."""

    def crossing(share):  # from left to right and back again
        there = share % 2
        return dict(x=0.13 + 0.74 * min(there, 2 - there), facing=1 if there < 1 else -1)

    def wave(period, shift=0.0):
        return np.sin(2 * np.pi * (t / period + shift))

    body = dict(view="front", x=0.5, facing=1, lift=0.0, squash=0.0, lean=0.0, arms=((8, 6),) * 2, legs=((4, 0),) * 2)
    if action == "walk":
        legs = [(28 * wave(12, s), -8 - 42 * max(0, wave(12, s + 0.22))) for s in (0, 0.5)]
        arms = [(-26 * wave(12, s), 14) for s in (0, 0.5)]
        body.update(crossing(t / 15), view="side", legs=legs, arms=arms, lean=3)
    elif action == "run":
        legs = [(12 + 48 * wave(8, s), -20 - 80 * max(0, wave(8, s + 0.25))) for s in (0, 0.5)]
        arms = [(-50 * wave(8, s) - 5, 85) for s in (0, 0.5)]
        body.update(crossing(t / 10), view="side", legs=legs, arms=arms, lean=17, lift=0.05 * abs(wave(8, 0.1)))
    elif action == "skip":  # hops on one leg, the other knee held high
        hop = abs(wave(12))
        legs = [(70 + 12 * hop, -95), (8 - 16 * wave(6), -30 * (1 - hop))]
        arms = [(-45 + 20 * hop, 25), (55 - 10 * hop, 40)]
        body.update(crossing(t / 14), view="side", legs=legs, arms=arms, lean=5, lift=0.13 * hop)
    elif action == "jump":  # both legs together: crouch, fly, land
        phase = t / 8 % 1
        fly, crouch = max(0, np.sin(2 * np.pi * (phase - 0.3))), max(0, np.sin(2 * np.pi * (phase + 0.1))) ** 2
        flown = t // 8 + np.clip((phase - 0.3) / 0.5, 0, 1)
        leg, arm = (62 * crouch + 35 * fly, -105 * crouch - 55 * fly), (-65 * crouch + 110 * fly, 15)
        body.update(crossing(flown / 2), view="side", lean=38 * crouch + 6, lift=0.2 * fly)
        body.update(legs=[leg] * 2, arms=[arm] * 2)
    elif action == "pjump":
        up = wave(8, -0.15)
        arm = (10 + 14 * max(0, up), 4)
        body.update(lift=0.2 * max(0, up), squash=0.26 * max(0, -up), arms=[arm] * 2, legs=[(3, 0)] * 2)
    elif action == "side":  # gallops sideways, facing us
        apart = 0.5 + 0.5 * wave(7)
        body.update(crossing(t / 15), facing=1, lift=0.06 * (1 - apart))
        body.update(legs=[(2 + 30 * apart, 0)] * 2, arms=[(14 + 14 * apart, 8)] * 2)
    elif action == "jack":
        apart = 0.5 - 0.5 * wave(12, 0.25)
        body.update(arms=[(10 + 150 * apart, 6)] * 2, legs=[(2 + 27 * apart, 0)] * 2, lift=0.08 * abs(wave(12)))
    elif action == "bend":
        down = (0.5 - 0.5 * wave(16, 0.25)) ** 0.8
        legs = [(-6 * down, -2), (2 - 4 * down, -2)]
        body.update(view="side", lean=126 * down, arms=[(4 + 14 * down, 4)] * 2, legs=legs)
    elif action == "wave1":
        body.update(arms=[(8, 6), (128 + 14 * wave(8), 25 + 42 * wave(8))])
    elif action == "wave2":
        body.update(arms=[(118 + 34 * wave(8), 22 + 30 * wave(8))] * 2)
    return body


def shirt_hue(index):
    return (index / len(PERSONS) + 0.55) % 1


def make_person(rng, index):
    """Build, clothes and colours of person `index`: lengths are shares of the frame's height."""
    hue = shirt_hue(index) + rng.uniform(0, 0.05)
    skin = np.array([(238, 196, 164), (214, 160, 120), (172, 116, 80), (122, 80, 56)][rng.integers(4)], float)
    person = dict(skin=skin, height=0.54 + 0.015 * (index * 4 % 9), stout=rng.uniform(0.9, 1.3))
    person["legs"] = rng.uniform(0.47, 0.53)
    person["hair"] = np.array([(40, 30, 26), (96, 60, 34), (190, 150, 90), (130, 128, 126)][rng.integers(4)], float)
    person["shirt"] = colour(hue, 0.75, rng.uniform(0.55, 0.95))
    person["trousers"] = colour(hue + rng.uniform(0.3, 0.7), 0.45, rng.uniform(0.2, 0.5))
    person["shoes"] = np.array([(36, 34, 34), (226, 222, 214)][rng.integers(2)], float)
    return dict(person, long_hair=index % 3 == 0, sleeves=index % 2 == 0, shorts=index % 4 == 1)


def make_background(rng, index, size):
    """A still wall over a still ground -> uint8 [size, size, 3]: bricks, slabs, planks, leaves, plaster or windows."""

    def noise(cells):  # smooth, zero mean
        small = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))[..., None]

    y, x = np.mgrid[0:size, 0:size] / size
    against = shirt_hue(index) + rng.uniform(0.35, 0.65)  # a contrast with the shirt
    base = colour(against, rng.uniform(0.1, 0.35), rng.uniform(0.6, 0.85))
    kind, n = index % 6, int(rng.integers(5, 9))
    row = np.floor(y * n * (2 if kind == 0 else 1))
    seam = np.zeros((size, size), bool)
    if kind in (0, 1):  # bricks and slabs: every course is shifted by half a stone
        across = x * n + 0.5 * (row % 2)
        seam = (y * n * (2 if kind == 0 else 1) % 1 < (0.2 if kind == 0 else 0.1)) | (across % 1 < 0.1)
        shade = rng.normal(0, 0.07, (40, 40))[row.astype(int), np.floor(across).astype(int)]
    elif kind == 2:  # planks
        seam, shade = x * n * 1.5 % 1 < 0.12, rng.normal(0, 0.08, 40)[np.floor(x * n * 1.5).astype(int)]
    elif kind == 3:  # leaves
        base, shade = colour(rng.uniform(0.22, 0.38), 0.5, 0.5), 0.16 * noise(28)[..., 0]
    elif kind == 4:  # plaster with stains
        shade = 0.1 * noise(5)[..., 0] + 0.03 * noise(32)[..., 0]
    else:  # a front with windows
        seam, shade = (x * n * 0.6 % 1 > 0.45) & (y * 4 % 1 > 0.35) & (y < 0.5), 0.04 * noise(16)[..., 0]
    wall = base * (1 + shade - 0.3 * seam)[..., None]
    horizon = rng.uniform(0.72, 0.8)
    ground = colour(rng.uniform(), rng.uniform(0.05, 0.3), rng.uniform(0.4, 0.65))
    ground = ground * (1 + 0.05 * noise(24) + 0.06 * noise(6))
    picture = np.where((y > horizon)[..., None], ground, wall)
    picture[(y > horizon - 0.015) & (y <= horizon + 0.01)] *= 0.7  # the kerb
    return np.clip(picture + 2 * noise(size), 0, 255).astype(np.uint8)


def draw_person(person, background, body):
    """One frame, uint8 [size, size, 3], over a supersampled PIL background. Limbs are round bars; the lowest foot is on
    the ground, unless the body is lifted off it."""
    big = background.width
    h, stout, front = person["height"] * big, person["stout"], body["view"] == "front"
    leg, trunk = person["legs"] / 2 * h * (1 - body["squash"]), (0.82 - person["legs"]) * h
    arm, head = 0.165 * h, 0.078 * h
    picture = background.copy()
    draw = ImageDraw.Draw(picture)

    def bar(a, b, width, tint):
        tint, r = tuple(np.clip(tint, 0, 255).astype(int).tolist()), width / 2
        draw.line([tuple(a), tuple(b)], tint, int(round(width)))
        for x, y in (a, b):
            draw.ellipse((x - r, y - r, x + r, y + r), tint)

    def step(point, angle, length, sign):  # `angle` from straight down, towards sign
        return point + length * np.array([sign * np.sin(np.radians(angle)), np.cos(np.radians(angle))])

    signs = (-1, 1) if front else (body["facing"],) * 2
    hips = [np.array([s * 0.045 * h * stout if front else 0.0, 0.0]) for s in (-1, 1)]
    joints = []
    for hip, (upper, bend), sign in zip(hips, body["legs"], signs):
        knee = step(hip, upper, leg, sign)
        joints.append((hip, knee, step(knee, upper + bend, leg, sign)))
    foot = 0.035 * h
    ground = 0.9 * big
    origin = np.array([body["x"] * big, ground - foot - max(ankle[1] for *_, ankle in joints) - body["lift"] * h])
    reach = (0.16 + 0.1 * abs(body["legs"][0][0]) / 60) * h * (1 - 0.8 * body["lift"])
    shadow = Image.new("L", (int(2 * reach), int(0.05 * h)), 0)
    ImageDraw.Draw(shadow).ellipse((0, 0, shadow.width - 1, shadow.height - 1), 90)
    picture.paste((20, 20, 24), (int(origin[0] - reach), int(ground - 0.02 * h)), shadow)

    neck = step(origin, 180 - body["lean"], trunk, body["facing"])
    chest = step(origin, 180 - body["lean"], trunk - 0.035 * h, body["facing"])
    top = step(neck, 180 - body["lean"] * 0.9, 0.105 * h, body["facing"])

    def draw_leg(side, dim):
        hip, knee, ankle = (origin + joint for joint in joints[side])
        toe = ankle + np.array([(signs[side] * 0.02 if front else body["facing"] * 0.055) * h, 0.01 * h])
        bar(ankle, toe, 0.06 * h, person["shoes"] * dim)
        bar(knee, ankle, 0.066 * h * stout**0.5, (person["skin"] if person["shorts"] else person["trousers"]) * dim)
        bar(hip, knee, 0.088 * h * stout**0.5, person["trousers"] * dim)

    def draw_arm(side, dim):
        shoulder = chest + (np.array([signs[side] * 0.085 * h * stout, 0.0]) if front else 0)
        upper, bend = body["arms"][side]
        elbow = step(shoulder, upper, arm, signs[side])
        hand = step(elbow, upper + bend, arm, signs[side])
        bar(elbow, hand, 0.05 * h, (person["shirt"] if person["sleeves"] else person["skin"]) * dim)
        bar(hand, hand, 0.062 * h, person["skin"] * dim)
        bar(shoulder, elbow, 0.058 * h * stout**0.5, person["shirt"] * dim)

    far = 0.85 if front else 0.66
    if not front:
        draw_arm(0, far)
    draw_leg(0, far if not front else 0.94)
    draw_leg(1, 1.0)
    if person["long_hair"]:
        behind = 0 if front else (-body["facing"] * 0.03 * h, 0.0)
        bar(top + behind, top + behind + (neck - top) * 0.8, 0.17 * h if front else 0.1 * h, person["hair"])
    if front:
        width = 0.085 * h * stout
        for side in (-1, 0, 1):
            waist, shoulder = origin + (side * 0.5 * width, -0.01 * h), chest + (side * 0.75 * width, 0.015 * h)
            bar(waist, shoulder, 0.1 * h, person["shirt"])
    else:
        bar(origin, chest + (0, 0.01 * h), 0.125 * h * stout, person["shirt"])
    bar(neck, top, 0.055 * h, person["skin"] * 0.9)
    bar(top, top, 2 * head, person["skin"])
    crown = step(top, 180 - body["lean"] * 0.9, 0.03 * h, body["facing"])
    crown -= (0 if front else body["facing"] * 0.02 * h, 0)
    bar(crown, crown, 1.75 * head, person["hair"])
    face = top + (0 if front else body["facing"] * 0.028 * h, 0.018 * h)
    bar(face, face, 1.35 * head, person["skin"])
    if front:
        draw_arm(0, 0.9)
    draw_arm(1, 0.9)
    return np.asarray(picture.reduce(SUPERSAMPLE))


def draw_people(frames=16, size=64, seed=0, progress=None):
    """Drawn people -> Clips of uint8 [90, frames, size, size, 3], 9 persons x 10 actions; `full` keeps at least 28
    frames of each. progress(done, total) is called after every clip."""
    clips, names = [], []
    for index, who in enumerate(PERSONS):
        person = make_person(np.random.default_rng([seed, index]), index)
        background = Image.fromarray(make_background(np.random.default_rng([seed, index, 1]), index, size))
        background = background.resize((size * SUPERSAMPLE,) * 2, Image.Resampling.BICUBIC)
        for action in ACTIONS:
            clips.append(np.stack([draw_person(person, background, pose(action, t)) for t in range(max(frames, KEPT))]))
            names.append(f"{who}_{action}")
            if progress:
                progress(len(clips), len(PERSONS) * len(ACTIONS))
    static, transient = zip(*(name.split("_") for name in names))
    return together(clips, frames, names, static, transient,
                    f"drawn people (seed {seed}), a stand-in: python data_prep.py weizmann prepares the real films")


# ---- Downloads: one stream over broken connections ------------------------------------------------------------------


class Broken(DataError):
    """The connection failed for good: what was read so far is kept for the next call."""


class SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https down to http."""

    def redirect_request(self, request, file, code, message, headers, url):
        scheme, before = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(request.full_url).scheme
        if scheme not in ("http", "https") or (before, scheme) == ("https", "http"):
            raise DataError(f"{shown(request.full_url)}: redirects to {shown(url)}, which is not followed")
        return super().redirect_request(request, file, code, message, headers, url)


class Remote(io.RawIOBase):
    """The bytes of an http or https address from `position` on, as one stream.

    A broken connection is taken up again where it broke (HTTP range; from the start, discarding, where the server has
    none) after 0.5, 1, 2, ... seconds; `retries` times in a row, counted anew after every MiB that arrives. The length
    is checked. validator: what the server calls this version of the file (ETag or date); another raises DataError."""

    def __init__(self, url, timeout, retries, position=0, validator=None, progress=None, limit=MAX_ARCHIVE):
        self.url, self.timeout, self.retries, self.position, self.limit = url, timeout, retries, position, limit
        self.validator, self.progress, self.total, self.response = validator, progress, None, None
        self.hash = hashlib.sha256() if position == 0 else None
        self.opener = urllib.request.OpenerDirector()  # not build_opener: no file:, ftp: or data: addresses
        request = urllib.request
        for handler in (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, SameSchemes,
                        request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor):
            self.opener.add_handler(handler())
        self.failures, self.good = 0, position
        self.attempt(lambda: None)

    def connect(self):
        headers = {"User-Agent": "nav-data-prep", "Accept-Encoding": "identity"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
        try:
            response = self.opener.open(urllib.request.Request(self.url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code in (408, 429):
                raise OSError(f"the server answers {error.code}") from None
            raise DataError(f"{shown(self.url)}: the server answers {error.code} {shown(error.reason)}: "
                            "check the address, or start again with --force") from None
        total = response.headers.get("Content-Range", "").rpartition("/")[2] if response.status == 206 else \
            response.headers.get("Content-Length", "")
        total = int(total) if total.isdigit() else None
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if self.validator not in (None, validator) or self.total not in (None, total):
            raise DataError(f"{shown(self.url)}: another file than when its download began: start again with --force")
        self.validator, self.total, self.response, skip = validator, total, response, 0
        if self.position and response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {self.position}-"):
                raise OSError("the server sends another part than was asked for")
        else:
            skip = self.position
        while skip:
            piece = response.read1(min(skip, 1 << 20))
            if not piece:
                raise OSError("the connection broke")
            skip -= len(piece)

    def attempt(self, action):
        """Connect if need be, then do `action`; try again after failures."""
        while True:
            try:
                if self.response is None:
                    self.connect()
                return action()
            except (OSError, http.client.HTTPException) as error:
                self.close_response()
                self.failures += 1
                if self.failures > self.retries:
                    late = isinstance(error, TimeoutError) or "timed out" in str(error)
                    why = f"no answer for {self.timeout:g} s" if late else shown(error) or type(error).__name__
                    raise Broken(f"{shown(self.url)}: {why}, at byte {self.position} of {self.total or '?'}: check the "
                                 "connection and run the same command again, it goes on from what it has") from None
                time.sleep(min(BACKOFF * 2 ** (self.failures - 1), 30))

    def close_response(self):
        if self.response is not None:
            self.response.close()
        self.response = None

    def close(self):
        self.close_response()
        super().close()

    def readable(self):
        return True

    def readinto(self, buffer):
        def piece():
            data = self.response.read1(len(buffer))
            if not data and self.total is not None and self.position < self.total:
                raise OSError("the connection broke")
            return data

        data = self.attempt(piece) if self.total is None or self.position < self.total else b""
        buffer[: len(data)] = data
        self.position += len(data)
        if self.position > self.limit:
            raise DataError(f"{shown(self.url)}: more than {self.limit} bytes: not the file that is expected there")
        if self.position - self.good >= 1 << 20:
            self.failures, self.good = 0, self.position
        if self.hash:
            self.hash.update(data)
        if self.progress:
            self.progress(self.position, self.total)
        return len(data)


def is_url(source):
    """Whether `source` is an address. Raises DataError for one that is neither http nor https."""
    if "://" not in str(source):
        return False
    try:
        parts = urllib.parse.urlsplit(source)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        whole = whole and re.fullmatch("[!-~]+", source)
    except ValueError:  # a port or a bracket that makes no sense
        whole = False
    if not whole:
        raise DataError(f"--source {shown(source)}: only whole http and https addresses are read, or a path")
    return True


def download(url, path, options):
    """Fetch `url` whole into `path`, taking up path.part from an earlier call. Raises DataError, OSError."""
    if path.exists() and not options.force:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part, label = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    known = {}
    if part.exists() and not options.force:
        known = read_note(label)
        known = known if known.get("url") == url else {}
    begin = part.stat().st_size if known else 0
    progress = Progress(path.name, "MB", 1e6)
    remote = Remote(url, options.timeout, options.retries, begin, known.get("validator"), progress)
    write_beside(label, lambda temporary: temporary.write_text(json.dumps(dict(url=url, validator=remote.validator))))
    with remote, open(part, "ab" if begin else "wb") as file:
        while data := remote.read(1 << 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    label.unlink()


def read_note(path):
    """A small JSON file of ours as a dictionary; empty where there is none or it is damaged."""
    try:
        note = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def check_hash(digest, expected, where):
    """Print a SHA-256; raise DataError where another was expected."""
    print(f"SHA-256 {digest}  {where}")
    if expected and digest != expected.lower():
        raise DataError(f"{where}: SHA-256 {digest}, {expected.lower()} expected: fetch it again or check --sha256")


# ---- Archives: read as streams, never unpacked ----------------------------------------------------------------------
# Members come as (name, read, offset): read() gives the bytes, at most MAX_FILE of them; offset is where a tar can be
# taken up again. Nothing is ever written under a member's name and no link is followed, so no name can lead anywhere.


def note(skipped, why, name):
    """Count something that is left out. skipped: {why: [count, first names]}."""
    if why not in skipped and len(skipped) >= 20:
        why = "other reasons"
    entry = skipped.setdefault(why, [0, []])
    entry[0] += 1
    entry[1] += [shown(name)] * (len(entry[1]) < 5)


def report(skipped):
    """Say what was left out: how many, why, and the first names."""
    for why, (count, names) in skipped.items():
        print(f"skipped {count}: {why}: {', '.join(names)}{', ...' if count > len(names) else ''}")


def reason(error, where):
    """A DataError's text without the name it begins with, so that equal troubles are counted together."""
    return str(error).removeprefix(f"{where}: ")


def unsafe(name):
    return not 0 < len(name) <= 300 or name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable()


def tar_members(stream, where, skipped, start=0, compressed=None):
    """Members of an uncompressed tar stream that begins at the header at `start`. compressed(): bytes that went into
    the stream so far, where it comes out of a decompressor. Raises DataError where the archive is damaged or a bomb."""
    position = start

    def take(count):
        nonlocal position
        while count:
            try:
                piece = stream.read(min(count, 1 << 20))
            except (OSError, EOFError, zlib.error) as error:  # the decompressors' words for damaged bytes
                raise DataError(f"{where}: damaged after byte {position} ({shown(error)}): fetch it again") from None
            if not piece:
                raise DataError(f"{where}: ends inside a member at byte {position}: truncated? fetch it again")
            position += len(piece)
            count -= len(piece)
            if compressed and position > 1 << 26 and position > 200 * compressed():
                raise DataError(f"{where}: unpacks to over 200 times its size: a zip bomb, not a set of clips")
            yield piece

    def number(field):  # octal text, or binary with the high bit set
        if field[0] & 0x80:
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return int(field.strip(b" \0") or b"0", 8)

    longer = size_beyond = None
    while True:
        offset = position
        header = b"".join(take(512))
        if not any(header):
            return
        try:
            if number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
                raise ValueError
            size = number(header[124:136])
        except ValueError:
            raise DataError(f"{where}: no tar header at byte {offset}: damaged, or not a tar") from None
        kind, prefix = header[156:157], header[345:500] if header[257:265] == b"ustar\x0000" else b""  # GNU's has none
        name = b"/".join(part.split(b"\0")[0] for part in (prefix, header[:100]) if part[:1] != b"\0" and part)
        name, size = longer or name, size if size_beyond is None else size_beyond
        name = name.decode("utf-8", "replace")
        if not 0 <= size <= MAX_MEMBER:
            raise DataError(f"{where}: member {shown(name)} declares {size} bytes, at most {MAX_MEMBER} expected")
        padding = -size % 512
        if kind in (b"L", b"x", b"K", b"g"):  # L and x: the next member's long name, GNU's and the POSIX way
            if size > 1 << 16:
                raise DataError(f"{where}: a member's name of {size} bytes")
            text = b"".join(take(size + padding))[:size]
            if kind == b"L":
                longer = text.rstrip(b"\0")
            elif kind == b"x":
                fields = dict(line.partition(b" ")[2].partition(b"=")[::2] for line in text.split(b"\n"))
                longer = fields.get(b"path", longer)
                size_beyond = int(fields[b"size"]) if fields.get(b"size", b"").isdigit() else None
            continue
        longer = size_beyond = None
        if kind not in (b"0", b"\0", b"7"):
            if kind != b"5":
                note(skipped, "a link, a device or another special member, which is not followed", name)
            continue
        left = size

        def read():
            nonlocal left
            if size > MAX_FILE:
                raise DataError(f"{shown(name)}: {size} bytes, at most {MAX_FILE} expected")
            left = 0
            return b"".join(take(size))

        if unsafe(name):
            note(skipped, "an unsafe name", name)
        else:
            yield name, read, offset
        for _ in take(left + padding):
            pass


def zip_members(file, where, skipped):
    """Members of a zip. Raises DataError where its directory is damaged."""
    with open_zip(file, where) as archive:
        for info in archive.infolist():
            name = info.filename
            if unsafe(name):
                note(skipped, "an unsafe name", name)
            elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                note(skipped, "a link, a device or another special member, which is not followed", name)
            elif not info.is_dir():

                def read(info=info, name=name):
                    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise DataError(f"{shown(name)}: encrypted, or packed in another way than zip's usual two")
                    if info.file_size > MAX_FILE or info.file_size > 1040 * info.compress_size + 64:
                        sizes = f"{info.file_size} bytes in {info.compress_size}"
                        raise DataError(f"{shown(name)}: declares {sizes}: a zip bomb")
                    try:
                        with archive.open(info) as member:
                            return member.read(MAX_FILE)
                    except Exception as error:  # zlib and zipfile each raise their own on damaged bytes
                        raise DataError(f"{shown(name)}: cannot be unpacked ({shown(error)})") from None

                yield name, read, None


def folder_members(path, skipped):
    """The regular files of a folder, in order; links are not followed."""
    for folder, below, files in os.walk(path):
        below.sort()
        for name in below:
            if os.path.islink(os.path.join(folder, name)):
                note(skipped, "a link, a device or another special member, which is not followed", name)
        for name in sorted(files):
            full = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(full).st_mode):
                yield os.path.relpath(full, path).replace(os.sep, "/"), lambda full=full: read_file(full), None
            else:
                note(skipped, "a link, a device or another special member, which is not followed", name)


def stream_members(stream, where, skipped, consumed, start=0):
    """Members of a tar, tar.bz2 or tar.gz in a buffered stream; consumed(): bytes of the stream that were read."""
    magic = stream.peek(4)[:4] if not start else b""
    if magic[:3] == b"BZh":
        yield from tar_members(bz2.BZ2File(stream), where, skipped, compressed=consumed)
    elif magic[:2] == b"\x1f\x8b":
        yield from tar_members(gzip.GzipFile(fileobj=stream), where, skipped, compressed=consumed)
    else:
        yield from tar_members(stream, where, skipped, start)


def members(path, skipped, progress=None):
    """Members of a folder, a zip or a tar on this machine. Where an archive is damaged, what came before is used."""
    if os.path.isdir(path):
        yield from folder_members(path, skipped)
        return
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        found = zip_members(file, shown(path), skipped) if file.peek(4)[:4] == b"PK\3\4" else \
            stream_members(file, shown(path), skipped, file.tell)
        yield from survive(found, shown(path), skipped, lambda: progress and progress(file.tell(), size))


def survive(found, where, skipped, each=lambda: None):
    """Members up to the point where the archive is damaged, which is reported."""
    try:
        for member in found:
            each()
            yield member
    except Broken:
        raise
    except DataError as error:
        note(skipped, f"the rest of the archive ({reason(error, where)})", where)


# ---- The paper's three sets -----------------------------------------------------------------------------------------

CHAIR = "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar"
WEIZMANN = "http://www.wisdom.weizmann.ac.il/~vision/VideoAnalysis/Demos/SpaceTimeActions/DB/"
GOLF = "http://data.csail.mit.edu/videogan/golf.tar.bz2"
CHAIRS, GOLFS = 820, 500  # models and clips that the paper drew
MAX_RENDERS = 200  # of one model; the real ones have 62
RENDER = re.compile(r"(?:.*/)?([^/]+)/renders/image_(\d+)_p(\d+)_t\d+_r\d+\.png")
FILM = re.compile(r"(?:.*/)?([a-z]+)_(bend|jack|jump|pjump|run|side|skip|walk|wave1|wave2)([12]?)\.avi", re.IGNORECASE)


class Spool:
    """Clips read so far, in a folder beside the set, one file for each entry: what an interrupted run left is taken up,
    if it was made with the same settings, and memory holds one entry at a time."""

    def __init__(self, folder, settings, force):
        self.folder, self.names, self.offset = folder, [], 0
        self.settings = read_note(folder / "settings.json")
        try:
            if force or {**self.settings, "validator": None} != {**settings, "validator": None}:
                raise ValueError
            for path in self.paths():
                with np.load(path, allow_pickle=False) as record:
                    self.names.append(str(record["name"]))
                    self.offset = int(record["offset"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            shutil.rmtree(folder, ignore_errors=True)
            self.names, self.offset, self.settings = [], 0, settings

    def paths(self):
        return sorted(self.folder.glob("[0-9]*.npz"))

    def add(self, name, videos, kinds, offset):
        """videos uint8 [S, L, H, W, 3] of one entry, kinds: S texts, offset: where the archive is taken up after it."""
        if not self.names:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_beside(self.folder / "settings.json", lambda path: path.write_text(json.dumps(self.settings)))

        def write(temporary):
            with open(temporary, "wb") as file:
                np.savez(file, name=name, videos=videos, kinds=np.array(kinds), offset=offset)

        write_beside(self.folder / f"{len(self.names):06d}.npz", write)
        self.names.append(name)
        self.offset = offset

    def entries(self):
        """(name, videos, kinds) of every entry."""
        for name, path in zip(self.names, self.paths()):
            with np.load(path, allow_pickle=False) as record:
                yield name, record["videos"], record["kinds"].tolist()


def source_members(options, official, skipped, spool):
    """Members of what --source names, or of the official address; a streamed tar goes on where the spool ends."""
    source = options.source or official
    if is_url(source) and not options.keep:
        # A compressed archive cannot be entered in the middle: it is read again, but nothing is decoded twice.
        start = 0 if options.sha256 or not spool.settings["resumable"] else spool.offset
        remote = Remote(source, options.timeout, options.retries, start, spool.settings["validator"],
                        Progress("reading", "MB", 1e6), MAX_ARCHIVE)
        spool.settings["validator"] = remote.validator
        with remote, io.BufferedReader(remote, 1 << 20) as stream:
            found = stream_members(stream, shown(source), skipped, lambda: remote.position, start)
            yield from survive(found, shown(source), skipped)
            while stream.read(1 << 20):  # to the end: the length and the sum are of the whole
                pass
            if remote.hash:
                check_hash(remote.hash.hexdigest(), options.sha256, shown(source))
        return
    yield from members(local(options, source), skipped, Progress("reading", "MB", 1e6))


def local(options, source):
    """A path on this machine for --source, downloaded if it is an address. Checks --sha256."""
    path = Path(source)
    if is_url(source):
        name = shown(source.split("?")[0].rstrip("/").rpartition("/")[2])
        if not NAME.fullmatch(name):
            raise DataError(f"{shown(source)}: does not end with a file's name: give a downloaded file")
        # Two sources may share a name, hence the number.
        path = Path(options.out) / "downloads" / f"{zlib.crc32(source.encode()):08x}-{name}"
        download(source, path, options)
        options.fetched.append(path)
    elif not path.exists():
        raise DataError(f"--source {shown(source)}: does not exist: check the path")
    if path.is_file() and (options.sha256 or is_url(source)):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        check_hash(digest.hexdigest(), options.sha256, shown(path))
    elif options.sha256:
        raise DataError("--sha256 checks one archive; the source is a folder: leave it out")
    return path


def new_spool(options, **settings):
    source = options.source or ""
    if source and not is_url(source) and os.path.exists(source):
        settings["version"] = [os.path.getsize(source), os.stat(source).st_mtime_ns]
    settings.update(source=source, frames=options.frames, size=options.size, validator=None)
    return Spool(Path(options.out) / f".{options.command}.part", settings, options.force)


def chair(options, skipped):
    """'Seeing 3D Chairs' (paper section 4.1, appendix A) -> Clips.

    A model is rendered from 31 azimuths at each of two elevations. Its four sequences: at either elevation the turn
    that begins at the first view, and the one that begins half a turn later and runs over the end of the circle; the
    first 16 views of each. 820 models are drawn with the seed. The clips come sequence by sequence: the first 820 are
    every model at the lower elevation from the first view, 'identity x one rotation'; --clips cuts the list."""
    frames, size = options.frames, options.size
    spool = new_spool(options, resumable=not (options.source or CHAIR).split("?")[0].endswith(("bz2", "gz")))
    resumed = set(spool.names)
    seen = set(resumed)

    def finish_model(name, renders, offset):
        videos, kinds = [], []
        for elevation, views in sorted(renders.items())[:2]:
            ring = [views[number] for number in sorted(views)]
            for part, start in enumerate((0, (len(ring) + 1) // 2)):
                if len(ring) >= frames:
                    videos.append([ring[(start + t) % len(ring)] for t in range(frames)])
                    kinds.append(f"elevation {elevation}, {'first' if part == 0 else 'second'} half of the turn")
        if videos:
            spool.add(name, np.array(videos, np.uint8), kinds, offset or 0)  # only a tar has offsets
        else:
            note(skipped, f"a model with fewer than {frames} usable renders", name)

    current, renders = None, {}
    for name, read, offset in [] if spool.offset < 0 else source_members(options, CHAIR, skipped, spool):
        match = RENDER.fullmatch(name)
        if match is None:
            continue
        model, number, elevation = match[1], int(match[2][:9]), int(match[3][:9])
        if model != current:
            if renders:
                finish_model(current, renders, offset)
            current, renders = model, {}
            again = model in seen
            seen.add(model)
            if again and model not in resumed:
                note(skipped, "a model that comes twice", model)
        if again:
            continue
        views = renders.setdefault(elevation, {})
        try:
            if number in views or sum(map(len, renders.values())) >= MAX_RENDERS:
                raise DataError(f"{shown(name)}: one render too many in its model")
            views[number] = fit(next(pictures(read(), shown(name))), size, share=2 / 3)
        except Broken:
            raise
        except DataError as error:
            note(skipped, reason(error, shown(name)), name)
    if renders:
        finish_model(current, renders, -1)
    if not spool.names:
        return None
    order = sorted(spool.names)
    drawn = [order[index] for index in np.random.default_rng(options.seed).permutation(len(order))[:CHAIRS]]
    rank = {name: index for index, name in enumerate(drawn)}
    cells = sorted((kind, rank[name]) for name, _, kinds in spool.entries() if name in rank for kind in kinds)
    cells = cells[: options.clips]
    place = {cell: index for index, cell in enumerate(cells)}
    videos = np.empty((len(cells), frames, size, size, 3), np.uint8)
    for name, clips, kinds in spool.entries():
        for kind, clip in zip(kinds, clips):
            if (kind, rank.get(name)) in place:
                videos[place[kind, rank[name]]] = clip
    kinds, used = list(dict.fromkeys(kind for kind, _ in cells)), sorted({row for _, row in cells})
    rows = {row: index for index, row in enumerate(used)}
    return Clips(videos, np.array([rows[row] for _, row in cells], np.int64),
                 np.array([kinds.index(kind) for kind, _ in cells], np.int64), [drawn[row] for row in used], kinds,
                 [f"{drawn[row]} {kind}" for kind, row in cells], f"Seeing 3D Chairs, {options.source or CHAIR}")


def weizmann(options, skipped):
    """Weizmann's actions (paper section 4.1, appendix A) -> Clips: persons x actions, whole films kept in `full`.

    Of a person's two films of one action (lena's run, skip, walk) the first is taken."""
    source = options.source or WEIZMANN
    if is_url(source) and not re.search(r"\.(zip|tar|gz|bz2)(\?|$)", source):
        if options.sha256:
            raise DataError("--sha256 checks one archive, and these are ten: leave it out, or give one as --source")
        paths = [local(options, f"{source.rstrip('/')}/{action}.zip") for action in ACTIONS]
    else:
        paths = [local(options, source)]
    films = {}

    def read_film(name, read):
        match = FILM.fullmatch(name)
        if match is None:
            return
        key = match[1].lower(), match[2].lower()
        if match[3] == "2":
            note(skipped, "a person's second film of an action", name)
            return
        try:
            if key in films:
                raise DataError("two clips of one name")
            if len(films) >= MAX_FILMS:
                raise DataError(f"more than {MAX_FILMS} films")
            clip = np.stack([fit(Image.fromarray(frame), options.size, not options.no_crop)
                             for frame in read_avi(read(), shown(name))])
            if len(clip) < options.frames:
                raise DataError(f"fewer than {options.frames} frames")
            films[key] = clip
        except DataError as error:
            note(skipped, reason(error, shown(name)), name)

    progress = Progress("reading", "films")
    for path in paths:
        for name, read, _ in members(path, skipped):
            if path.is_dir() and name.lower().endswith(".zip"):
                for inner, read_inner, _ in members(path / name, skipped):
                    read_film(inner, read_inner)
            else:
                read_film(name, read)
            progress(len(films), 90)
    if not films:
        return None
    keys = sorted(films)[: options.clips]
    static, transient = zip(*keys)
    return together([films.pop(key) for key in keys], options.frames, [f"{s}_{t}" for s, t in keys], static, transient,
                    f"Weizmann actions, {source}{', not cropped' if options.no_crop else ''}")


def golf(options, skipped):
    """Golf scenes of 'Generating Videos with Scene Dynamics' (paper section 4.1) -> Clips.

    Reading stops when there are enough clips, so the draw is made on the way: the seed tosses for every strip, one in
    four is taken, and one from each folder (a video) where the list has as many folders as clips are wanted. What the
    toss passed over fills up an archive that is too small. A clip keeps the first frames of its strip."""
    wanted, frames = options.clips or GOLFS, options.frames
    source = options.source or GOLF
    if options.sha256 and is_url(source) and not options.keep:
        raise DataError("--sha256 needs --keep here: reading stops long before the archive's end")
    names, many = golf_list(options, source)
    spool = new_spool(options, seed=options.seed, clips=wanted, resumable=False)
    have, folders, spare, seen = set(spool.names), set(), {}, set()
    folders.update(name.rpartition("/")[0] for name in have)
    for name, read, _ in [] if len(have) >= wanted else source_members(options, GOLF, skipped, spool):
        if not name.lower().endswith((".jpg", ".jpeg", ".png")):
            continue
        name = strip_name(name)
        if name in seen or name in have:
            if name in seen:
                note(skipped, "two clips of one name", name)
            continue
        seen.add(name)
        if names is not None and zlib.crc32(name.encode()) not in names:
            note(skipped, "not in the list", name)
            continue
        toss = np.random.default_rng([options.seed, zlib.crc32(name.encode())]).random() < 0.25
        if many and name.rpartition("/")[0] in folders:
            toss = False
        if not toss and len(spare) >= min(wanted, MAX_SPARE):
            continue
        try:
            picture = next(pictures(read(), shown(name)))
            if picture.width >= picture.height:
                raise DataError(f"{shown(name)}: not a vertical strip")
            strip = read_strip(picture, shown(name))
            if len(strip) < frames:
                raise DataError(f"{shown(name)}: fewer than {frames} frames")
            video = np.stack([fit(frame, options.size) for frame in strip[:frames]])
        except Broken:
            raise
        except DataError as error:
            note(skipped, reason(error, shown(name)), name)
            continue
        if toss:
            spool.add(name, video[None], [""], 0)
            folders.add(name.rpartition("/")[0])
        else:
            spare[name] = video
        if len(spool.names) >= wanted:
            break
    clips = {name: videos[0] for name, videos, _ in spool.entries()}
    for repeat in (False, True):  # what is missing comes from other folders first
        for name, video in spare.items():
            if len(clips) < wanted and (repeat or name.rpartition("/")[0] not in folders):
                clips[name] = video
                folders.add(name.rpartition("/")[0])
    if not clips:
        return None
    order = sorted(clips, key=natural)
    return together([clips.pop(name) for name in order], frames, order, order, order, f"golf scenes, {source}")


def strip_name(name):
    """A strip's path without what lies above the archive's folder, and without its suffix."""
    return name.rpartition("frames-stable-many/")[2].rpartition(".")[0]


def golf_list(options, source):
    """golf.txt beside the archive -> (the checksums of its names, whether it has as many folders as clips are wanted);
    (None, False) without a list: every strip counts."""
    if is_url(source):
        address = urllib.parse.urljoin(source, "golf.txt")
        try:
            with Remote(address, options.timeout, options.retries, limit=MAX_FILE) as remote:
                text = remote.read()
        except Broken:
            raise
        except DataError as error:
            print(f"no list, every strip counts: {error}")
            return None, False
    else:
        places = [Path(source) / "golf.txt", Path(source).parent / "golf.txt"]
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            print(f"no list, every strip counts: {shown(places[-1])} does not exist")
            return None, False
        text = read_file(path)
    names = [strip_name(line.strip().decode("utf-8", "replace")) for line in text.splitlines() if line.strip()]
    return {zlib.crc32(name.encode()) for name in names}, \
        len({name.rpartition("/")[0] for name in names}) >= (options.clips or GOLFS)


SETS = dict(chair=chair, weizmann=weizmann, golf=golf)


# ---- Commands --------------------------------------------------------------------------------------------------------


class Progress:
    """One line that says how far, how fast, how long still: rewritten in place on a terminal, else every 5 seconds."""

    def __init__(self, what, unit="clips", scale=1):
        self.what, self.unit, self.scale = what, unit, scale
        self.start, self.first, self.told = time.monotonic(), None, 0

    def __call__(self, done, total=None):
        """done, total: how many; total None where nobody knows."""
        now = time.monotonic()
        self.first = done if self.first is None else self.first
        terminal = sys.stderr.isatty()
        if now - self.told < (0.2 if terminal else 5) and done != total or now - self.start < 1:
            return
        self.told, rate = now, max(done - self.first, 1e-9) / (now - self.start)
        of = f" of {total / self.scale:.0f}" if total else ""
        left = f", {(total - done) / rate:.0f} s left" if total else ""
        text = f"{self.what}: {done / self.scale:.0f}{of} {self.unit}, {rate / self.scale:.1f} a second{left}"
        end = "" if terminal and done != total else "\n"
        print(f"\r{text:<78}" if terminal else text, end=end, file=sys.stderr, flush=True)


def finish(clips, out):
    """Write the set and its contact sheet, and say where."""
    save(clips, out)
    s, t = len(clips.static_names), len(clips.transient_names)
    cells = {(i, j): index for index, (i, j) in reversed(list(enumerate(zip(clips.static_id, clips.transient_id))))}
    diagonal = [cells[r % s, r % t] for r in range(max(s, t)) if (r % s, r % t) in cells] or list(cells.values())
    chosen = [diagonal[i] for i in np.unique(np.linspace(0, len(diagonal) - 1, min(len(diagonal), 16)).astype(int))]
    picture = out.with_suffix(".png")
    sheet(clips.videos[chosen][:, :16], picture, row_labels=[shown(clips.names[index])[:24] for index in chosen])
    n, frames, high, wide = clips.videos.shape[:4]
    print(f"{out}: {n} clips x {frames} frames x {high} x {wide}, {s} static x {t} transient, {clips.source}")
    print(f"look at {picture}")


def folder(options, skipped):
    """Anybody's clips -> Clips. A clip is named by its file or folder; --grid reads static_transient."""
    path, size, crop = options.path, options.size, not options.no_crop

    def from_npz(archive, info, where):
        shape, dtype = read_npy(archive, info, where, peek=True)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise DataError(f"{where}: {dtype} {shape}, uint8 [T, H, W, 3] expected")
        frames = read_npy(archive, info, where)[:MAX_FRAMES]
        return np.stack([fit(Image.fromarray(frame), size, crop) for frame in frames])

    with contextlib.ExitStack() as stack:
        entries = []  # (name, what messages call it, how to read it)
        if os.path.isfile(path):
            archive = stack.enter_context(open_zip(stack.enter_context(open(path, "rb")), shown(path)))
            for info in sorted(archive.infolist(), key=lambda info: natural(info.filename)):
                name = info.filename.removesuffix(".npy")
                entries.append((name, shown(name), lambda info=info, name=name: from_npz(archive, info, shown(name))))
        for entry in listing(path) if os.path.isdir(path) else []:
            name = entry.name if entry.is_dir() else Path(entry.name).stem
            if entry.is_symlink():
                note(skipped, "a link, which is not followed", entry.name)
            elif entry.is_dir() or entry.name.lower().endswith(SUFFIXES):
                entries.append((name, shown(entry.path), lambda entry=entry: read_clip(entry.path, None, size, crop)))
            else:
                note(skipped, "not a clip", entry.name)
        clips, progress = {}, Progress("reading")
        for index, (name, where, read) in enumerate(entries):
            try:
                if name in clips:
                    raise DataError("two clips of one name")
                if options.grid and not all(name.rpartition("_")[::2]):
                    raise DataError("--grid reads static_transient, as daria_wave1; this is no such name")
                clip = read()
                if len(clip) < options.frames:
                    raise DataError(f"fewer than {options.frames} frames")
                clips[name] = clip
            except DataError as error:
                note(skipped, reason(error, where), name)
            progress(index + 1, len(entries))
    if not clips:
        return None
    pairs = [name.rpartition("_")[::2] if options.grid else (name, name) for name in clips]
    return together(list(clips.values()), options.frames, list(clips), *zip(*pairs), f"clips of {Path(path).name}")


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, as every other trouble
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--frames", type=int, default=16, help="frames a clip (16)")
        sub.add_argument("--size", type=int, default=64, help="side of a frame in pixels (64)")
        sub.add_argument("--out", default="data", help="folder for NAME.npz and NAME.png (data)")
        sub.add_argument("--force", action="store_true", help="redo a set that is already there")
        return sub

    counts = f"{4 * CHAIRS}: {CHAIRS} models in 4 sequences", "90: 9 persons x 10 actions", f"{GOLFS}"
    for name, text, count in zip(SETS, ("Seeing 3D Chairs, 3 GB", "Weizmann's actions", "golf scenes"), counts):
        sub = command(name, text)
        sub.add_argument("--source", help="a folder, an archive or an http(s) address instead of the official address")
        sub.add_argument("--clips", type=int, help=f"clips ({count})")
        sub.add_argument("--seed", type=int, default=0, help="of the draw (0)")
        sub.add_argument("--keep", action="store_true", help="download the archive whole and keep it")
        sub.add_argument("--sha256", help="refuse an archive with another SHA-256")
        sub.add_argument("--timeout", type=float, default=30, help="seconds without an answer (30)")
        sub.add_argument("--retries", type=int, default=5, help="tries after a broken connection (5)")
        if name == "weizmann":
            sub.add_argument("--no-crop", action="store_true", help="squeeze whole frames (for the action exchange)")
    sub = command("folder", "your own clips: a folder of files, of frame folders or of strips, or an npz of arrays")
    sub.add_argument("path")
    sub.add_argument("--name", required=True, help="the set's name")
    sub.add_argument("--grid", action="store_true", help="clips are named static_transient: two dictionaries")
    sub.add_argument("--no-crop", action="store_true", help="squeeze whole frames instead of cutting a square")
    sub = command("draw", "the drawn stand-ins, as a file")
    sub.add_argument("what", choices=("chair", "weizmann"))
    sub.add_argument("--clips", type=int, help="chairs to draw (64)")
    sub.add_argument("--seed", type=int, default=0, help="draws other ones (0)")
    sub.add_argument("--name", help="the set's name (drawn_chair or drawn_weizmann)")

    options = parser.parse_args(arguments)
    try:
        run(options)
    except (DataError, OSError) as error:
        print(f"data_prep.py: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data_prep.py: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    return 0


def run(options):
    name = getattr(options, "name", None) or ("drawn_" + options.what if options.command == "draw" else options.command)
    if not NAME.fullmatch(name):
        raise DataError(f"--name {shown(name)}: letters, digits, dot, dash and underscore expected")
    for key, low, high in (("frames", 1, MAX_FRAMES), ("size", 8, 1024), ("clips", 1, MAX_CLIPS), ("seed", 0, 2**32),
                           ("timeout", 0.1, 3600), ("retries", 0, 100)):
        value = getattr(options, key, None)
        if value is not None and not low <= value <= high:
            raise DataError(f"--{key} {value}: {low} to {high} expected")
    if not re.fullmatch("([0-9a-fA-F]{64})?", getattr(options, "sha256", None) or ""):
        raise DataError(f"--sha256 {shown(options.sha256)}: 64 hexadecimal digits expected")
    out = Path(options.out) / f"{name}.npz"
    if out.exists() and not options.force:
        try:
            there = load(out)
        except DataError as error:
            raise DataError(f"{error}; --force makes it anew") from None
        n, frames, high, wide = there.videos.shape[:4]
        print(f"{out} is there: {n} clips x {frames} frames x {high} x {wide}, {there.source}; --force redoes it")
        return
    if options.command == "draw" and options.what == "weizmann" and options.clips:
        raise DataError("--clips: draw weizmann draws its whole grid of 90 clips; leave it out")
    if options.command == "folder" and not os.path.exists(options.path):
        raise DataError(f"{shown(options.path)}: does not exist: check the path")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    if options.command == "draw":
        if options.what == "chair":
            clips = draw_chairs(options.clips or 64, options.frames, options.size, options.seed, Progress("drawing"))
        else:
            clips = draw_people(options.frames, options.size, options.seed, Progress("drawing"))
    else:
        skipped, options.fetched = {}, []
        try:
            clips = dict(SETS, folder=folder)[options.command](options, skipped)
        finally:
            report(skipped)
        if clips is None:
            where = options.path if options.command == "folder" else options.source or "the official address"
            why = f" ({next(iter(skipped))}{', ...' if len(skipped) > 1 else ''})" if skipped else ""
            raise DataError(f"{shown(where)}: no usable clip{why}: nothing was written")
    finish(clips, out)
    if options.command in SETS:
        shutil.rmtree(out.parent / f".{name}.part", ignore_errors=True)
        for path in options.fetched:
            print(f"kept {path}") if options.keep else path.unlink()


def remove_leftovers(out):
    """Remove the temporary files of runs that were killed while they wrote this set."""
    for path in out.parent.glob(f".{out.stem}.*.tmp.*"):
        pid = path.name.removeprefix(f".{out.stem}.").split(".")[0]
        try:
            os.kill(int(pid), 0)
        except (ValueError, ProcessLookupError):
            path.unlink(missing_ok=True)
        except PermissionError:
            pass


if __name__ == "__main__":
    sys.exit(main())
