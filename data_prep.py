"""Every data set of nav.py becomes one file, data/NAME.npz, with a contact sheet data/NAME.png beside it.

    python data_prep.py folder PATH --name mine            # yours: videos, GIFs, strips, folders of frames
    python data_prep.py folder clips.npz --name w4 --grid  # uint8 arrays [T, H, W, 3] named static_transient
    python data_prep.py chair                              # the paper's three sets: chair, weizmann, golf
    python data_prep.py draw chair --clips 64              # drawn stand-ins: nav.py draws the same by itself

A data/NAME.npz that is there is left alone without --force. Frames are cut to a centred square and resized.
"""
import argparse
import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from filelock import FileLock, Timeout  # comes with torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from drawings import ACTIONS, KEPT, MOTIONS, PERSONS, draw_clip, make_chair, make_person, render_chair

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

    @property
    def grid(self):
        """Whether clips share rows of both dictionaries, as persons x actions do."""
        rows = len(self.static_names), len(self.transient_names)
        return 1 < min(rows) and max(rows) < len(self.names)

    @property
    def fingerprint(self):
        """SHA-256 of all that training sees."""
        digest = hashlib.sha256()
        for array in (self.full, self.length, self.static_id, self.transient_id):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)  # no copy: it may be all the memory there is
        return digest.hexdigest()

    def __str__(self):
        return "{} clips x {} frames x {} x {}, {}".format(*self.videos.shape[:4], self.source)

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
        for info in {i.filename: i for i in archive.zip.infolist() if i.filename.endswith(".npy")}.values():
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
            low, total = arrays["length"].min(), sum(arrays["length"].tolist())  # exact: an array's wraps
            check(low >= sides["L"] and total == sides["F"], "length", f"is {low} or more, {total} in all")
        arrays |= {key: [printable(n, 1000) for n in arrays[key]] for key in keys if key.endswith("names")}
        arrays["source"] = printable(arrays["source"], 200)
        return Clips(**{key: arrays[key] for key in keys})

# ---- A run's folder ---------------------------------------------------------------------------------------
RUN_FILES = ("config.json", "checkpoint.pt", "log.csv", "metrics.json", "curve*.png", "reconstructions*",
             "samples*", "exchange*", "encoded*", "interpolation*", "ablation*")

def complain(text):
    """One line on standard error."""
    print(f"nav: {printable(text, 10**4)}", file=sys.stderr, flush=True)

def write(path, content):
    """Write bytes, a text, or anything else as JSON, whole or not at all, its folder made. Raises OSError."""
    content = content if isinstance(content, (str, bytes)) else json.dumps(content, indent=1)
    content = content if isinstance(content, bytes) else f"{content}\n".encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, lambda temporary: temporary.write_bytes(content))

def commit():
    """The commit of this script, or None outside a clone or without git."""
    git = [shutil.which("git"), "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return git[0] and subprocess.run(git, capture_output=True, text=True).stdout.strip() or None

def take_folder(folder, keep, say):
    """Make the folder and lock it while the result lives -> the lock. DataError where another run holds it.
    Unless it is to be kept, what an earlier run left goes to earlier-1, ... in it, which `say` is told."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(f"{folder}: another run writes there; let it end, or give another --out") from None
    left = [] if keep else [path for pattern in RUN_FILES for path in folder.glob(pattern)]
    if left:
        shelf = next(path for i in range(1, 10**6) if not (path := folder / f"earlier-{i}").exists())
        shelf.mkdir()
        for path in left:
            path.rename(shelf / path.name)
        say(f"{folder} held a run: moved to {shelf}")
    return lock

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

def side_by_side(clips):
    """uint8 [K, L, H, W, 3] -> one video [L, rows * H, columns * W, 3] of all of them."""
    across = int(np.ceil(len(clips) ** 0.5))
    tiles = np.concatenate([clips, np.full_like(clips[:1], 255).repeat(-len(clips) % across, 0)])
    tiles = tiles.reshape(-1, across, *clips.shape[1:]).transpose(2, 0, 3, 1, 4, 5)
    return tiles.reshape(clips.shape[1], -1, across * clips.shape[3], 3)

def chart(path, seconds, panels):
    """A PNG of curves over seconds. panels: {title: (values, whether their axis is logarithmic)}."""
    def ticks(low, high):
        step = next(m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5) if high - low <= 6 * m * 10.0**e)
        return step * np.arange(np.ceil(low / step), high // step + 1)

    image = Image.new("RGB", (640, 260 * len(panels)), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    across = 560 / seconds[-1]
    for top, (title, (values, logarithmic)) in zip(itertools.count(30, 260), panels.items()):
        scale = np.log10 if logarithmic else np.asarray
        values = np.clip(values, 1e-6, None)
        marks = np.outer(10.0 ** np.arange(-6, 4), (1, 1.5, 2, 3, 5, 7)).ravel()
        marks = marks if logarithmic else ticks(values.min(), values.max())
        low, high = scale(values.min()) - 0.02, scale(values.max()) + 0.02
        y = top + 180 * (high - scale(values)) / (high - low)
        for mark, at in zip(marks, top + 180 * (high - scale(marks)) / (high - low)):
            if top <= at <= top + 180:
                draw.line((60, at, 620, at), (225,) * 3)
                draw.text((52, at), f"{mark:g}", "black", font, anchor="rm")
        for second in ticks(0, seconds[-1]):
            draw.text((60 + across * second, top + 186), f"{second:g} s", "black", font, anchor="mt")
        draw.text((60, top - 20), title, "black", font)
        draw.rectangle((60, top, 620, top + 180), None, (150,) * 3)
        draw.line(list(zip(60 + across * np.array(seconds), y)), (31, 119, 180), 2)
    write_beside(path, image.save)

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
            with reading(ascii(entry.name)), Image.open(entry.path, formats=DECODERS) as picture:
                image = to_rgb(picture)
            yield image, None, ascii(entry.name)
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
        return (yield from video_frames(file))
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
        promised = stream.frames if container.format.name == "avi" else 0  # others may hide some
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
        if shown and not promised:  # by time: the pictures' own, or the file's, where sound may run on
            lasts = stream.duration and stream.duration * stream.time_base or (container.duration or 0) / 1e6
            promised = int(0.95 * held * float(lasts) / (now - begin + 1 / rate))
        if held < promised:
            raise DataError(f"promises {promised} frames, holds {held}: cut short? fetch it again")
        if shown:
            yield image, now - begin + 1 / rate, f"frame {shown - 1}"

def natural_key(name):
    """Sorts frame2 before frame10: a longer number, without leading zeros, comes later."""
    return [(len(part), part) if k % 2 else part for k, part in enumerate(re.split("0*([0-9]+)", str(name)))]

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
            video += [crop_resize(image, size, crop)] * min(times, most)
            if video and video[0].nbytes * len(video) > MAX_CLIP:
                raise DataError(f"over {MAX_CLIP} bytes once decoded: a shorter clip is needed")
            if len(video) >= most:
                break
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
        return "neither a folder nor an npz with clips in it: unpack an archive first, give its folder"
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

# ---- Drawn stand-ins, until the real clips are there (drawings.py) ---------------------------------------
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

def draw_people(frames=16, size=64, seed=0, progress=lambda done, total: None):
    """Drawn people -> Clips, uint8 [90, frames, size, size, 3], 9 persons x 10 actions; `full` keeps at least
    40 frames of each. progress(done, total) is called after every clip."""
    pairs = list(itertools.product(PERSONS, MOTIONS))
    clips = []
    for index in range(len(PERSONS)):
        rng = np.random.default_rng([seed, index])
        person = make_person(rng, index, size)
        for action in MOTIONS:
            t = rng.integers(MOTIONS[action][1]) + np.arange(max(frames, KEPT))  # a phase of their own
            clips.append(draw_clip(*person, action, t[:, None, None]))
            progress(len(clips), len(pairs))
    source = f"drawn people (seed {seed}), a stand-in: python data_prep.py weizmann prepares the real films"
    return from_clips(clips, frames, ["_".join(pair) for pair in pairs], *zip(*pairs), source)

# ---- Clips for nav.py: which ones, and which of their frames ---------------------------------------------
def data_path(dataset):
    """--dataset as a file: PATH.npz as it is, or data/NAME.npz."""
    return Path(dataset) if dataset.lower().endswith(".npz") else Path("data", f"{dataset}.npz")

def find(dataset, count=None, layout=None, drawn=False):
    """nav.py's --dataset, --clips and --layout -> (Clips, their file or None). Raises DataError.
    Stand-ins are drawn for chair and weizmann where there is no such file, or if they are to be `drawn`."""
    path = data_path(dataset)
    drawn = drawn or not path.is_file()
    if not drawn:
        clips = load(path)
    elif dataset == "chair":
        clips = draw_chairs(count or 64, progress=Progress("drawing stand-ins"))
    elif dataset == "weizmann":
        clips = draw_people(progress=Progress("drawing stand-ins"))
    else:
        folder = dataset if os.path.isdir(dataset) else "PATH"
        how = "golf" if dataset == "golf" else f"folder {folder} --name NAME"
        raise DataError(f"--dataset {dataset}: there is no {path}; python data_prep.py {how} makes one")
    if count and count > len(clips.names):
        raise DataError(f"--clips {count}: {dataset} holds {len(clips.names)}")
    clips = compact(subset(clips, range(count))) if count else clips
    if layout == "grid" and not clips.grid:
        raise DataError(f"--layout grid: {len(clips.static_names)} static and {len(clips.transient_names)} "
                        f"transient names for {len(clips.names)} clips make none; folder --grid makes one")
    if layout in ("static", "both", "transient"):  # figure 2, section 4.1
        own = np.arange(len(clips.names)), clips.names
        shared = np.zeros(len(clips.names), np.int64), ["all"]
        static = shared if layout == "transient" else own
        transient = shared if layout == "static" else own
        clips = dataclasses.replace(clips, static_id=static[0], static_names=static[1],
                                    transient_id=transient[0], transient_names=transient[1])
    return clips, None if drawn else str(path.resolve())

def subset(clips, keep, every=1):
    """The clips of indices `keep`, every `every`-th frame of them -> Clips with the same dictionaries."""
    ends = clips.length.cumsum()
    pieces = [clips.full[ends[j] - clips.length[j]:ends[j]][::every] for j in keep]
    return dataclasses.replace(
        clips, videos=clips.videos[keep, ::every], static_id=clips.static_id[keep],
        transient_id=clips.transient_id[keep], names=[clips.names[j] for j in keep],
        full=np.concatenate(pieces), length=np.array([len(piece) for piece in pieces]))

def compact(clips):
    """The same clips without the dictionary rows that none of them uses: what is not seen has no codes."""
    i, static_id = np.unique(clips.static_id, return_inverse=True)
    k, transient_id = np.unique(clips.transient_id, return_inverse=True)
    return dataclasses.replace(
        clips, static_id=static_id, static_names=[clips.static_names[row] for row in i],
        transient_id=transient_id, transient_names=[clips.transient_names[row] for row in k])

def movement(film):
    """What moves in a film uint8 [T, H, W, 3], H and W multiples of 16 -> float32 [T, 256], of mean square
    norm 1: |frame - the frame before|, grey, averaged to 16 x 16."""
    T, H, W = film.shape[:3]
    change = np.abs(np.diff(film.mean(3, dtype=np.float32), axis=0))
    change = np.concatenate([change[:1], change]).reshape(T, 16, H // 16, 16, W // 16).mean((2, 4))
    return change.reshape(T, 256) / max(1e-9, np.sqrt(np.square(change).sum() / T))

def aligned(clips, unseen=(), starts=64, sweeps=40):
    """nav.py --window aligned: videos are the L frames in which clips of a transient row move alike -> Clips.
    Of each row, film after film takes the window that moves most like the mean of the others', until none
    changes; it starts from those most like one of the films' windows, of which up to `starts` are tried. The
    start whose windows differ least in the end, per motion of their mean, wins. Clips of indices `unseen`
    have no say in it: they take the window that moves most like that mean."""
    L = clips.videos.shape[1]
    films = np.split(clips.full, clips.length.cumsum()[:-1])
    begin = np.zeros(len(films), int)
    for row in np.unique(clips.transient_id):
        members = sorted(np.flatnonzero(clips.transient_id == row), key=lambda j: j in unseen)
        n = len({*members}.difference(unseen)) or 1  # that have a say: the first ones
        windows = [sliding_window_view(movement(films[j]), L, 0).reshape(-1, 256 * L) for j in members]
        first = [window for w in windows[:n] for window in w]
        spread = np.linspace(0, len(first) - 1, min(starts, len(first))).astype(int)
        first = np.stack([first[j] for j in spread])  # [starts, 256 * L]
        at = np.stack([(np.square(w).sum(1) - 2 * first @ w.T).argmin(1) for w in windows])
        chosen = np.stack([w[i] for w, i in zip(windows, at)])  # [films, starts, 256 * L]
        for _ in range(sweeps):
            before = at.copy()
            for k, w in enumerate(windows):
                if others := n - (k < n):
                    mean = (chosen[:n].sum(0) - chosen[k] * (k < n)) / others
                    at[k] = (np.square(w).sum(1) - 2 * mean @ w.T).argmin(1)
                    chosen[k] = w[at[k]]
            if (at == before).all():
                break
        mean = chosen[:n].mean(0)
        differ = np.square(chosen[:n] - mean).sum((0, 2)) / np.square(mean).sum(1).clip(1e-9)
        begin[members] = at[:, differ.argmin()]
    return dataclasses.replace(clips, full=None, videos=np.stack([f[t:t + L] for f, t in zip(films, begin)]))

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
                if self.position < MAX_STREAM if data else self.position >= self.total:
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
    if not path.exists():
        options.fetched.append(path)
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
                regular = info.external_attr >> 28 in (0, 8) and info.compress_type in (0, 8)  # a file; zlib
                if not info.is_dir() and usable(info.filename, regular, info.file_size):
                    yield info.filename, lambda: archive.open(info).read(info.file_size)
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
STRIP = re.compile(r"^.*frames-stable-many/|\.\w+$")  # what a golf strip's path has around its name
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
    names = [printable(name, 1000) for name in clips]
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
    if (options.clips or 90 * (options.command == "draw")) * options.frames * options.size**2 * 3 > MAX_SET:
        raise DataError(f"{options.clips or 'so many'} clips of that size pass {MAX_SET >> 30} GiB")
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
        return run(parse(arguments)) or 0
    except (DataError, OSError) as error:
        print(f"data_prep.py: {printable(error, 500)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data_prep.py: interrupted; nothing half-written is left", file=sys.stderr)
        return 130

if __name__ == "__main__":
    sys.exit(main())
