"""Every data set of nav.py becomes one file, data/NAME.npz, with a contact sheet data/NAME.png beside it.

    python data_prep.py folder PATH --name mine            # yours: videos, GIFs, strips, folders of frames
    python data_prep.py folder clips.npz --name w4 --grid  # uint8 arrays [T, H, W, 3] named static_transient
    python data_prep.py chair                              # the paper's three sets: chair, weizmann, golf
    python data_prep.py draw chair --clips 64              # drawn stand-ins: nav.py draws the same by itself

A data/NAME.npz that is there is left alone without --force. Frames are cut to a centred square and resized.
"""
import argparse
import bz2
import colorsys
import contextlib
import dataclasses
import gzip
import io
import itertools
import math
import os
import re
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

# What is read is never trusted: these bounds hold before memory is taken.
MAX_PIXELS = 1 << 24  # of one picture (4096 x 4096), read from its header
MAX_FILE = 1 << 28  # bytes of one picture, or of one member of an archive
MAX_FRAMES = 1000  # of one clip
MAX_CLIP = 1 << 29  # bytes of one clip once decoded
MAX_SET = 1 << 32  # bytes of all frames of a set
MAX_STREAM = 1 << 40  # bytes of a download: the golf archive has about 131 GB
CHAIRS, GOLFS = 820, 500  # models and clips that the paper drew
BACKOFF = 0.5  # seconds after the first failure of a connection, doubled after each further one
TIMEOUT = 30  # seconds without an answer
SIDES = (16, 32, 64, 128, 256)  # of frames that nav.py's generator can draw
MIN_FRAMES = 4  # the shortest clip that holds a triplet of radius 2
DECODERS = ("PNG", "GIF", "WEBP", "JPEG", "BMP", "TIFF", "PPM")  # of PIL: what hostile bytes may reach
CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,ogg,flv,asf,m4v"  # no playlist, which names other files
STILL = tuple(".png .apng .webp .jpg .jpeg .bmp .tif .tiff .ppm .pgm".split())
MOVING = tuple(".gif .mp4 .m4v .mov .webm .mkv .avi .mpg .mpeg .ts .ogv .flv .wmv".split())

class DataError(ValueError):
    """What a user can mend. One line: what is wrong, where, what to do; printed, with exit status 2."""

def printable(name, most=80):
    """A name or an error from outside -> one line of ASCII, which any terminal prints, of `most` letters."""
    text = ascii(" ".join(str(name).split()))[1:-1].replace("\\\\", "\\")
    return text if len(text) <= most else text[: most - 3] + "..."

@contextlib.contextmanager
def reading(where, what="cannot be decoded", skipped=None):
    """Around a decoder: what damaged bytes make it raise becomes a DataError, or is counted in `skipped`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ConnectionError:  # no damage
        raise
    except Exception as error:  # zlib, zipfile, numpy, PIL and FFmpeg have their own; a MemoryError too
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        why = str(error) if isinstance(error, DataError) else f"{what} ({printable(words)})"
        if skipped is None:
            raise DataError(f"{printable(where)}: {why}" if where else why) from None
        count_skipped(skipped, why.removeprefix(f"{printable(where)}: "), where)

# ---- A prepared set: Clips, and its file -----------------------------------------------------------------
@dataclasses.dataclass
class Clips:
    """N clips of L frames and the rows of the two dictionaries that describe them (section 3, figure 2)."""
    videos: np.ndarray  # uint8 [N, L, H, W, 3]
    static_id: np.ndarray  # int64 [N], row of the static dictionary
    transient_id: np.ndarray  # int64 [N], row of the transient dictionary
    static_names: list
    transient_names: list
    names: list  # one a clip
    source: str  # one line; drawn stand-ins start with 'drawn'
    full: np.ndarray = None  # uint8 [sum of lengths, H, W, 3]: the clips at full length, one after another
    length: np.ndarray = None  # int64 [N], full frames of each clip, at least L

    def __post_init__(self):
        if self.full is None:  # nothing longer than L was kept
            self.full = self.videos.reshape(-1, *self.videos.shape[2:])
            self.length = np.full(len(self.videos), self.videos.shape[1], np.int64)

    @property
    def standin(self):
        return self.source.startswith("drawn")

    def __str__(self):
        N, L, H, W = self.videos.shape[:4]
        return f"{N} clips x {L} frames x {H} x {W}, {self.source}"

def from_clips(clips, frames, names, static, transient, source):
    """A list of clips uint8 [T, H, W, 3], T >= frames, and their static and transient names -> Clips.
    Names become rows as they first appear. The list is emptied: no clip is held twice. DataError for none."""
    if not clips:
        raise DataError(f"{source}: no usable clip: nothing was written")
    length = np.array([len(clip) for clip in clips], np.int64)
    begin = length.cumsum() - length
    full = np.empty((length.sum(), *np.shape(clips[0])[1:]), np.uint8)
    for part in np.split(full, begin[1:]):
        part[:] = clips.pop(0)
    same = length.max() == frames
    videos = full.reshape(-1, frames, *full.shape[1:]) if same else full[begin[:, None] + np.arange(frames)]
    rows = [list(dict.fromkeys(every)) for every in (static, transient)]
    ids = [np.array([row.index(name) for name in every]) for row, every in zip(rows, (static, transient))]
    return Clips(videos, *ids, *rows, list(names), source, full, length)

def write_beside(path, write):
    """Write a file whole or not at all: write(temporary path, of the same suffix), flush to disk, rename.
    OSError goes on, and nothing is left; what a killed process left is removed an hour later."""
    path = Path(path)
    for left in path.parent.glob(f".{path.stem}.*.tmp{path.suffix}"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)

def save(clips, path):
    """Write Clips to `path`, a compressed npz; `full` and `length` only where a clip is longer. OSError."""
    arrays = dict(vars(clips))
    if len(clips.full) == clips.videos.shape[0] * clips.videos.shape[1]:
        del arrays["full"], arrays["length"]
    write_beside(path, lambda temporary: np.savez_compressed(temporary, allow_pickle=False, **arrays))

def read_arrays(path):
    """Yield (key, array) of an npz, nothing unpickled. Raises DataError for a large one, else anything."""
    with np.load(path, allow_pickle=False) as archive:
        for info in archive.zip.infolist():
            key = info.filename.removesuffix(".npy")
            if info.file_size > (MAX_SET + 4096 if key in ("videos", "full") else MAX_CLIP):
                raise DataError(f"key {printable(key)!r} unpacks to {info.file_size} bytes: split the set")
            yield key, archive[key]

def load(path):
    """Read and check a prepared set -> Clips. Raises DataError naming the key and what was expected."""
    def check(good, key, text):
        if not good:
            raise DataError(f"key {key!r} {text}")

    keys = dict(videos="uint8 N L H W 3", static_id="int64 N", transient_id="int64 N", static_names="str S",
                transient_names="str T", names="str N", source="str", full="uint8 F H W 3", length="int64 N")
    sides = {"3": 3}  # what each letter stands for, set by the first key that has it
    with reading(path, "not a whole npz: python data_prep.py makes one, --force anew"):
        arrays = dict(read_arrays(path))
        if not {"full", "length"} & arrays.keys():
            del keys["full"], keys["length"]
        for key, expected in keys.items():
            check(key in arrays, key, f"is missing; a prepared set holds {', '.join(keys)}")
            kind, *letters = expected.split()
            dtype, shape = arrays[key].dtype, arrays[key].shape
            check(dtype == kind or dtype.kind == "U" and kind == "str", key, f"is {dtype}, {kind} expected")
            wanted = [sides.setdefault(letter, side) for letter, side in zip(letters, shape)]
            agrees = len(shape) == len(letters) and wanted == [*shape] and 0 not in shape
            check(agrees, key, f"has shape {shape}, [{' '.join(letters)}] expected, of other keys {wanted}")
        for key, letter in (("static_id", "S"), ("transient_id", "T")):
            low, high, count = arrays[key].min(), arrays[key].max(), sides[letter]
            check(0 <= low and high < count, key, f"runs from {low} to {high} for {count} names")
        if "full" in keys:
            low, total = arrays["length"].min(), arrays["length"].sum()
            check(low >= sides["L"] and total == sides["F"], "length", f"is {low} or more, {total} in all")
        arrays.update({key: [*map(printable, arrays[key])] for key in keys if key.endswith("names")})
        arrays["source"] = printable(arrays["source"], 200)
        return Clips(**{key: arrays[key] for key in keys})

# ---- Pictures out: contact sheets and GIFs ---------------------------------------------------------------
def sheet(rows, path, gap=2, frames=None, row_labels=None, column_labels=None):
    """One PNG grid. rows: uint8 [R, K, H, W, 3], or lists of images [H, W, 3] of one size, None for a blank.
    frames: [R][K] of a colour or None, drawn around single cells. row_labels, column_labels: short texts."""
    high, wide = next(cell.shape[:2] for row in rows for cell in row if cell is not None)
    font = ImageFont.load_default(12)
    left = gap + max([int(font.getlength(text)) + 6 for text in row_labels or []], default=0)
    top = gap + (18 if column_labels else 0)
    size = (left + max(map(len, rows)) * (wide + gap), top + len(rows) * (high + gap))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for r, row in enumerate(rows):
        y = top + r * (high + gap)
        if row_labels:
            draw.text((3, y + high // 2), row_labels[r], "black", font, anchor="lm")
        for k, cell in enumerate(row):
            x = left + k * (wide + gap)
            if cell is not None:
                picture.paste(Image.fromarray(np.asarray(cell)), (x, y))
            if frames is not None and frames[r][k] is not None:
                around = (x - gap, y - gap, x + wide + gap - 1, y + high + gap - 1)
                draw.rectangle(around, None, frames[r][k], gap)
    for k, text in enumerate(column_labels or []):
        draw.text((left + k * (wide + gap) + wide // 2, 9), text, "black", font, anchor="mm")
    write_beside(path, picture.save)

def write_gif(video, path, fps=8):
    """A looped GIF of uint8 [T, H, W, 3]. One palette and no dithering: a still ground stays still.
    Browsers show a delay under 20 ms as 100 ms: above 50 frames a second, frames are dropped instead."""
    every = -(-fps // 50)
    delay = max(20, round(1000 * every / fps))
    palette = Image.fromarray(video.reshape(-1, *video.shape[2:])).quantize(256, Image.Quantize.MEDIANCUT)
    first, *others = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
                      for frame in video[::every]]
    write_beside(path, lambda to: first.save(to, save_all=True, append_images=others, duration=delay, loop=0))

# ---- Clips in: pictures, strips, folders of frames, videos -----------------------------------------------
def crop_resize(image, size=None, crop=True, share=1.0):
    """A PIL RGB image -> uint8 [size, size, 3]: the largest centred square, or that share of its side (all of
    the picture without `crop`), by an antialiased bicubic filter. size None keeps the picture as it is."""
    if size is None:
        return np.asarray(image)
    square = (size, size)
    return np.asarray(ImageOps.fit(image, square, bleed=(1 - share) / 2) if crop else image.resize(square))

def to_rgb(image):
    """A picture that PIL has opened -> RGB, upright (EXIF), transparent parts on white. Raises DataError."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} expected")
    if image.mode[0] in "IF":
        raise DataError(f"{image.mode} pixels (more than 8 bits): save it with 8 bits a channel")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")

def clip_frames(source, skipped):
    """Yield (PIL RGB image, second at which it goes, if known, or None, its name) of every frame."""
    if isinstance(source, np.ndarray):
        yield from ((Image.fromarray(frame), None, "a frame") for frame in source)
    elif not isinstance(source, bytes) and os.path.isdir(source):
        for entry in filter(os.DirEntry.is_file, listing(source, STILL, skipped)):
            with reading(repr(entry.name)), Image.open(entry.path, formats=DECODERS) as picture:
                image = to_rgb(picture)
            yield image, None, repr(entry.name)
    elif isinstance(source, bytes) or os.path.isfile(source):
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            yield from file_frames(file)
    else:
        raise DataError("no file of that name, or no regular one")

def file_frames(file):
    """The frames of an open file: of a moving picture, a strip of squares or a video, as its bytes say."""
    try:
        image = Image.open(file, formats=DECODERS)
    except UnidentifiedImageError:
        file.seek(0)
        yield from video_frames(file)
        return
    if not getattr(image, "is_animated", False):
        strip = to_rgb(image)
        wide, high = strip.size
        side = min(wide, high)
        if wide == high or max(wide, high) % side:
            raise DataError(f"one picture of {wide} x {high}, neither a clip nor a strip of squares")
        for y, x in itertools.product(range(0, high, side), range(0, wide, side)):
            yield strip.crop((x, y, x + side, y + side)), None, "a square"
        return
    stop = 0.0
    first = 1 if image.info.get("default_image") else 0  # an APNG's picture for old viewers is no frame
    for index in range(first, image.n_frames):
        image.seek(index)
        frame = to_rgb(image)
        stop += (image.info.get("duration") or 100) / 1000
        yield frame, stop, f"frame {index - first}"

def video_frames(file):
    """Frames of a video of any codec that FFmpeg decodes, upright. DataError, also for a file cut short."""
    import av  # 100 MB of decoders: only where there is a video

    with av.open(file, options=dict(format_whitelist=CONTAINERS)) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None or stream.width * stream.height > MAX_PIXELS:
            raise DataError(f"holds no pictures, or some of over {MAX_PIXELS} pixels: scale them down")
        rate = float(stream.average_rate or 25)
        seconds = (container.duration or 0) / av.time_base
        promised = stream.frames or int(0.95 * rate * seconds) - 1  # uncounted: sound may run on
        held = shown = 0
        try:
            for packet in container.demux(stream):
                held += packet.size > 0 and not packet.is_corrupt
                for frame in packet.decode():
                    now = shown / rate if frame.time is None else frame.time
                    if shown:
                        yield image, now - begin, f"frame {shown - 1}"  # it goes when the next one comes
                    else:
                        begin = now
                    image = frame.to_image().rotate(frame.rotation, expand=True)
                    shown += 1
        except av.FFmpegError:
            promised = max(promised, held + 1)
        if held < promised:
            raise DataError(f"promises {promised} frames, holds {held}: cut short? fetch it again")
        if shown:
            yield image, now - begin + 1 / rate, f"frame {shown - 1}"

def natural_key(name):
    """Sorts frame2 before frame10. The digits are 0 to 9: int() refuses others, as a raised 2."""
    return [int(part) if re.fullmatch("[0-9]+", part) else part for part in re.split("([0-9]+)", str(name))]

def listing(folder, suffixes, skipped):
    """The folders of a folder, and its files with one of the suffixes, in natural order. Raises OSError."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name)):
        if entry.is_symlink():
            count_skipped(skipped, "a link, which is not followed", entry.path)
        elif entry.name.startswith(".") or not (entry.is_dir() or entry.name.lower().endswith(suffixes)):
            count_skipped(skipped, "hidden, or no clip by its name", entry.path)
        else:
            found.append(entry)
    return found

def read_clip(source, least=1, most=MAX_FRAMES, size=None, crop=True, every=1, fps=None, skipped=None):
    """One clip -> uint8 [T, H, W, 3], least <= T <= most; frames after `most` are not looked at. DataError.
    source: a path (video, GIF, animated PNG or WebP, strip, folder of frames), the bytes of a file, or an
    array [T, H, W, 3]. size, crop: as crop_resize. every: keep each `every`-th frame. fps: keep so many of
    a second of the clip's own time. skipped: counts what a folder has beside frames."""
    video = []
    with reading("" if isinstance(source, (bytes, np.ndarray)) else source):
        frames = clip_frames(source, {} if skipped is None else skipped)
        for image, stop, name in itertools.islice(frames, 0, None, every):
            size_0 = size_0 if video else image.size
            if image.size != size_0:
                raise DataError("%s is %d x %d, the frames before it %d x %d" % (name, *image.size, *size_0))
            if fps and stop is None:
                raise DataError("has no times, so --fps says nothing: use --every")
            times = math.ceil(stop * fps - 1e-6) - len(video) if fps else 1  # seen at 0, 1 / fps, ... seconds
            video += [crop_resize(image, size, crop)] * times
            if len(video) >= most:
                break
            if video and video[0].nbytes * len(video) > MAX_CLIP:
                raise DataError(f"over {MAX_CLIP} bytes once decoded: a shorter clip is needed")
        if len(video) < least:
            raise DataError(f"fewer than {least} frames: {len(video)} (GIFs merge equals: --fps counts time)")
    return np.stack(video[:most])

def array_clips(path, skipped):
    """Yield (name, uint8 [T, H, W, 3]) for the arrays of an npz, which hold one clip or K."""
    for key, array in read_arrays(path):
        if array.dtype != np.uint8 or array.ndim not in (4, 5) or array.shape[-1] != 3 or array.size == 0:
            count_skipped(skipped, "no uint8 array [(K,) T, H, W, 3]", f"{key}: {array.dtype} {array.shape}")
        elif array.ndim == 5:
            yield from ((f"{key}{k:04d}", clip) for k, clip in enumerate(array))
        elif key != "full":  # of a prepared set: its videos once more
            yield key, array

def read_clips(path, skipped, least=1, most=MAX_FRAMES, size=None, crop=True, every=1, fps=None):
    """The clips of a folder, or of an npz of arrays [T, H, W, 3] or [K, T, H, W, 3] -> {name: [T, H, W, 3]}.
    uint8, least <= T; a longer clip is cut after `most`. What is left out or cut is counted in `skipped`.
    The rest: as read_clip. Raises DataError where the path itself cannot be read."""
    if os.path.isdir(path):
        found = listing(path, STILL + MOVING, skipped)
        sources = [(entry.name if entry.is_dir() else Path(entry.name).stem, entry.path) for entry in found]
    elif os.path.isfile(path) and str(path).lower().endswith(".npz"):
        with reading(path, "not a whole npz"):
            sources = list(array_clips(path, skipped))
    else:
        raise DataError(f"{printable(path)}: {looks_like(str(path))}")
    most = min(most, MAX_SET // (max(1, len(sources)) * 3 * size**2)) if size else most
    if most < least:
        raise DataError(f"{len(sources)} clips: {most} frames of each fit in or are kept, {least} are needed")
    clips = {}
    progress = Progress("reading")
    for index, (name, source) in enumerate(sources):
        with reading(source if isinstance(source, str) else name, skipped=skipped):
            if name in clips:
                raise DataError("two clips of one name")
            clip = read_clip(source, least, most + 1, size, crop, every, fps, skipped)
            if len(clip) > most:
                count_skipped(skipped, f"frames after the first {most} (--keep-frames keeps more)", name)
            clips[name] = clip[:most]
        progress(index + 1, len(sources))
    return clips

def looks_like(path):
    """What a path without clips seems to be, and the command that would serve."""
    command = "python data_prep.py folder"
    if os.path.isfile(path) and path.lower().endswith(STILL + MOVING):
        return f"one clip, not a folder of clips: put it into a folder of its own, then {command} FOLDER"
    if not os.path.isdir(path):
        return "neither a folder of clips nor an npz: unpack an archive first, and give its folder"
    inside = listing(path, STILL + MOVING, {})
    if len(inside) > 1 and all(entry.name.lower().endswith(STILL) for entry in inside):
        return f"looks like the frames of one clip: {command} {printable(Path(path).resolve().parent)}"
    for folder in filter(os.DirEntry.is_dir, inside):
        if any(below.is_dir() or below.name.lower().endswith(MOVING) for below in os.scandir(folder)):
            return f"its clips seem to lie a level deeper: {command} {printable(folder.path)}"
    return "no usable clip"

def count_skipped(skipped, why, name):
    """Count what is left out in skipped, {kind: (text, names)}; a kind is a text without numbers, names."""
    kind = re.sub(r"<[^<>]*>|0x[0-9a-fA-F]+|'[^']*'|[0-9]+", "..", why)
    skipped.setdefault(kind, (why, []))[1].append(printable(name))

def report_skipped(skipped):
    """Print what was left out: how many, why (in the first one's words), and the first names."""
    for why, names in skipped.values():
        print(f"skipped {len(names)}: {why}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")

# ---- Drawn chairs: what `--dataset chair` trains on until the real renders are there ----------------------
# A chair is a list of convex solids, which may overlap. A solid is a lower and an upper ring of corners,
# complex [2n] (x + iy in metres; the front is +y), their heights [2n] and a colour.

AZIMUTHS = 31  # those of 'Seeing 3D Chairs', at an elevation of 20 degrees
SUPERSAMPLE = 4  # rays of a pixel: 4 x 4

def colour(hue, saturation, value):  # each 0 to 1 -> RGB, 0 to 255
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))

def ring(wide, deep=None, sides=4):  # half sizes -> complex corners of a rectangle, or of an ellipse
    corners = np.exp(2j * np.pi * (np.arange(sides) + 0.5) / sides) / np.cos(np.pi / sides)
    return corners.real * wide + 1j * corners.imag * (deep or wide)

def make_chair(rng):  # no part is thinner than a pixel of a 64 x 64 frame
    uniform = rng.uniform
    frame = colour(uniform(0.05, 0.1), uniform(0, 0.75), uniform(0.2, 0.95))  # wood, grey, white
    soft = colour(uniform(), uniform(0.25, 0.9), uniform(0.45, 0.95))
    w, d, seat = uniform((0.21, 0.20, 0.38), (0.28, 0.26, 0.50))  # half sizes of the seat, and its height
    height, lean, leg = uniform((0.36, 0.03, 0.022), (0.60, 0.14, 0.032))
    back = rng.choice(["panel", "padded", "slats", "spindles", "tub"])
    sides = 16 if back == "tub" else 4
    solids = []

    def add(low, high, lower, upper=None, tint=frame):
        rings = np.concatenate([lower, lower if upper is None else upper])
        heights = np.concatenate([low + 0 * lower.real, high + 0 * lower.real])
        solids.append((rings, heights, tint))
        if abs(rings.real.mean()) > 1e-9:  # what is not in the middle has a twin on the other side
            solids.append((-rings.conj(), heights, tint))

    add(seat - 0.04, seat, ring(w, d, sides), tint=soft if uniform() < 0.5 else frame)
    if uniform() < 0.5:  # a cushion
        add(seat, seat + 0.04, ring(0.86 * w, 0.86 * d, sides), ring(0.8 * w, 0.8 * d, sides), soft)
    x, y = np.array([w, d]) * (0.72 if back == "tub" else 1) - leg - 0.01  # where legs meet the seat
    straight = [(0, seat - 0.02, corner + ring(leg)) for corner in (x + 1j * y, x - 1j * y)]
    column = (0.02, seat - 0.02, ring(0.042, sides=12), ring(0.032, sides=12))
    spokes = [way * (w / 2 + ring(w / 2, 0.022)) for way in np.exp(1j * np.radians([90, 18, -54]))]
    legs = dict(straight=straight,
                splayed=[(0, high, uniform(1.15, 1.4) * spot, spot) for _, high, spot in straight],
                sled=[*straight, (0, 1.6 * leg, x + ring(leg, y + leg))],
                pedestal=[column, (0, 0.035, ring(w, sides=16), ring(0.85 * w, sides=16))],
                star=[column, *((0, 0.045, spoke) for spoke in spokes)])
    arms = dict(none=[], posts=[(seat - 0.04, seat + 0.2, w - 0.02 + 1j * (d - 0.06) + ring(0.018)),
                                (seat + 0.2, seat + 0.23, w - 0.02 - 0.02j + ring(0.026, d))],
                panels=[(seat * uniform(0.4, 0.9), seat + 0.2, w + 0.03 + ring(0.03, d), None, soft)])
    for part in legs[rng.choice(list(legs))] + arms[rng.choice(list(arms)) if back != "tub" else "none"]:
        add(*part)
    post = (w - 0.022, 0, 1, 0.022, 0.022, frame)
    backs = dict(panel=[(0, 0, 1, w, 0.022, soft)],
                 padded=[post, (0, uniform(0.15, 0.4), 0.96, w - 0.03, 0.028, soft)],
                 slats=[post, *((0, h, h + 0.15, w - 0.03, 0.014, frame) for h in (0.3, 0.55, 0.8))],
                 spindles=[post, (0, 0.84, 0.97, w - 0.03, 0.02, frame),
                           *((x * w, 0, 0.9, 0.014, 0.014, frame) for x in (0, 0.3, 0.6))], tub=[])
    for x, low, high, wide, deep, tint in backs[back]:  # low, high: shares of the height of the leaning back
        lower, upper = (x - 1j * (d - 0.02 + lean * share) + ring(wide, deep) for share in (low, high))
        add(seat + low * height, seat + high * height, lower, upper, tint)
    for a, b in itertools.pairwise(np.linspace(0, uniform(1.7, 2.1), 8)) if back == "tub" else ():
        angle = np.array([a, b, b, a])  # of a wedge, from the rear
        wall = (w * np.sin(angle) - 1j * d * np.cos(angle)) * [0.84, 0.84, 0.99, 0.99]
        add(seat, seat + height * (0.42 - 0.23 * wall.imag / d), wall, tint=soft)  # lower in front
    return solids

def render_chair(solids, frames, size):
    """Solids -> uint8 [frames, size, size, 3], azimuth k * 360 / 31; all azimuths together fill the frame."""
    up, level = np.sin(np.radians(20)), np.cos(np.radians(20))
    turns = np.exp(2j * np.pi * np.arange(AZIMUTHS) / AZIMUTHS)[:, None]
    seen = []  # corners [31, 2n, 3]: right, down and depth from a camera 3 m from the chair's middle
    for rings, heights, _ in solids:
        spot = turns * rings
        z = heights - 0.45
        seen.append(np.stack([-spot.real, up * spot.imag - level * z, 3 - level * spot.imag - up * z], -1))
    flat = [points[..., :2] / points[..., 2:] for points in seen]
    low, high = (extreme(np.concatenate(flat, 1), (0, 1)) for extreme in (np.min, np.max))
    big = size * SUPERSAMPLE
    step = ((high - low) / (0.92, 0.8)).max() / big  # from ray to ray
    x, y = (np.arange(big) + 0.5 - big / 2) * step + (low + high)[:, None] / 2
    rays = np.stack([*np.meshgrid(x, y), np.ones((big, big))]).astype(np.float32)
    # Along a ray, 1 / depth of a plane is linear in the ray's x and y. A ray enters a convex solid through
    # the farthest of the planes that face the camera, and leaves it through the nearest of the others.
    views = min(frames, AZIMUTHS)
    nearest = np.zeros((views, big, big), np.float32)  # 1 / depth of what each ray meets first
    pictures = np.full((views, big, big, 3), 255, np.uint8)
    for points, spots, (rings, _, tint) in zip(seen, flat, solids):
        n = len(rings) // 2
        k = np.arange(n)
        faces = np.hstack([(k, np.roll(k, -1), k + n), ((0, n), (1, n + 1), (2, n + 2))])  # 3 corners of each
        a, b, c = points[:, faces].swapaxes(0, 1)
        planes = np.cross(b - a, c - a)
        planes /= (planes * a).sum(-1, keepdims=True) + 1e-9  # now planes @ point = 1 on the face
        front = (planes * points.mean(1, keepdims=True)).sum(-1) > 1  # the solid is behind these
        light = planes @ (-0.42, 0.71, 0.57) / np.sqrt((planes**2).sum(-1))
        paint = np.clip((0.45 + 0.5 * np.maximum(light, 0))[..., None] * tint, 0, 245).astype(np.uint8)
        for k in range(views):
            x0, x1 = np.searchsorted(x, (spots[k, :, 0].min(), spots[k, :, 0].max()))
            y0, y1 = np.searchsorted(y, (spots[k, :, 1].min(), spots[k, :, 1].max()))
            window = np.s_[k, y0:y1, x0:x1]
            inverse = np.tensordot(planes[k].astype(np.float32), rays[:, y0:y1, x0:x1], 1)  # 1 / depth
            enter = inverse[front[k]]
            hit = enter.min(0) > np.maximum(inverse[~front[k]].max(0), nearest[window])
            nearest[window][hit] = enter.min(0)[hit]
            pictures[window][hit] = paint[k, front[k]][enter.argmin(0)[hit]]
    return np.stack([Image.fromarray(pictures[k % AZIMUTHS]).reduce(SUPERSAMPLE) for k in range(frames)])

def draw_chairs(clips=64, frames=16, size=64, seed=0, progress=lambda done, total: None):
    """Drawn chairs -> Clips, uint8 [clips, frames, size, size, 3]: an identity a clip, one rotation for all.
    Clip j depends on seed and j alone. progress(done, total) is called after every clip."""
    videos = np.empty((clips, frames, size, size, 3), np.uint8)
    for index in range(clips):
        videos[index] = render_chair(make_chair(np.random.default_rng([seed, index])), frames, size)
        progress(index + 1, clips)
    names = [f"chair{index:03d}" for index in range(clips)]
    return Clips(videos, np.arange(clips), np.zeros(clips, np.int64), names, ["rotation"], names,
                 f"drawn chairs (seed {seed}), a stand-in: python data_prep.py chair prepares the real ones")

# ---- Drawn people: what `--dataset weizmann` trains on until the real films are there ---------------------
# A person is a build, colours and a still background. Points are complex, x + iy with y down.

PERSONS = ("daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar")
KEPT = 40  # frames of a drawn clip: a window of 16 and more than a period of any action
# Seen from the side?; frames of a period, and to cross the picture (0: stays); phase of the far limbs. Then
# four key values, or 2 that come twice, or 1 that stays, of thigh, knee, arm, elbow, lean (degrees, forwards,
# or outwards if seen from the front) and lift (off the ground, in heights of the person; below 0 legs bend).
MOTIONS = dict(
    bend=(True, 32, 0, 0, (2, -4), -2, (4, 22), 4, (0, 126), 0),
    jack=(False, 12, 0, 0, (2, 16, 29, 16), 0, (10, 85, 160, 85), 6, 0, (0, 0.08)),
    jump=(True, 8, 16, 0, (62, -4, 34, 28), (-105, -12, -56, -40), (-60, 60, 110, 30), 15,
          (44, 14, 6, 16), (0, 0.08, 0.2, 0.02)),
    pjump=(False, 16, 0, 0, 3, 0, (10, 26), 4, 0, (-0.26, 0.2)),
    run=(True, 8, 10, 0.5, (52, 6, -36, 16), (-50, -24, -26, -105), (-50, -5, 45, 0), 80, 15, (0.05, 0)),
    side=(False, 14, 15, 0, (32, 2), 0, (28, 14), 8, 0, (0, 0.06)),
    skip=(True, 16, 14, 0.5, (78, 24, -14, 10), (-95, -18, -8, -45), (-40, 0, 50, 10), 30, 4, (0.13, 0)),
    walk=(True, 12, 15, 0.5, (28, 2, -26, 14), (-6, -4, -16, -52), (-26, 0, 26, 0), 14, 3, 0),
    wave1=(False, 16, 0, 0, 4, 0, (114, 142), (-16, 66), 0, 0),
    wave2=(False, 16, 0, 0, 4, 0, (84, 150), (-8, 50), 0, 0))
ACTIONS = tuple(MOTIONS)

def make_background(rng, hue, kind, size):  # a wall over a ground -> [size, size, 3], 0 to 255
    rows, columns = ((14, 7), (6, 6), (1, 10), (10, 1))[kind]  # bricks, slabs, planks, boards
    y, x = (np.mgrid[:size, :size][..., None] + 0.5) / size
    row = (y * rows).astype(int)
    column = x * columns + 0.5 * (row % 2)  # every other row is shifted
    stones = rng.normal(1, 0.07, (rows, columns + 1))[row, column.astype(int)]
    joints = (y * rows % 1 < 0.016 * rows) | (column % 1 < 0.016 * columns)
    wall = colour(hue, 0.3, 0.75) * stones * np.where(joints, 0.7, 1)
    ground = colour(rng.uniform(), 0.2, rng.uniform(0.4, 0.65))
    spots = rng.normal(1, 0.03, (size, size, 1))
    return (np.where(y < rng.uniform(0.72, 0.8), wall, ground) * spots).clip(0, 255)

def bar(film, a, b, radius, tint):  # paints a round bar from a to b, [T, 1, 1], on film [T, H, W, 3]
    ends = np.stack([a, b]).imag
    rows = slice(max(0, int(ends.min() - radius)), int(ends.max() + radius) + 1)
    y, x = np.mgrid[:film.shape[1], :film.shape[2]][:, rows] + np.float32(0.5)
    spot = x + 1j * y - a
    along = ((spot * (b - a).conj()).real / (abs(b - a) ** 2 + 1e-9)).clip(0, 1)
    away = abs(spot - along * (b - a))[..., None]
    light = 1.04 - 0.28 * (away / radius) ** 2  # darker at the rim: it looks round
    film[:, rows] += (radius - away + 0.5).clip(0, 1) * (light * tint - film[:, rows])

def limb(start, angle, bend, side, length, thick, tip, tints):  # its bars: from, to, radius, colour
    joint = start + length * 1j * np.exp(-1j * side * np.radians(angle))  # from straight down to the side
    end = joint + length * 1j * np.exp(-1j * side * np.radians(angle + bend))
    return list(zip((start, joint, end), (joint, end, end + tip), (thick, 0.8 * thick, 0.75 * thick), tints))

def draw_clip(height, girth, clothes, background, action, t):  # frames t [T, 1, 1] -> uint8 [T, H, W, 3]
    from_side, period, crossing, lag, *joints = MOTIONS[action]
    there = t / crossing % 2 if crossing else np.full(t.shape, 0.5)  # from left to right and back again
    facing = np.where((there < 1) | (not from_side), 1, -1)
    limbs = []  # in heights of the person, from the middle of the hips
    for far in (True, False):
        shirt, skin, trousers = clothes * (0.75 if far else 1)
        beat = 4 * (t / period + lag * far) % 4
        thigh, knee, arm, elbow, lean, lift = (np.interp(beat, range(5), np.resize(key, 5)) for key in joints)
        arm, elbow = (8, 6) if far and action == "wave1" else (arm, elbow)  # one arm hangs
        side = -facing if far and not from_side else facing
        aside, toe = (0, 0.055 * side) if from_side else (side, 0.02 * side)
        spine = -1j * np.exp(1j * facing * np.radians(lean))
        bone = 0.25 * (1 + lift.clip(max=0))
        limbs += [limb(0.285 * spine + 0.085 * aside, arm, elbow, side, 0.16, 0.034, 0, (shirt, skin, skin)),
                  limb(0.045 * aside, thigh, knee, side, bone, 0.045, toe, (trousers, trousers, 0.3 * skin))]
    far_arm, far_leg, near_arm, near_leg = limbs
    head = 0.41 * spine
    face = head + 0.036 * facing * from_side + 0.02j
    trunk = [(0 * head, 0.65 * head, girth, shirt), (head, head, 0.075, 0.3 * skin), (face, face, 0.06, skin)]
    lowest = np.maximum(far_leg[2][0].imag, near_leg[2][0].imag)  # stands on the ground, or is lifted off it
    hips = (0.17 + 0.66 * np.minimum(there, 2 - there) + 0.865j) / height - 1j * (lowest + lift.clip(0))
    film = np.repeat(background[None].astype(np.float32), len(t), 0)
    scale = height * len(background)
    for a, b, radius, tint in far_arm + far_leg + near_leg + trunk + near_arm:
        bar(film, scale * (hips + a), scale * (hips + b), scale * radius, tint)
    return np.rint(film).astype(np.uint8)

def draw_people(frames=16, size=64, seed=0, progress=lambda done, total: None):
    """Drawn people -> Clips, uint8 [90, frames, size, size, 3], 9 persons x 10 actions; `full` keeps at least
    40 frames of each. progress(done, total) is called after every clip."""
    pairs = list(itertools.product(PERSONS, MOTIONS))
    clips = []
    for index in range(len(PERSONS)):
        rng = np.random.default_rng([seed, index])
        hue = index / len(PERSONS) + rng.uniform(0, 0.1)
        background = make_background(rng, hue, index % 4, size)
        clothes = np.array([colour(hue + 0.5, 0.75, rng.uniform(0.55, 0.95)),  # shirt
                            colour(0.07, rng.uniform(0.3, 0.55), rng.uniform(0.4, 0.95)),  # skin
                            colour(hue + rng.uniform(0.8, 1.2), 0.45, rng.uniform(0.2, 0.5))])  # trousers
        person = 0.54 + 0.015 * (index * 4 % 9), rng.uniform(0.063, 0.09), clothes
        for action in MOTIONS:
            t = rng.integers(MOTIONS[action][1]) + np.arange(max(frames, KEPT))  # a phase of their own
            clips.append(draw_clip(*person, background, action, t[:, None, None]))
            progress(len(clips), len(pairs))
    source = f"drawn people (seed {seed}), a stand-in: python data_prep.py weizmann prepares the real films"
    return from_clips(clips, frames, ["_".join(pair) for pair in pairs], *zip(*pairs), source)

# ---- Downloads and archives: streams that are never unpacked ---------------------------------------------
class Remote:
    """The bytes of an http(s) address from `position` on, as a file that goes on where a connection broke."""
    def __init__(self, url, position=0):
        self.url = url
        self.position = position
        self.response = None
        self.progress = Progress("reading MB")

    def connect(self):
        request = Request(self.url, headers={"User-Agent": "data_prep", "Range": f"bytes={self.position}-"})
        self.response = urlopen(request, timeout=TIMEOUT)
        skip = 0 if self.response.status == 206 else self.position  # a server without ranges begins anew
        self.total = int(self.response.headers.get("Content-Length", 0)) + self.position - skip
        while skip:
            skip -= len(self.response.read(min(skip, 1 << 20))) or skip

    def read(self, count=MAX_FILE):
        """Up to `count` bytes, none at the end. OSError: refused, too many, or six failures in a row."""
        for failures in range(6):
            try:
                if self.response is None:
                    self.connect()
                data = self.response.read(min(count, 1 << 20))
                self.position += len(data)
                self.progress(self.position / 1e6, self.total / 1e6)
                if data and self.position < MAX_STREAM or self.position >= self.total:
                    return data
                raise OSError("the connection broke, or the file is endless")
            except Exception as error:  # OSError, ValueError or http.client's
                if 400 <= getattr(error, "code", 0) < 500 and error.code not in (408, 429):
                    raise ConnectionRefusedError(f"{self.url}: check it: answer {error.code}") from None
                self.response = None
                why = printable(error) or type(error).__name__
                time.sleep(BACKOFF * 2**failures)
        raise ConnectionError(f"{self.url}: {why}, at byte {self.position}: run the same command again")

def download_if_url(source, options):
    """A path on this machine for --source. An address is fetched whole into OUT/downloads, where NAME.part
    goes on after a stop, and noted in options.fetched. Raises OSError."""
    if "://" not in source:
        return Path(source)
    name = re.sub("[^A-Za-z0-9._-]", "", source.split("?")[0].rstrip("/").rpartition("/")[2])
    path = Path(options.out, "downloads", f"{zlib.crc32(source.encode()):08x}-{name}")  # names may be alike
    part = path.with_name(path.name + ".part")
    options.fetched.append(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            begin = max(0, file.tell() - 1)  # the last byte once more: a server refuses to send nothing
            file.truncate(begin)
            file.writelines(iter(Remote(source, begin).read, b""))
        os.replace(part, path)
    return path

class SmallHeaders(tarfile.TarInfo):
    """tarfile reads a long name into memory, and passes over a member, whatever size its header declares."""
    @classmethod
    def frombuf(cls, buffer, encoding, errors):
        info = super().frombuf(buffer, encoding, errors)
        if info.size > (1 << 30 if info.isreg() else 1 << 20):
            raise tarfile.ReadError(f"a member of {info.size} bytes, which no set has")
        return info

def members(source, skipped):
    """(name, read) of every regular file in a folder, a zip or a tar (a Path), or in a tar (an address).
    read() gives its bytes, at most MAX_FILE. Nothing is written under a member's name and no link is
    followed, so no name leads anywhere. Of a damaged archive, all before the damage is read. OSError."""
    def usable(name, regular, size):
        if not regular or size > MAX_FILE:
            count_skipped(skipped, f"a link or another special member, or over {MAX_FILE} bytes", name)
        return regular and size <= MAX_FILE

    local = isinstance(source, Path)
    with reading(source, "the rest of the archive is damaged", skipped):
        if local and source.is_dir():
            for path in sorted(source.rglob("*"), key=natural_key):
                regular = path.is_file() and not path.is_symlink()
                if (path.is_symlink() or not path.is_dir()) and usable(path, regular, path.lstat().st_size):
                    yield path.relative_to(source).as_posix(), path.read_bytes
        elif local and zipfile.is_zipfile(source):
            archive = zipfile.ZipFile(source)
            for info in archive.infolist():
                regular = info.external_attr >> 28 in (0, 8)  # the kind in st_mode; 0: none was given
                if not info.is_dir() and usable(info.filename, regular, info.file_size):
                    yield info.filename, lambda: archive.read(info)
        else:
            stream = io.FileIO if local else Remote
            unpack = {b"BZh": bz2.open, b"\x1f\x8b\x08": gzip.open}.get(stream(source).read(3), lambda f: f)
            archive = tarfile.open(fileobj=unpack(stream(source)), mode="r|", tarinfo=SmallHeaders)
            while info := archive.next():
                archive.members.clear()  # tarfile would keep every header
                if not info.isdir() and usable(info.name, info.isreg(), info.size):
                    yield info.name, lambda: archive.extractfile(info).read()

# ---- The sets: a function a command, (options, skipped) -> Clips ------------------------------------------
CHAIR = "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar"
WEIZMANN = "http://www.wisdom.weizmann.ac.il/~vision/VideoAnalysis/Demos/SpaceTimeActions/DB/"
GOLF = "http://data.csail.mit.edu/videogan/golf.tar.bz2"
STRIP = re.compile(r".*frames-stable-many/|\.\w+$")  # what a golf strip's path has around its name
RENDER = re.compile(r"(?:.*/)?([^/]+)/renders/image_([0-9]{1,9})_p([0-9]{1,9})_t[0-9]+_r[0-9]+\.png")
FILM = re.compile(rf"(?:.*/)?([a-z]+)_({'|'.join(ACTIONS)})([12]?)\.avi", re.IGNORECASE)

def chair(options, skipped):
    """'Seeing 3D Chairs' (section 4.1, appendix A).
    A model has 31 views at each of two elevations. Its four sequences are, at either, 16 views from the first
    on, and 16 from half a turn later on, over the end of the circle. 820 models are drawn with the seed.
    Clips come sequence by sequence, first the lower elevation from the first view; --clips cuts the list."""
    source = download_if_url(options.source or CHAIR, options)
    views = {}  # {model: {elevation: its views}}: a first pass reads the names alone
    for total, (name, _) in enumerate(members(source, {}), 1):
        if match := RENDER.fullmatch(name):
            views.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(match[2])
    views = {model: dict(sorted(views[model].items())[:2]) for model in sorted(views)}
    usable = [model for model in views if max(map(len, views[model].values())) >= options.frames]
    for model in views.keys() - {*usable}:
        count_skipped(skipped, f"a model with fewer than {options.frames} renders", model)
    drawn = [usable[k] for k in np.random.default_rng(options.seed).permutation(len(usable))[:CHAIRS]]
    turns = {(model, elevation): {} for model in drawn for elevation in views[model]}  # {view: its picture}
    progress = Progress("resizing files")
    for done, (name, read) in enumerate(members(source, skipped)):
        match = RENDER.fullmatch(name)
        if match and (turn := turns.get((match[1], int(match[3])))) is not None:
            with reading(name, skipped=skipped):
                picture = to_rgb(Image.open(io.BytesIO(read()), formats=DECODERS))
                turn[int(match[2])] = crop_resize(picture, options.size, share=2 / 3)
        progress(done, total)
    clips = {}  # {(kind of sequence, model): its pictures}
    for (model, elevation), turn in turns.items():
        circle = [turn[view] for view in sorted(turn)] * 2
        for half, start in ("first", 0), ("second", (len(turn) + 1) // 2):
            if len(turn) >= options.frames:
                kind = f"elevation {elevation}, {half} half of the turn"
                clips[kind, model] = circle[start : start + options.frames]
    kinds, models = zip(*sorted(clips, key=lambda key: key[0])[: options.clips]) if clips else ((), ())
    return from_clips([clips.pop(key) for key in zip(kinds, models)], options.frames,
                      [f"{model} {kind}" for kind, model in zip(kinds, models)], models, kinds,
                      f"Seeing 3D Chairs, {options.source or CHAIR}")

def weizmann(options, skipped):
    """Weizmann's actions (section 4.1, appendix A): people x actions, whole films in `full`.
    Of a person's two films of one action (lena's run, skip, walk) the first is taken."""
    source = options.source or WEIZMANN
    whole = "://" not in source or re.search(r"\.(zip|tar|gz|bz2)(\?|$)", source)
    addresses = [source] if whole else [f"{source.rstrip('/')}/{action}.zip" for action in ACTIONS]
    paths = [download_if_url(address, options) for address in addresses]
    paths += [zipped for path in paths if path.is_dir() for zipped in sorted(path.rglob("*.zip"))]
    films = {}
    for name, read in (member for path in paths for member in members(path, skipped)):
        if match := FILM.fullmatch(name):
            with reading(name, skipped=skipped):
                key = match[1].lower(), match[2].lower()
                if match[3] == "2" or key in films:
                    raise DataError("a person's second film of an action")
                films[key] = read_clip(read(), options.frames, size=options.size, crop=not options.no_crop)
    keys = sorted(films)[: options.clips]
    source += ", not cropped" if options.no_crop else ""
    return from_clips([films.pop(key) for key in keys], options.frames, ["_".join(key) for key in keys],
                      [who for who, _ in keys], [action for _, action in keys], f"Weizmann actions, {source}")

def golf(options, skipped):
    """Golf scenes of 'Generating Videos with Scene Dynamics' (section 4.1).
    Reading stops when there are enough clips, so the draw is made on the way: the seed tosses for every
    strip, one in four is taken, and one from each video (a folder) where the list has as many videos as clips
    are wanted. What the toss passed over fills up a small archive. A clip is a strip's first frames."""
    source = options.source or GOLF
    names = golf_list(source)
    video_of = os.path.dirname  # a video's strips share a folder
    one_each = names is not None and len({*map(video_of, names)}) >= options.clips
    clips, spare = {}, {}
    archive = source if "://" in source and not options.keep else download_if_url(source, options)
    for path, read in members(archive, skipped):
        name = STRIP.sub("", path)
        if not path.lower().endswith((".jpg", ".jpeg", ".png")):
            continue
        toss = np.random.default_rng([options.seed, zlib.crc32(name.encode())]).random() < 0.25
        take = clips if toss and not (one_each and video_of(name) in map(video_of, clips)) else spare
        with reading(name, skipped=skipped):
            if names is not None and name not in names:
                raise DataError("not in the list")
            if take is clips or len(spare) < options.clips:
                take[name] = read_clip(read(), options.frames, options.frames, options.size)
        if len(clips) >= options.clips:
            break
    for again, name in itertools.product((False, True), [*spare]):  # what is missing: of other videos first
        if name in spare and (again or video_of(name) not in map(video_of, clips)):
            clips[name] = spare.pop(name)
    order = sorted([*clips][: options.clips], key=natural_key)
    return from_clips([clips.pop(name) for name in order], options.frames, order, order, order,
                      f"golf scenes, {source}")

def golf_list(source):
    """golf.txt beside the archive -> the set of its strips' names; None without it: every strip counts."""
    try:
        if "://" in source:
            remote = Remote(f"{source.rpartition('/')[0]}/golf.txt")
            text = b"".join(itertools.islice(iter(remote.read, b""), 256))
        else:
            text = Path(source if os.path.isdir(source) else Path(source).parent, "golf.txt").read_bytes()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        return print(f"no list, every strip counts: {printable(error, 200)}")
    return {STRIP.sub("", line.strip()) for line in text.decode("utf-8", "replace").splitlines()}

def folder(options, skipped):
    """Your own: a folder of videos, GIFs, strips or frame folders, or an npz of arrays."""
    clips = read_clips(options.source, skipped, options.frames, options.keep_frames or 4 * options.frames,
                       options.size, not options.no_crop, options.every, options.fps)
    for name in [name for name in clips if options.grid and not all(name.rpartition("_")[::2])]:
        count_skipped(skipped, "--grid reads static_transient, as daria_wave1; this is no such name", name)
        del clips[name]
    if not clips:
        raise DataError(f"{printable(options.source)}: {looks_like(options.source)}")
    names = [printable(name) for name in clips]
    pairs = [name.rpartition("_")[::2] if options.grid else (name, name) for name in names]
    source = f"clips of {printable(Path(options.source).resolve().name)}"
    return from_clips([clips.pop(name) for name in list(clips)], options.frames, names, *zip(*pairs), source)

def draw(options, _):
    """The drawn stand-ins, as a file."""
    more = options.frames, options.size, options.seed, Progress("drawing")
    return draw_people(*more) if options.what == "weizmann" else draw_chairs(options.clips or 64, *more)

# ---- Commands --------------------------------------------------------------------------------------------
class Progress:
    """A line every five seconds: how many are done, of how many, and how long the rest takes."""
    def __init__(self, what):
        self.what = what
        self.start = self.told = time.monotonic()

    def __call__(self, done, total=None):
        now = time.monotonic()
        if now - self.told >= 5:
            self.told = now
            seconds = (now - self.start) * ((total or 0) / max(done, 1e-9) - 1)
            of = f" of {total:.0f}, {seconds:.0f} s left" if total else ""
            print(f"{self.what}: {done:.0f}{of}", file=sys.stderr)

class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, as every other trouble
        raise DataError(f"{message}; see {self.prog} --help")

def between(low, high, kind=int):  # the argparse type of such a number
    def number(text):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: {low} to {high} expected")
        return kind(text)
    return number

def parse(arguments):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for prepare in (chair, weizmann, golf, folder, draw):
        command = prepare.__name__
        sub = commands.add_parser(command, help=prepare.__doc__.splitlines()[0], description=prepare.__doc__)
        sub.set_defaults(prepare=prepare, source=None, clips=0, fetched=[])
        add = sub.add_argument
        add("--frames", type=between(1, MAX_FRAMES), default=16, help="frames a clip (16)")
        add("--size", type=between(8, 1024), default=64, help="side of a frame in pixels (64)")
        add("--out", default="data", help="folder for NAME.npz and NAME.png (data)")
        add("--name", required=command == "folder", help="the set's name (the command's, or drawn_WHAT)")
        add("--force", action="store_true", help="redo a set that is already there")
        if command == "folder":
            add("source", metavar="path")
            add("--grid", action="store_true", help="clips are named static_transient: two dictionaries")
            add("--keep-frames", type=between(1, MAX_FRAMES), help="of a longer clip (4 x --frames)")
            either = sub.add_mutually_exclusive_group().add_argument
            either("--every", type=between(1, MAX_FRAMES), default=1, help="keep each EVERY-th frame")
            either("--fps", type=between(0.01, 1000, float), help="keep FPS frames of a second of clip time")
        else:
            add("--clips", type=between(1, 100_000), help="how many: the first ones (all; draw chair: 64)",
                default=dict(chair=4 * CHAIRS, weizmann=90, golf=GOLFS).get(command))
            add("--seed", type=between(0, 2**32), default=0, help="of the draw (0)")
        if command == "draw":
            add("what", choices=("chair", "weizmann"))
        if command in ("chair", "weizmann", "golf"):
            add("--source", help="a folder, an archive or an http(s) address instead of the official address")
            add("--keep", action="store_true", help="keep what was downloaded; golf: download it whole")
        if command in ("folder", "weizmann"):
            add("--no-crop", action="store_true", help="squeeze whole frames instead of cutting a square")
    return parser.parse_args(arguments)

def run(options):
    """Make data/NAME.npz and its contact sheet. Raises DataError, OSError."""
    name = options.name or (f"drawn_{options.what}" if options.command == "draw" else options.command)
    source = options.source or CHAIR
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(f"--name {name}: letters, digits, dot, dash and underscore expected")
    if not os.path.exists(source) and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?", source):
        raise DataError(f"{printable(source)}: does not exist, and is no http or https address")
    if options.command == "draw" and options.what == "weizmann" and options.clips:
        raise DataError("--clips: draw weizmann draws its whole grid of 90 clips; leave it out")
    if (options.clips or 0) * options.frames * options.size**2 * 3 > MAX_SET:
        raise DataError(f"{options.clips} clips of that --size and --frames pass {MAX_SET >> 30} GiB")
    if options.size not in SIDES or options.frames < MIN_FRAMES:
        print(f"note: nav.py trains on sides of {', '.join(map(str, SIDES))} and {MIN_FRAMES} frames or more")
    out = Path(options.out, f"{name}.npz")
    if out.exists() and not options.force:
        return print(f"{printable(out)} is there: {load(out)}; --force redoes it")
    out.parent.mkdir(parents=True, exist_ok=True)
    skipped = {}
    try:
        clips = options.prepare(options, skipped)
    finally:
        report_skipped(skipped)
    save(clips, out)
    rows = np.unique(np.linspace(0, len(clips.names) - 1, 16).round().astype(int))
    sheet(clips.videos[rows][:, :16], out.with_suffix(".png"), row_labels=[clips.names[j][:24] for j in rows])
    print(f"{printable(out)}: {printable(clips, 300)}\nlook at {printable(out.with_suffix('.png'))}")
    for path in options.fetched:
        print(f"kept {printable(path)}") if options.keep else path.unlink()

def main(arguments=None):
    """The command line -> exit status: 0, 2 after an error of one line, 130 where it was interrupted."""
    try:
        run(parse(arguments))
        return 0
    except (DataError, OSError) as error:
        print(f"data_prep.py: {printable(error, 500)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data_prep.py: interrupted; nothing half-written is left", file=sys.stderr)
        return 130

if __name__ == "__main__":
    sys.exit(main())
