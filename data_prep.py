"""Every data set of nav.py becomes one file, data/NAME.npz, with a contact sheet data/NAME.png beside it.

    python data_prep.py folder PATH --name mine            # your own clips: GIF, APNG, WebP, avi, strips, folders of frames
    python data_prep.py folder clips.npz --name w4 --grid  # one [T, H, W, 3] uint8 array a clip, named static_transient
    python data_prep.py draw chair --clips 64              # drawn stand-ins: nav.py draws the same ones by itself
    python data_prep.py draw weizmann

An existing data/NAME.npz is left alone unless --force says otherwise. Frames are cut to a centred square and resized.
"""

import argparse
import dataclasses
import io
import os
import re
import struct
import sys
import time
import warnings
import zipfile
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
PICTURES = ("PNG", "GIF", "WEBP", "JPEG", "BMP")  # the decoders that hostile bytes may reach
SUFFIXES = (".png", ".apng", ".gif", ".webp", ".jpg", ".jpeg", ".bmp", ".avi")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DataError(ValueError):
    """Data that cannot be used. One line: what is wrong, where, and what to do."""


def shown(name):
    """A name from an archive or a file system, safe to print: one line, no control characters, not endless."""
    text = ascii(str(name))[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


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
    try:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - 66_000))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 22:
            raise DataError(f"{where}: not a whole zip file (its directory is missing): truncated? make or fetch it again")
        entries, directory = struct.unpack("<HI", tail[end + 10 : end + 16])
        if b"PK\6\7" in tail[max(0, end - 20) : end] or directory > 1 << 24:
            raise DataError(f"{where}: a zip directory of {directory} bytes or of 64 bits: more than any set needs")
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, EOFError) as error:
        if isinstance(error, DataError):
            raise
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
                  transient_names=("str", 1), names=("str", 1), source=("str", 0), full=("uint8", 4), length=("int64", 1))
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
              f"adds up to {length.sum()} frames and is at least {length.min()}, {len(full)} (key 'full') and {frames} expected")
        check(full.shape[1:] == videos.shape[2:], "full", f"has frames of {full.shape[1:]}, {videos.shape[2:]} expected")
    texts = {key: arrays[key].tolist() for key in ("static_names", "transient_names", "names")}
    return Clips(videos, arrays["static_id"], arrays["transient_id"], **texts, source=" ".join(str(arrays["source"]).split()),
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
    write_beside(path, lambda temporary: picture.save(temporary, optimize=True))


def write_gif(video, path, fps=8):
    """A looped GIF of uint8 [T, H, W, 3]. One palette for all frames and no dithering: a still ground stays still."""
    high, wide = video.shape[1:3]
    palette = Image.fromarray(video.reshape(-1, wide, 3)).quantize(256, Image.Quantize.MEDIANCUT)
    frames = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in video]
    write_beside(path, lambda temporary: frames[0].save(
        temporary, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0))


# ---- Clips in: pictures, strips, folders of frames, avi -------------------------------------------------------------


def fit(image, size, crop=True):
    """A PIL RGB image -> uint8 [size, size, 3]: the largest centred square (all of it without `crop`), resized with an
    antialiased bicubic filter. size None keeps the picture as it is, [H, W, 3]."""
    if size is None:
        return np.asarray(image)
    wide, high = image.size
    side = min(wide, high)
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
                    yield Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
                else:
                    yield image.convert("RGB")
                if not getattr(image, "is_animated", False):
                    break
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ... on damaged bytes
        raise DataError(f"{where}: cannot be decoded ({shown(error)})") from None


def read_strip(image, where):
    """One still picture, a whole number of squares high or wide -> its frames, a list of PIL images. Raises DataError."""
    wide, high = image.size
    side = min(wide, high)
    if max(wide, high) % side or wide == high:
        raise DataError(f"{where}: one picture of {wide} x {high} is no strip: its long side must be a multiple of the short")
    if max(wide, high) // side > MAX_FRAMES:
        raise DataError(f"{where}: a strip of {max(wide, high) // side} frames, at most {MAX_FRAMES} expected")
    if high > wide:
        return [image.crop((0, y, side, y + side)) for y in range(0, high, side)]
    return [image.crop((x, 0, x + side, side)) for x in range(0, wide, side)]


def read_avi(data, where):
    """Uncompressed 24-bit RIFF avi (bytes) -> uint8 [T, H, W, 3] RGB, right way up. Raises DataError.

    Stored bottom-up (a negative height says top-down), BGR, rows padded to 4 bytes. Frames are counted as found, at most
    MAX_FRAMES: what the header promises is only compared."""

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
                raise DataError(f"{where}: {name}, {bits} bits a pixel; only uncompressed 24-bit avi is read: convert it")
            if wide < 1 or not 0 < wide * abs(high) <= MAX_PIXELS:
                raise DataError(f"{where}: frames of {wide} x {high} pixels, at most {MAX_PIXELS} in all expected")
            shape, row = (abs(high), wide), (3 * wide + 3) // 4 * 4
        elif tag[2:] in (b"db", b"dc") and shape is not None and len(frames) < MAX_FRAMES:
            if size != shape[0] * row:
                raise DataError(f"{where}: frame {len(frames)} holds {size} bytes, {shape[0] * row} expected")
            if begin + size > len(data):
                raise DataError(f"{where}: ends inside frame {len(frames)}: truncated? fetch it again")
            frame = np.frombuffer(data, np.uint8, size, begin).reshape(shape[0], row)[:, : 3 * shape[1]]
            frames.append(frame.reshape(*shape, 3)[:: -1 if high > 0 else 1, :, ::-1])
    if promised > len(frames) and len(frames) < MAX_FRAMES:
        raise DataError(f"{where}: the header promises {promised} frames, the file holds {len(frames)}: fetch it again")
    if not frames:
        raise DataError(f"{where}: holds no frame")
    return np.stack(frames)


def natural(name):
    """A sort key under which frame2 comes before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(name))]


def listing(folder):
    """What a folder holds, hidden files left out, in natural order. Raises DataError."""
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] not in "._"), key=lambda e: natural(e.name))
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be read ({error.strerror}): check the path") from None
    return entries


def read_file(path):
    """The bytes of one regular file of at most MAX_FILE. Raises DataError."""
    try:
        if not os.path.isfile(path):
            raise DataError(f"{shown(path)}: {'not a regular file' if os.path.exists(path) else 'does not exist'}: check the path")
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
        raise DataError(f"{where}: {len(video)} frames, {frames or 1} expected: give a longer clip or a smaller --frames")
    return np.stack(video)


# ---- Drawn chairs: what `--dataset chair` trains on until the real renders are there --------------------------------
# A chair is a list of convex pieces, [2, n, 3]: a lower and an upper ring of n corners (metres; z up, the front is +y).
# The camera of 'Seeing 3D Chairs': azimuth k * 360 / 31, elevation 20, white ground.

AZIMUTHS = 31
SUPERSAMPLE = 4


def beam(p, q, at_p, at_q=None, sides=4):
    """A prism or frustum from p to q. at_p, at_q: half sizes (u, v) of its sections, which lie square to the axis (x, y or
    z) along which it is longest, so that faces stay flat however far it leans; sides: 4 for a bar, more for a round one."""
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
    base = np.array([(96, 58, 32), (140, 88, 48), (186, 132, 82), (214, 178, 128), (46, 40, 40), (232, 230, 224), (150, 154, 160),
                     (112, 40, 30)])[rng.integers(8)]
    return np.clip(base * rng.uniform(0.85, 1.1) + rng.normal(0, 5, 3), 20, 240)


def colour(hue, saturation, value):
    """Hue, saturation and value, each 0 to 1 -> RGB, 0 to 255."""
    sector = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return 255 * value * (1 - saturation * (1 - np.clip(sector, 0, 1)))


def make_chair(rng):
    """A random chair -> [(piece, colour)]. No two pieces share inner points, so that they can be sorted for painting."""
    frame, soft = wood(rng), colour(rng.uniform(), rng.uniform(0.25, 0.9), rng.uniform(0.45, 0.95))
    if rng.random() < 0.3:
        soft = frame.copy()
    parts = []

    def add(piece, colour=frame):
        parts.append((piece, colour))

    # Half width, half depth, underside, thickness of the seat; height and lean of the back.
    w, d, z, t = rng.uniform(0.21, 0.28), rng.uniform(0.20, 0.27), rng.uniform(0.34, 0.46), rng.uniform(0.03, 0.07)
    height, lean = rng.uniform(0.36, 0.62), rng.uniform(0.02, 0.14)
    leg = rng.uniform(0.014, 0.03)
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
            add(turned(beam((1.3 * column, 0, 0.07), (arm, 0, 0.05), (0.022, 0.022), (0.016, 0.014)), 360 * k / points + 45))
            add(turned(beam((arm - 0.02, 0, 0), (arm - 0.02, 0, 0.033), (0.02, 0.02), sides=8), 360 * k / points + 45))
        add(beam((0, 0, 0.04), (0, 0, 0.09), (1.2 * column, 1.2 * column), sides=10))

    # Seat, with a cushion on some.
    add(beam((0, 0, z), (0, 0, top), (w, d), sides=16 if round_seat else 4), soft if rng.random() < 0.6 else frame)
    post = rng.uniform(0.014, 0.024)
    if back != "tub" and rng.random() < 0.5:
        soften = 0.03 if not round_seat else 0.06
        add(beam((0, post, top), (0, post, top + 0.04), (w - soften, d - soften - post), (w - soften - 0.02, d - soften - post - 0.02),
                 16 if round_seat else 4), soft)

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
                add(beam(at(s * (w * (1 + crown) / 2 - 0.012), 0.45, post + 0.07), at(s * (w * crown - 0.012), 1, post + 0.05),
                         (0.012, 0.07), (0.012, 0.05)), soft)
    elif back in ("slats", "padded", "spindles"):
        for s in (-1, 1):
            add(beam(at(s * px, 0), at(s * px, 1), (post, post)))
        if back == "slats":
            count = int(rng.integers(2, 6))
            for k in range(count):
                h = 0.94 - k * 0.72 / count
                half = 0.5 * rng.uniform(0.5, 0.6) * 0.72 / count * height
                add(beam(at(-px + post, h), at(px - post, h), (0.009, half)), soft if count < 4 else frame)
        elif back == "padded":
            low = rng.uniform(0.15, 0.4)
            add(beam(at(0, low), at(0, 0.97), (px - post, 0.018)), soft)
        else:
            add(beam(at(-px - post, 1) + (0, 0, 0.02), at(px + post, 1) + (0, 0, 0.02), (1.3 * post, 0.02)))
            count = int(rng.integers(3, 7))
            for x in np.linspace(-px, px, count + 2)[1:-1]:
                add(beam(at(x, 0), at(x, 1), (0.008, 0.008), sides=6))
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
            for s in (-1, 1):
                add(beam((s * (w - 0.02), front - 0.02, top), (s * (w - 0.02), front - 0.02, top + h), (0.014, 0.014)))
                add(beam((s * (w - 0.02), rear + post, top + h + 0.014), (s * (w - 0.02), front + 0.01, top + h + 0.014),
                         (0.014, 0.026)))
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

    Two convex pieces are always separated by a plane; here by a face of either, the one with the widest gap. What lies on
    the camera's side of that plane can hide the other piece and is never hidden by it."""
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


def render_chair(parts, frames, size, fill):
    """Pieces -> uint8 [frames, size, size, 3], one azimuth a frame. fill: share of the frame's height that the chair spans;
    the camera's zoom is the same for all of its frames."""
    pieces, colours = zip(*parts)
    surfaces = [faces_of(piece) for piece in pieces]
    corners = np.concatenate([piece.reshape(-1, 3) for piece in pieces])
    begin = np.cumsum([0] + [2 * piece.shape[1] for piece in pieces])
    middle = (corners.min(0) + corners.max(0)) / 2
    distance = 5 * np.linalg.norm(corners - middle, axis=1).max()
    azimuth, elevation = np.arange(AZIMUTHS) * 2 * np.pi / AZIMUTHS, np.radians(20)
    ahead, side, zero = np.cos(azimuth), np.sin(azimuth), np.zeros(AZIMUTHS)
    towards = np.stack([side * np.cos(elevation), ahead * np.cos(elevation), zero + np.sin(elevation)], 1)  # the camera, [K, 3]
    right = np.stack([-ahead, side, zero], 1)
    up = np.cross(towards, right)
    cameras = middle + distance * towards

    seen = (corners - middle) @ np.stack([right, -up, towards], 2)  # [K, V, 3]: right, down, nearer
    screen = seen[..., :2] / (distance - seen[..., 2:])
    low, high = screen.min((0, 1)), screen.max((0, 1))
    big = size * SUPERSAMPLE
    screen = (screen - (low + high) / 2) * big * min(fill / (high[1] - low[1]), 0.92 / (high[0] - low[0])) + big / 2
    lowest, highest = np.minimum.reduceat(screen, begin[:-1], 1), np.maximum.reduceat(screen, begin[:-1], 1)  # [K, P, 2]
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
        waiting, left = before[k].sum(0), farthest[k].tolist()
        while left:  # the farthest piece for which nothing is left to paint first
            pick = next((p for p in left if not waiting[p]), left[0])
            left.remove(pick)
            waiting -= before[k, pick]
            tints, facing = paint[pick]
            for f in np.flatnonzero(facing[k]):
                draw.polygon([points[begin[pick] + corner] for corner in surfaces[pick][0][f]], tuple(tints[k, f].tolist()))
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
# 9 persons x 10 actions. A person is a build, clothes and a still background; an action is a motion, the same phase for
# everybody, so that a clip is one row of the static dictionary and one of the transient dictionary, as the paper has it.

PERSONS = ("daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar")
ACTIONS = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
KEPT = 28  # frames of a drawn clip, the length of the shortest real one


def pose(action, t):
    """The body at frame t. Angles are degrees from straight down: forwards in a side view, outwards in a front view.

    -> dict: view, x (share of the frame's width), facing (1 right, -1 left), lift off the ground and squash of the legs
    (shares of the height), lean (trunk from upright), arms and legs: two (upper, bend of the joint) pairs, far or left first."""

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
        body.update(crossing(t / 14), view="side", legs=legs, arms=[(-45 + 20 * hop, 25), (55 - 10 * hop, 40)], lean=5, lift=0.13 * hop)
    elif action == "jump":  # both legs together: crouch, fly, land
        phase = t / 8 % 1
        fly, crouch = max(0, np.sin(2 * np.pi * (phase - 0.3))), max(0, np.sin(2 * np.pi * (phase + 0.1))) ** 2
        flown = t // 8 + np.clip((phase - 0.3) / 0.5, 0, 1)
        leg, arm = (62 * crouch + 35 * fly, -105 * crouch - 55 * fly), (-65 * crouch + 110 * fly, 15)
        body.update(crossing(flown / 2), view="side", legs=[leg, leg], arms=[arm, arm], lean=38 * crouch + 6, lift=0.2 * fly)
    elif action == "pjump":
        up = wave(8, -0.15)
        body.update(lift=0.2 * max(0, up), squash=0.26 * max(0, -up), arms=[(10 + 14 * max(0, up), 4)] * 2, legs=[(3, 0)] * 2)
    elif action == "side":  # gallops sideways, facing us
        apart = 0.5 + 0.5 * wave(7)
        body.update(crossing(t / 15), facing=1, legs=[(2 + 30 * apart, 0)] * 2, arms=[(14 + 14 * apart, 8)] * 2, lift=0.06 * (1 - apart))
    elif action == "jack":
        apart = 0.5 - 0.5 * wave(12, 0.25)
        body.update(arms=[(10 + 150 * apart, 6)] * 2, legs=[(2 + 27 * apart, 0)] * 2, lift=0.08 * abs(wave(12)))
    elif action == "bend":
        down = (0.5 - 0.5 * wave(16, 0.25)) ** 0.8
        body.update(view="side", lean=126 * down, arms=[(4 + 14 * down, 4)] * 2, legs=[(-6 * down, -2), (2 - 4 * down, -2)])
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
    return dict(height=0.54 + 0.015 * (index * 4 % 9), stout=rng.uniform(0.9, 1.3), legs=rng.uniform(0.47, 0.53),
                skin=skin, hair=np.array([(40, 30, 26), (96, 60, 34), (190, 150, 90), (130, 128, 126)][rng.integers(4)], float),
                long_hair=index % 3 == 0, shirt=colour(hue, 0.75, rng.uniform(0.55, 0.95)), sleeves=index % 2 == 0,
                trousers=colour(hue + rng.uniform(0.3, 0.7), 0.45, rng.uniform(0.2, 0.5)), shorts=index % 4 == 1,
                shoes=np.array([(36, 34, 34), (226, 222, 214)][rng.integers(2)], float))


def make_background(rng, index, size):
    """A still wall over a still ground -> uint8 [size, size, 3]: bricks, slabs, planks, leaves, plaster or a window front."""

    def noise(cells):  # smooth, zero mean
        small = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
        return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))[..., None]

    y, x = np.mgrid[0:size, 0:size] / size
    base = colour(shirt_hue(index) + rng.uniform(0.35, 0.65), rng.uniform(0.1, 0.35), rng.uniform(0.6, 0.85))  # a contrast
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
    ground = colour(rng.uniform(), rng.uniform(0.05, 0.3), rng.uniform(0.4, 0.65)) * (1 + 0.05 * noise(24) + 0.06 * noise(6))
    picture = np.where((y > horizon)[..., None], ground, wall)
    picture[(y > horizon - 0.015) & (y <= horizon + 0.01)] *= 0.7  # the kerb
    return np.clip(picture + 2 * noise(size), 0, 255).astype(np.uint8)


def draw_person(person, background, body):
    """One frame, uint8 [size, size, 3], over a supersampled PIL background. Limbs are round bars; the lowest foot is on the
    ground, unless the body is lifted off it."""
    big = background.width
    h, stout, front = person["height"] * big, person["stout"], body["view"] == "front"
    leg, trunk, arm, head = person["legs"] / 2 * h * (1 - body["squash"]), (0.82 - person["legs"]) * h, 0.165 * h, 0.078 * h
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
            bar(origin + (side * 0.5 * width, -0.01 * h), chest + (side * 0.75 * width, 0.015 * h), 0.1 * h, person["shirt"])
    else:
        bar(origin, chest + (0, 0.01 * h), 0.125 * h * stout, person["shirt"])
    bar(neck, top, 0.055 * h, person["skin"] * 0.9)
    bar(top, top, 2 * head, person["skin"])
    crown = step(top, 180 - body["lean"] * 0.9, 0.03 * h, body["facing"]) - (0 if front else body["facing"] * 0.02 * h, 0)
    bar(crown, crown, 1.75 * head, person["hair"])
    face = top + (0 if front else body["facing"] * 0.028 * h, 0.018 * h)
    bar(face, face, 1.35 * head, person["skin"])
    if front:
        draw_arm(0, 0.9)
    draw_arm(1, 0.9)
    return np.asarray(picture.reduce(SUPERSAMPLE))


def draw_people(frames=16, size=64, seed=0, progress=None):
    """Drawn people -> Clips of uint8 [90, frames, size, size, 3], 9 persons x 10 actions; `full` keeps at least 28 frames.

    progress(done, total) is called after every clip."""
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


# ---- Commands --------------------------------------------------------------------------------------------------------


class Progress:
    """One line that says how far, how fast and how long still: rewritten in place on a terminal, else every 5 seconds."""

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
        text = f"{self.what}: {done / self.scale:.0f}"
        if total:
            text += f" of {total / self.scale:.0f} {self.unit}, {rate / self.scale:.1f} a second, {(total - done) / rate:.0f} s left"
        else:
            text += f" {self.unit}, {rate / self.scale:.1f} a second"
        print(f"\r{text:<78}" if terminal else text, end="\n" if not terminal or done == total else "", file=sys.stderr, flush=True)


def report(skipped):
    """Say what was left out: how many, why, and the first names. skipped: {why: [names]}."""
    for why, names in skipped.items():
        print(f"skipped {len(names)}: {why}: {', '.join(map(shown, names[:5]))}{', ...' if len(names) > 5 else ''}")


def finish(clips, out):
    """Write the set and its contact sheet, and say where."""
    save(clips, out)
    s, t = len(clips.static_names), len(clips.transient_names)
    cells = {(i, j): index for index, (i, j) in reversed(list(enumerate(zip(clips.static_id, clips.transient_id))))}
    diagonal = [cells[r % s, r % t] for r in range(max(s, t)) if (r % s, r % t) in cells] or list(range(len(clips.names)))
    chosen = [diagonal[i] for i in np.unique(np.linspace(0, len(diagonal) - 1, min(len(diagonal), 16)).astype(int))]
    picture = out.with_suffix(".png")
    sheet(clips.videos[chosen][:, :16], picture, row_labels=[shown(clips.names[index])[:24] for index in chosen])
    n, frames, high, wide = clips.videos.shape[:4]
    print(f"{out}: {n} clips x {frames} frames x {high} x {wide}, {s} static x {t} transient, {clips.source}")
    print(f"look at {picture}")


def folder(path, frames, size, grid, crop):
    """Anybody's clips -> Clips. A clip is named by its file or folder; `grid` reads static_transient. Raises DataError."""
    skipped, names, clips = {}, [], []

    def found():  # (name, how to read it)
        if str(path).lower().endswith(".npz") and not os.path.isdir(path):
            if not os.path.isfile(path):
                raise DataError(f"{shown(path)}: does not exist: check the path")
            with open(path, "rb") as file, open_zip(file, shown(path)) as archive:
                for info in sorted(archive.infolist(), key=lambda info: natural(info.filename)):
                    yield info.filename.removesuffix(".npy"), lambda info=info: from_npz(archive, info)
        else:
            for entry in listing(path):
                if entry.is_symlink():
                    skipped.setdefault("a link, which is not followed", []).append(entry.name)
                elif entry.is_dir():
                    yield entry.name, lambda entry=entry: read_clip(entry.path, None, size, crop)
                elif entry.name.lower().endswith(SUFFIXES):
                    yield Path(entry.name).stem, lambda entry=entry: read_clip(entry.path, None, size, crop)
                else:
                    skipped.setdefault("not a clip", []).append(entry.name)

    def from_npz(archive, info):
        where = f"{shown(path)}: key {shown(info.filename.removesuffix('.npy'))!r}"
        shape, dtype = read_npy(archive, info, where, peek=True)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise DataError(f"{where} is {dtype} {shape}, uint8 [T, H, W, 3] expected")
        return np.stack([fit(Image.fromarray(frame), size, crop) for frame in read_npy(archive, info, where)])

    entries, progress = list(found()) if not str(path).endswith(".npz") else found(), Progress("reading")
    for index, (name, read) in enumerate(entries):
        try:
            if name in names:
                raise DataError("two clips of one name")
            if grid and not all(name.rpartition("_")[::2]):
                raise DataError("--grid reads static_transient, as daria_wave1; no such name")
            clip = read()
            if len(clip) < frames:
                raise DataError(f"fewer than {frames} frames")
            names.append(name)
            clips.append(clip)
        except DataError as error:
            skipped.setdefault(str(error), []).append(name)
        progress(index + 1, len(entries) if isinstance(entries, list) else None)
    report(skipped)
    if not clips:
        raise DataError(f"{shown(path)}: no usable clip{'' if skipped else ': it holds none'}; see python data_prep.py folder --help")
    pairs = [name.rpartition("_")[::2] for name in names] if grid else [(name, name) for name in names]
    static, transient = zip(*pairs)
    return together(clips, frames, names, static, transient, f"clips of {Path(path).name}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, text):
        sub = commands.add_parser(name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("--frames", type=int, default=16, help="frames a clip")
        sub.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
        sub.add_argument("--out", default="data", help="folder for NAME.npz and NAME.png")
        sub.add_argument("--force", action="store_true", help="redo a set that is already there")
        return sub

    sub = command("folder", "your own clips: a folder of files, of frame folders or of strips, or an npz of arrays")
    sub.add_argument("path")
    sub.add_argument("--name", required=True, help="the set's name")
    sub.add_argument("--grid", action="store_true", help="clips are named static_transient: two dictionaries")
    sub.add_argument("--no-crop", action="store_true", help="squeeze whole frames instead of cutting a square")
    sub = command("draw", "the drawn stand-ins, as a file")
    sub.add_argument("what", choices=("chair", "weizmann"))
    sub.add_argument("--clips", type=int, help="chairs to draw (64 when left out)")
    sub.add_argument("--seed", type=int, default=0, help="draws other ones")
    sub.add_argument("--name", help="the set's name (drawn_chair or drawn_weizmann when left out)")

    options = parser.parse_args(arguments)
    try:
        run(options)
    except (DataError, OSError) as error:
        print(f"data_prep.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data_prep.py: interrupted; nothing half-written is left", file=sys.stderr)
        return 130
    return 0


def run(options):
    name = getattr(options, "name", None) or ("drawn_" + options.what if options.command == "draw" else options.command)
    if not NAME.fullmatch(name):
        raise DataError(f"--name {shown(name)}: letters, digits, dot, dash and underscore expected")
    for key, low, high in (("frames", 1, MAX_FRAMES), ("size", 8, 1024), ("clips", 1, MAX_CLIPS), ("seed", 0, 2**32)):
        value = getattr(options, key, None)
        if value is not None and not low <= value <= high:
            raise DataError(f"--{key} {value}: {low} to {high} expected")
    out = Path(options.out) / f"{name}.npz"
    if out.exists() and not options.force:
        there = load(out)
        n, frames, high, wide = there.videos.shape[:4]
        print(f"{out} is there: {n} clips x {frames} frames x {high} x {wide}, {there.source}; --force redoes it")
        return
    if options.command == "folder" and not os.path.exists(options.path):
        raise DataError(f"{shown(options.path)}: does not exist: check the path")
    out.parent.mkdir(parents=True, exist_ok=True)
    if options.command == "folder":
        clips = folder(options.path, options.frames, options.size, options.grid, not options.no_crop)
    elif options.what == "chair":
        clips = draw_chairs(options.clips or 64, options.frames, options.size, options.seed, Progress("drawing"))
    else:
        clips = draw_people(options.frames, options.size, options.seed, Progress("drawing"))
    finish(clips, out)


if __name__ == "__main__":
    sys.exit(main())
