"""Every data set of nav.py becomes a file data/NAME.npz, with a contact sheet data/NAME.png.

    python data_prep.py folder PATH --name mine            # yours: videos, GIFs, strips, folders of frames
    python data_prep.py folder clips.npz --name w4 --grid  # uint8 arrays [T, H, W, 3] named static_transient
    python data_prep.py chair                              # the paper's three sets: chair, weizmann, golf
    python data_prep.py draw chair --clips 64              # drawn stand-ins: nav.py draws the same by itself

An existing data/NAME.npz is left alone without --force. Frames are cut to a centred square and resized.
"""
import argparse
import bz2
import collections
import colorsys
import contextlib
import dataclasses
import errno
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
import unicodedata
import uuid
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

# Input is never trusted: these bounds hold before memory is taken.
MAX_PIXELS = 1 << 24  # of a picture (4096 x 4096), read from its header
MAX_FILE = 1 << 28  # bytes of a picture, or of a member of an archive
MAX_FRAMES = 1000  # of a clip
MAX_CLIP = 1 << 29  # bytes of a decoded clip
MAX_SET = 1 << 32  # bytes of all frames of a set
MAX_STREAM = 1 << 40  # bytes of a download: the golf archive has about 131 GB
CHAIRS, GOLFS = 820, 500  # models and clips in the paper
BACKOFF = 0.5  # seconds after the first failure of a connection, doubled after every further failure
TIMEOUT = 30  # seconds without an answer
SIDES = (16, 32, 64, 128, 256)  # of the frames of nav.py's generator
MIN_FRAMES = 4  # the shortest clip with a triplet of radius 2
# Hostile bytes may reach these decoders of PIL and containers of FFmpeg: no playlist, which names files.
DECODERS = ("PNG", "GIF", "WEBP", "AVIF", "JPEG", "BMP", "TIFF", "PPM")
CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegvideo,mpegts,ogg,flv,asf,m4v"
STILL = tuple(".png .apng .webp .jpg .jpeg .bmp .tif .tiff .ppm .pgm".split())
MOVING = tuple(".gif .avif .mp4 .m4v .mov .3gp .webm .mkv .avi .divx .mpg .mpeg .m1v .m2v .vob .ts .mts "
               ".m2ts .ogv .flv .wmv .asf".split())
ALPHA_DECODERS = dict(vp8="libvpx", vp9="libvpx-vp9")  # FFmpeg's own VP8 and VP9 drop the alpha of a WebM
BT709, UNSPECIFIED, BT601 = 1, 2, 6  # FFmpeg's numbers of matrices
PQ, HLG = 16, 18  # and of transfer functions

class DataError(ValueError):
    """A fault for the user to mend. A single line says the fault, the place and the remedy; exit status 2."""

def one_line(name):
    """A name from outside -> a line, in which control characters and broken letters are escaped. Accents are
    written in one way (NFC): file systems differ in it."""
    line = unicodedata.normalize("NFC", " ".join(str(name).split()))
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)

def printable(name, most=80):
    """A name or an error from outside -> one_line of it, of at most `most` letters."""
    text = one_line(name)
    return text if len(text) <= most else text[: most - 3] + "..."

def put(text, stream):
    """A line on standard output or error; letters that the terminal cannot show are escaped. A full or closed
    stream ends no work and changes no exit status."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    text = str(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, file=stream or io.StringIO(), flush=True)  # None: closed before the start
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

def say(text):
    put(text, sys.stdout)

def warn(text, script="nav"):
    """A line on standard error."""
    put(f"{script}: {one_line(text)[:10**4]}", sys.stderr)

warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata: damaged pixels are errors

def is_of_machine(error):
    """Whether an exception is a fault of the machine, not of a clip. FFmpeg's own exceptions, which carry a
    log, are about bytes, even where they are called MemoryError."""
    number = getattr(error, "errno", None)
    is_shortage = number in (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO)
    return (is_shortage or isinstance(error, (MemoryError, ImportError))) and not hasattr(error, "log")

@contextlib.contextmanager
def reading(where, what="cannot be decoded", notes=None):
    """Around a decoder: any exception of damaged bytes becomes a DataError, or is recorded in `notes`."""
    try:
        yield
    except Exception as error:  # zlib, zipfile, numpy, PIL and FFmpeg raise exceptions of their own
        if isinstance(error, (ConnectionError, TimesRunBackwards)) or is_of_machine(error):  # no damage
            raise
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = str(error) if isinstance(error, DataError) else f"{what} ({printable(words)})"
        if notes is None:
            raise DataError(f"{printable(where)}: {reason}" if where else reason) from None
        note(notes, "skipped", reason.removeprefix(f"{printable(where)}: "), where)

# ---- A prepared set: Clips, and its file -----------------------------------------------------------------
@dataclasses.dataclass
class Clips:
    """N clips of L frames, and their rows of the two dictionaries (Sec. 3, Fig. 2)."""
    videos: np.ndarray  # uint8 [N, L, H, W, 3]
    static_id: np.ndarray  # int64 [N], row of the static dictionary
    transient_id: np.ndarray  # int64 [N], row of the transient dictionary
    static_names: list
    transient_names: list
    names: list  # of the clips
    source: str  # a line; starts with 'drawn' for drawn stand-ins
    kind: str = ""  # chair, weizmann, golf or own: the row of Table 6; empty in older files
    fps: float = 0.0  # frames a second as kept, 0 if unknown or not the same for all clips
    how: str = ""  # the options of data_prep.py, as JSON; empty in older files
    full: np.ndarray = None  # uint8 [sum of lengths, H, W, 3]: the clips at full length, end to end
    length: np.ndarray = None  # int64 [N], full frames of every clip, at least L

    def __post_init__(self):
        if self.full is None:  # no clip is longer than L
            self.full = self.videos.reshape(-1, *self.videos.shape[2:])
            self.length = np.full(len(self.videos), self.videos.shape[1], np.int64)

    @property
    def reading(self):
        """The arguments crop, every and fps of read_clip that made the set."""
        how = json.loads(self.how or "{}")
        return dict(crop=not how.get("no_crop"), every=how.get("every", 1), fps=how.get("fps"))

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
        """SHA-256 of the frames, lengths and rows."""
        digest = hashlib.sha256()
        for array in (self.full, self.length, self.static_id, self.transient_id):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)  # no copy: the frames may fill the memory
        return digest.hexdigest()

    def __str__(self):
        return "{} clips x {} frames x {} x {}, {}".format(*self.videos.shape[:4], self.source)

def from_clips(clips, frames, names, static, transient, source, kind, rates=()):
    """A list of clips uint8 [T, H, W, 3], T >= frames, with their static and transient names -> Clips.
    Names become rows in the order of their first appearance. rates: frames a second of the clips, or None.
    The list is emptied on the way, to hold no clip twice. Raises DataError for an empty list."""
    if not clips:
        raise DataError(f"{source}: no usable clip: nothing was written")
    length = np.array([len(clip) for clip in clips], np.int64)
    begin = length.cumsum() - length
    full = np.empty((length.sum(), *np.shape(clips[0])[1:]), np.uint8)
    for part in np.split(full, begin[1:]):
        part[:] = clips.pop(0)
    same = length.max() == frames
    videos = full.reshape(-1, frames, *full.shape[1:]) if same else full[begin[:, None] + np.arange(frames)]
    rows = [list(dict.fromkeys(names)) for names in (static, transient)]
    ids = [np.array([row.index(name) for name in names]) for row, names in zip(rows, (static, transient))]
    known = [rate for rate in rates if rate]
    low, high = min(known, default=0), max(known, default=0)
    if high > 1.02 * low:
        say(f"{low:.3g} to {high:.3g} frames a second: --fps F makes them one")
    is_one = known and len(known) == len(rates) and high <= 1.02 * low
    fps = round(float(np.mean(known)), 3) if is_one else 0.0
    return Clips(videos, *ids, *rows, list(names), source, kind, fps, full=full, length=length)

def write_beside(path, write):
    """Write a file whole or not at all: write(temporary path, of the same suffix), flush to disk, rename.
    An OSError goes on, and no temporary file is left; that of a killed process goes with sweep."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "r+b") as file:  # Windows flushes only files opened for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the error of a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)

def sweep(folder, stem):
    """Remove the temporary files of killed processes, as write_beside names them. For the lock's holder."""
    for old in folder.glob(f".{stem}.{'[0-9a-f]' * 32}.tmp*"):
        old.unlink(missing_ok=True)

def take_lock(path, busy):
    """A lock on a file while the returned object lives. DataError, saying `busy`, if it is taken."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(busy) from None
    return lock

def save(clips, path):
    """Write Clips to `path`, a compressed npz; `full` and `length` only if a clip is longer. OSError."""
    arrays = dict(vars(clips))
    if len(clips.full) == clips.videos.shape[0] * clips.videos.shape[1]:
        del arrays["full"], arrays["length"]
    write_npz(path, arrays)

def write_npz(path, arrays, count=0, parts=()):
    """A compressed npz of arrays {key: array}; with a count also of `videos`, uint8, from parts [k, ...]."""
    def write(temporary):
        # As np.savez_compressed, but a fast compression: video frames hardly gain by more.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
            if count:
                rest = iter(parts)
                first = next(rest)
                with archive.open("videos.npy", "w", force_zip64=True) as file:
                    header = dict(descr="|u1", fortran_order=False, shape=(count, *first.shape[1:]))
                    np.lib.format.write_array_header_1_0(file, header)
                    file.writelines(part.tobytes() for part in itertools.chain([first], rest))
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    write_beside(path, write)

def read_arrays(path):
    """Yield (key, array) of an npz, or (stem, array) of an npy. Nothing is unpickled. DataError if large."""
    if str(path).lower().endswith(".npy"):
        yield Path(path).stem, np.load(path, mmap_mode="r", allow_pickle=False)
        return
    with np.load(path, allow_pickle=False) as archive:
        members = {info.filename: info for info in archive.zip.infolist() if info.filename.endswith(".npy")}
        total = 0
        for info in members.values():
            key = info.filename.removesuffix(".npy")
            total += info.file_size
            most = MAX_SET + 4096 if key in ("videos", "full") else MAX_CLIP
            if info.file_size > most or total > 2 * MAX_SET:
                raise DataError(f"key {printable(key)!r} unpacks to {info.file_size} bytes: split the set")
            yield key, archive[key]

def load(path):
    """Read and check a prepared set -> Clips. Raises DataError with the key and its fault."""
    def check(is_right, key, text):
        if not is_right:
            raise DataError(f"key {key!r} {text}")

    with reading(path, "not a whole npz: python data_prep.py makes one, --force anew"):
        arrays = dict(read_arrays(path))
        has_full = "full" in arrays or "length" in arrays
        shape = arrays["videos"].shape if "videos" in arrays else ()
        check(len(shape) == 5 and 0 not in shape, "videos", f"has shape {shape}, [N, L, H, W, 3] expected")
        N, L, H, W, _ = shape
        # Of the axes None any length is right.
        expected = dict(videos=("uint8", (N, L, H, W, 3)), static_id=("int64", (N,)), names=("str", (N,)),
                        transient_id=("int64", (N,)), static_names=("str", (None,)), source=("str", ()),
                        transient_names=("str", (None,)))
        if has_full:
            expected.update(length=("int64", (N,)), full=("uint8", (None, H, W, 3)))
        for key, (dtype, shape) in expected.items():
            check(key in arrays, key, f"is missing; a prepared set holds {', '.join(expected)}")
            found = arrays[key]
            shape = tuple(side or found.size and found.shape[0] for side in shape)
            check(found.dtype.name.startswith(dtype) and found.shape == shape, key,
                  f"is {found.dtype} of shape {found.shape}; {dtype} of {shape} expected")
        for key, names in (("static_id", "static_names"), ("transient_id", "transient_names")):
            low, high, count = arrays[key].min(), arrays[key].max(), len(arrays[names])
            check(0 <= low and high < count, key, f"runs from {low} to {high} for {count} {names}")
        check(len({*arrays["names"]}) == N, "names", "has two equal names")
        if has_full:
            length = arrays["length"].tolist()  # Python's integers are exact, an array's sum wraps
            check(min(length) >= L and sum(length) == len(arrays["full"]), "length", f"has clips of "
                  f"{min(length)} frames or more, {sum(length)} in all")
        for key in ("static_names", "transient_names", "names"):
            arrays[key] = [one_line(name) for name in arrays[key]]
        arrays["source"] = printable(arrays["source"], 200)
        arrays["kind"], arrays["how"] = (printable(arrays.get(key, ""), 2000) for key in ("kind", "how"))
        arrays["fps"] = float(arrays.get("fps", 0))
        return Clips(**{key: arrays[key] for key in (*expected, "kind", "fps", "how")})

# ---- A run's folder --------------------------------------------------------------------------------------
RUN_FILES = ("config.json", "log.csv", "metrics.json", "curve*.png", "reconstructions*", "samples*",
             "exchange*", "encoded*", "interpolation*", "ablation*", "checkpoint.pt")

def write(path, content):
    """Write bytes, a text, or anything else as JSON, whole or not at all, and make its folder. OSError."""
    if not isinstance(content, bytes):
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        content = f"{text}\n".encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, lambda temporary: temporary.write_bytes(content))

def commit():
    """The commit of this script, or None outside a clone or without git."""
    git = [shutil.which("git"), "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return git[0] and subprocess.run(git, capture_output=True, text=True).stdout.strip() or None

def take_folder(folder, keep, say):
    """Make and lock a folder, for as long as the returned lock lives.
    Unless `keep`, the files of an earlier run move to earlier-1, ... inside the folder, and `say` is told so.
    Raises DataError if another run holds the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another run writes there; let it end, or give another --out"
    lock = take_lock(folder / ".lock", busy)
    # A move that was killed is finished by the next start, or undone. The checkpoint moves last.
    moving = folder / "earlier-moving"
    for pattern in RUN_FILES:
        sweep(folder, Path(pattern).stem)
        for path in [] if keep else folder.glob(pattern):
            moving.mkdir(exist_ok=True)
            path.rename(moving / path.name)
    if keep and moving.exists():
        for path in moving.iterdir():
            path.rename(folder / path.name)
        moving.rmdir()
    if moving.exists():
        earlier = next(path for i in itertools.count(1) if not (path := folder / f"earlier-{i}").exists())
        moving.rename(earlier)
        say(f"{folder} held a run: moved to {earlier}")
    return lock

# ---- Pictures and clips out ------------------------------------------------------------------------------
def drawable(text, most=24):
    """A text in letters that the font has, of at most so many a line: no accents, other scripts escaped."""
    letters = unicodedata.normalize("NFKD", text)
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    lines = (line[:most].encode("ascii", "backslashreplace") for line in letters.split("\n"))
    return "\n".join(line[: 3 * most].decode() for line in lines)

def draw_sheet(rows, gap=2, frames=None, row_labels=None, column_labels=None, title=""):
    """A grid of pictures with a title, as a PIL image. rows: uint8 [R, K, H, W, 3], or lists of equal images
    [H, W, 3]. frames: [R][K] of a colour or None, drawn around single cells. row_labels: short texts, also of
    two lines; column_labels: short texts. Of a label's line 24 letters are shown."""
    high, wide = rows[0][0].shape[:2]
    font = ImageFont.load_default(12)
    row_labels, column_labels = (list(map(drawable, texts or ())) for texts in (row_labels, column_labels))
    lines = [line for text in row_labels for line in text.split("\n")]
    left = gap + max([int(font.getlength(line)) + 6 for line in lines], default=0)
    labels_top = gap + 18 * bool(title)
    top = labels_top + 18 * bool(column_labels)
    size = (left + max(map(len, rows)) * (wide + gap), top + len(rows) * (high + gap))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((3, 9), drawable(title, 200), "black", font, anchor="lm")
    for r, row in enumerate(rows):
        y = top + r * (high + gap)
        if row_labels:
            draw.text((3, y + high // 2), row_labels[r], "black", font, anchor="lm")
        for k, cell in enumerate(row):
            x = left + k * (wide + gap)
            picture.paste(Image.fromarray(np.asarray(cell)), (x, y))
            if frames is not None and frames[r][k] is not None:
                around = (x - gap, y - gap, x + wide + gap - 1, y + high + gap - 1)
                draw.rectangle(around, None, frames[r][k], gap)
    for k, text in enumerate(column_labels):
        while font.getlength(text) > wide:
            text = text[:-1]
        draw.text((left + k * (wide + gap) + wide // 2, labels_top + 9), text, "black", font, anchor="mm")
    return picture

def sheet(rows, path, **more):
    """draw_sheet as a PNG."""
    write_beside(path, draw_sheet(rows, **more).save)

MAX_PALETTE = 1 << 23  # bytes of the lines whose colours make the palette of a GIF
CLIP_SUFFIXES = ("mp4", "gif", "webp", "png")

def write_clip(video, path, fps=8, scale=1):
    """uint8 [T, H, W, 3] -> a file of T / fps seconds, every pixel `scale` x `scale` as large. By its suffix:
    .mp4 (H.264), .gif (255 colours and white), .webp or .png (animated, exact). All but .mp4 are looped."""
    video = video.repeat(scale, 1).repeat(scale, 2)
    suffix = Path(path).suffix
    write = write_mp4 if suffix == ".mp4" else write_gif if suffix == ".gif" else write_exact
    write_beside(path, partial(write, video, fps))

def write_exact(video, fps, path):
    first, *others = [Image.fromarray(frame) for frame in video]
    first.save(path, save_all=True, append_images=others, duration=delays(len(video), fps, 1), loop=0,
               lossless=True)

def delays(T, fps, unit):
    """How long T frames stay: multiples of `unit` milliseconds, and T / fps seconds in all."""
    ends = np.round(np.arange(T + 1) * 1000 / fps / unit) * unit
    return np.diff(ends).astype(int).tolist()

GIF_FPS = 50  # at most: browsers show a delay under 20 ms as 100 ms
def write_gif(video, fps, path):
    """A single palette and no dithering: a still ground stays still. White stays white to the bit.
    Above GIF_FPS frames a second, frames are dropped."""
    every = math.ceil(fps / GIF_FPS)
    video = video[::every]
    T, H, W, _ = video.shape
    lines = video.reshape(T * H, W, 3)
    everything = Image.fromarray(lines)
    some = Image.fromarray(lines[:: math.ceil(lines.size / MAX_PALETTE)])
    found = some.quantize(255, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    colours = found.getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours + [255] * (768 - len(colours)))
    index = everything.quantize(palette=palette, dither=Image.Dither.NONE)
    index = np.where((video == 255).all(-1), 255, np.asarray(index).reshape(T, H, W)).astype(np.uint8)
    frames = [Image.fromarray(frame) for frame in index]
    for frame in frames:
        frame.putpalette(palette.getpalette())
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=delays(T, fps / every, 10), loop=0)

def write_mp4(video, fps, path):
    """H.264, tagged and filtered so that browsers and players show the colours of the frames."""
    import av

    T, H, W, _ = video.shape
    video = np.pad(video, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")  # H.264 has even sides
    with av.open(str(path), "w", format="mp4", options=dict(movflags="faststart")) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate, options=dict(crf="18"))
        stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
        coder = stream.codec_context
        coder.thread_count = 1  # the bytes depend on the number of threads
        # Untagged films of 720 lines are taken for BT.709; PyAV converts to BT.601.
        coder.colorspace, coder.color_primaries, coder.color_trc, coder.color_range = BT601, BT709, BT709, 1
        for picture in video:
            # Any other filter smears the colours of neighbouring blocks.
            frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p", interpolation="AREA")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

def write_samples(path, parts, static, transient, source, fps, save=None, scale=None):
    """K generated clips, from parts uint8 [k, L, H, W, 3], with K static and transient names -> an npz of
    videos, static, transient, names, fps and source, in bounded memory, and a file a clip of the type `save`
    in a folder of the npz's name. Returns the first 16 clips."""
    names = {}  # in order; file names have at most 255 bytes, and no two may differ in case alone
    letters = sys.getfilesystemencoding()
    for pair in map("_".join, zip(static, transient)):
        name = re.sub(r"[^\w.+-]+", "-", pair).encode(letters, "replace")[:150].decode(letters, "ignore")
        numbered = (f"{k}-{name}" if k > 1 else name for k in itertools.count(1))
        name = next(name for name in numbered if name.casefold() not in names)
        names[name.casefold()] = name
    names = list(names.values())
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True) if save else None
    shown = []
    progress = Progress("sampling")

    def saved():
        done = 0
        for clips in parts:
            shown.extend(clips[: 16 - len(shown)])
            jobs = [(clip, folder / f"{name}.{save}", fps, scale or (4 if save == "mp4" else 1))
                    for clip, name in zip(clips, names[done:])]
            for _, finish in in_parallel(write_clip, jobs if save else (), os.cpu_count()):
                finish()
            done += len(clips)
            progress(done, len(names))
            yield clips

    if fps > GIF_FPS:
        say(f"GIFs show at most {GIF_FPS} frames a second: of {fps:g}, some are left out; mp4 has all frames")
    arrays = dict(static=static, transient=transient, names=names, fps=fps, source=source)
    write_npz(path, arrays, len(names), saved())
    return np.stack(shown)

def side_by_side(clips):
    """uint8 [K, L, H, W, 3] -> a video [L, rows * H, columns * W, 3] of all of them."""
    K, L, H, W, _ = clips.shape
    columns = math.ceil(K ** 0.5)
    rows = math.ceil(K / columns)
    tiles = np.full((rows * columns, L, H, W, 3), 255, np.uint8)
    tiles[:K] = clips
    tiles = tiles.reshape(rows, columns, L, H, W, 3).transpose(2, 0, 3, 1, 4, 5)
    return tiles.reshape(L, rows * H, columns * W, 3)

def chart(path, seconds, panels):
    """A PNG of curves over seconds. panels: {title: (values, whether their axis is logarithmic)}."""
    image = Image.new("RGB", (640, 260 * len(panels)), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    left, wide, high = 60, 560, 180
    for panel, (title, (values, is_logarithmic)) in enumerate(panels.items()):
        top = 30 + 260 * panel
        values = np.clip(values, 1e-6, None)
        y = np.log10(values) if is_logarithmic else values
        low, high_y = y.min() - 0.02, y.max() + 0.02
        for share in np.linspace(0, 1, 6):
            at = top + high * (1 - share)
            value = low + share * (high_y - low)
            draw.line((left, at, left + wide, at), (225,) * 3)
            text = f"{10 ** value if is_logarithmic else value:.3g}"
            draw.text((left - 8, at), text, "black", font, anchor="rm")
            across = left + wide * share
            draw.text((across, top + high + 6), f"{seconds[-1] * share:.3g} s", "black", font, anchor="mt")
        draw.text((left, top - 20), title, "black", font)
        draw.rectangle((left, top, left + wide, top + high), None, (150,) * 3)
        xs = left + wide * np.array(seconds) / seconds[-1]
        ys = top + high * (high_y - y) / (high_y - low)
        draw.line(list(zip(xs, ys)), (31, 119, 180), 2)
    write_beside(path, image.save)

# ---- Clips in: pictures, strips, folders of frames, arrays -----------------------------------------------
def crop_resize(image, size=None, crop=True, share=1.0, aspect=1.0):
    """A PIL RGB image -> uint8 [size, size, 3], by an antialiased bicubic filter.
    Taken is the largest centred square, or a `share` of its side; without `crop` all of the picture. Without
    a size the picture stays whole. aspect: width of a pixel by its height."""
    wide, high = image.size
    if size is None:
        return np.asarray(image if aspect == 1 else image.resize((round(wide * aspect), high)))
    if not crop:
        return np.asarray(image.resize((size, size)))
    side = share * min(wide * aspect, high)
    left, top = (wide - side / aspect) / 2, (high - side) / 2
    return np.asarray(image.resize((size, size), box=(left, top, wide - left, high - top)))

def to_rgb(image):
    """A picture opened by PIL -> RGB, upright (EXIF), transparent parts on white. Raises DataError."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} expected")
    if image.mode[0] in "IF":
        raise DataError(f"{image.mode} pixels (more than 8 bits): save it with 8 bits a channel")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")

def open_rgb(path):
    with reading(ascii(os.path.basename(path))), Image.open(path, formats=DECODERS) as picture:
        return to_rgb(picture)

def clip_frames(source, notes, trust, threads):
    """Yield every frame of a path, of the bytes of a file, or of an array [T, H, W, 3], as (show, seconds,
    stop): show(fit) gives fit(PIL RGB image, aspect=...), an array; a frame usually stays for `seconds` and
    disappears at second `stop`, both None where nothing tells. trust: as read_video."""
    if isinstance(source, np.ndarray):
        for frame in source:
            yield lambda fit: fit(Image.fromarray(frame)), None, None
    elif isinstance(source, bytes):
        yield from file_frames(io.BytesIO(source), notes, trust, threads)
    elif os.path.isdir(source):
        paths = [entry.path for entry in listing(source, STILL, []) if entry.is_file()]
        check_one_series(paths)
        for path in paths:
            yield lambda fit: fit(open_rgb(path)), None, None
    elif os.path.isfile(source):
        with open(source, "rb") as file:
            yield from file_frames(file, notes, trust, threads)
    else:
        raise DataError("no file of that name, or no regular file")

def check_one_series(paths):
    """Raises DataError if the names are of two series, as 0001.png and 0001_mask.png."""
    series = collections.Counter(NUMBER.sub("#", Path(path).stem) for path in paths)
    several = [name for name, count in series.items() if count > 1]
    if len(several) > 1:
        raise DataError(f"frames of two series, {several[0]} and {several[1]}: move the frames of one away")

def file_frames(file, notes, trust, threads):
    """The frames of an open file: a moving picture, a strip of squares or a video, as its bytes say."""
    try:
        image = Image.open(file, formats=DECODERS)
    except UnidentifiedImageError:
        file.seek(0)
        yield from video_frames(file, notes, trust, threads)
        return
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's photo with a preview
        stop = 0.0
        # An APNG's picture for old viewers is no frame.
        for index in range(1 if image.info.get("default_image") else 0, image.n_frames):
            image.seek(index)
            frame = to_rgb(image)  # before the duration: a WebP tells its duration once decoded
            if image.format == "TIFF":  # pages have no times
                yield lambda fit: fit(frame), None, None
            else:
                seconds = (image.info.get("duration") or 100) / 1000
                stop += seconds
                yield lambda fit: fit(frame), seconds, stop
        return
    strip = to_rgb(image)
    wide, high = strip.size
    side = min(wide, high)
    if wide == high or max(wide, high) % side:
        raise DataError(f"one picture of {wide} x {high}, neither a clip nor a strip of squares")
    for y in range(0, high, side):
        for x in range(0, wide, side):
            yield lambda fit: fit(strip.crop((x, y, x + side, y + side))), None, None

# A number within a name: a sign unless the dash follows a letter, digit or bracket, digits, and a fraction.
NUMBER = re.compile(r"((?<![^\W_])(?<![)\]])-)?([0-9]+)([.][0-9]+)?")

def numbers_in(name):
    """A name -> [(text before, sign or "", digits, fraction with its dot or ""), ...], and the text after."""
    parts = [part or "" for part in NUMBER.split(str(name))]
    return list(zip(parts[::4], parts[1::4], parts[2::4], parts[3::4])), parts[-1]

def natural_key(names):
    """The key that sorts names (a function): frame2 before frame10, 0.05 before 0.1, -2 before -1. How the
    numbers at a place of all names are written says what their dash and their dot are."""
    places = itertools.zip_longest(*(numbers_in(name)[0] for name in names))  # first numbers, second numbers
    is_sign, is_decimal = [], []  # of every place
    for numbers in places:
        numbers = [number for number in numbers if number]
        fractions = [fraction for *_, fraction in numbers if fraction]
        # walk--001, walk -1: the dash of every name is no sign. t_-1, -1, -0.5: it is.
        is_padded = any(digits.startswith("0") for _, _, digits, _ in numbers)
        is_apart = all(text.endswith("_") or not text for text, _, _, _ in numbers)
        is_sign.append(not all(sign for _, sign, _, _ in numbers) or bool(fractions)
                       or is_apart and not is_padded)
        # v2.9, v2.10: a number by itself. 0.9, 0.10, 0.05: a decimal fraction.
        shortest = min(map(len, fractions), default=0)
        is_longer = any(len(some) > max(2, shortest) and some.endswith("0") for some in fractions)
        is_decimal.append(not is_longer or any(re.match("[.]0.", some) for some in fractions))

    def key(name):
        numbers, rest = numbers_in(name)
        keys = []
        for place, (text, sign, digits, fraction) in enumerate(numbers):
            digits = digits.lstrip("0")
            fraction = fraction[1:] if is_decimal[place] else fraction[1:].lstrip("0")
            length = 0 if is_decimal[place] else len(fraction)
            number = (len(digits), digits, length, fraction)
            is_negative = bool(sign) and is_sign[place]
            if is_negative:  # the larger, the earlier
                reverse = str.maketrans("0123456789", "9876543210")
                number = (-len(digits), digits.translate(reverse), -length, fraction.translate(reverse) + "~")
            keys.append((text, not is_negative, number))
        return [*keys, (rest,)]
    return key

def listing(folder, suffixes, notes):
    """The folders in a folder, and the files with a suffix of `suffixes`, in natural order. OSError."""
    found = {}  # {name, of a file without its suffix, and whole name: entry}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_symlink():
            note(notes, "skipped", "a link, which is not followed", entry.path)
        elif entry.name.lower().endswith((".npy", ".npz")):
            note(notes, "skipped", "arrays are read where their files are named, as PATH/*.npy", entry.path)
        elif entry.name.startswith(".") or not (entry.is_dir() or entry.name.lower().endswith(suffixes)):
            note(notes, "skipped", "hidden, or no clip by its name", entry.path)
        else:
            name = entry.name if entry.is_dir() else Path(entry.name).stem
            found[name, entry.name] = entry
    key = natural_key([name for name, _ in found])
    return [found[names] for names in sorted(found, key=lambda names: (key(names[0]), names[1]))]

def read_clip(source, least=1, most=MAX_FRAMES, size=None, crop=True, every=1, fps=None, notes=None,
              threads=0):
    """A clip -> uint8 [T, H, W, 3], least <= T <= most, and its frames a second, None if nothing tells.
    source: a path (video, GIF, animated PNG, WebP or AVIF, strip, folder of frames), the bytes of a file, or
    an array [T, H, W, 3]. size, crop: as crop_resize. every: keep a frame of so many. fps: keep so many of a
    second of the clip's own time. notes: as `note`. threads: of a video's decoder, 0 for all cores. Frames
    after `most` are not decoded, and passed-over frames do not become RGB. Raises DataError."""
    notes = [] if notes is None else notes
    with reading("" if isinstance(source, (bytes, np.ndarray)) or callable(source) else source):
        source = source() if callable(source) else source
        for trust in (True, False) if fps else (False,):
            with contextlib.suppress(TimesRunBackwards):  # then a frame stays as long as another
                frames = clip_frames(source, notes, trust, threads)
                video, rate = keep_frames(frames, most, size, crop, every, fps)
                break
        if len(video) < least:
            is_gif = str(source).lower().endswith(".gif")
            gif = " (a GIF merges equal frames: --fps counts time)" if is_gif and not fps else ""
            raise DataError(f"fewer than {least} frames: {len(video)}{gif}")
    return np.stack(video), rate

def keep_frames(frames, most, size, crop, every, fps):
    """Frames of clip_frames -> the frames kept by read_clip, and their frames a second, or None."""
    video = []
    first = None
    def fit(image, aspect=1.0):
        nonlocal first
        first = first or image.size
        if image.size != first:
            raise DataError(f"frame {number} is %d x %d, those before %d x %d" % (*image.size, *first))
        return crop_resize(image, size, crop, aspect=aspect)
    for number, (show, seconds, stop) in enumerate(frames):
        times = 0 if number % every else 1
        if fps and stop is None:
            raise DataError("has no times, so --fps says nothing: use --every")
        if fps:
            # The clip is looked at every 1 / fps seconds, from the middle of the first frame or of the first
            # 1 / fps seconds on: never at the edge between two frames.
            times = math.ceil(stop * fps - min(1, seconds * fps) / 2) - len(video)
        if times > 0:
            video += [show(fit)] * min(times, most - len(video))
        if video and video[0].nbytes * len(video) > MAX_CLIP:
            raise DataError(f"over {MAX_CLIP} bytes once decoded: a shorter clip is needed")
        if len(video) == most:
            break
    rate = (number + 1) / stop / every if video and stop else None
    return video, fps or rate

# ---- Videos: docs/videos.md lists how containers differ -------------------------------------------
class TimesRunBackwards(Exception):
    """A frame's time is not after the time of the frame before."""

def video_frames(file, notes, trust, threads):
    """The frames of a video of any codec of FFmpeg, as clip_frames yields them. Raises DataError,
    also for a file cut short, and TimesRunBackwards if `trust` is put into the times of frames."""
    import av  # 100 MB of decoders: only for a video

    # PyAV 19 has no metadata_errors, and always replaces.
    options = dict(metadata_errors="replace") if int(av.__version__.split(".")[0]) < 19 else {}
    with av.open(file, options=dict(format_whitelist=CONTAINERS), **options) as container:
        stream = best_stream(container)
        decoder = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
            decoder = av.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
        decoder.thread_type = "AUTO"
        decoder.thread_count = threads
        # Making a reformatter costs more than converting a frame.
        reformatter = av.video.reformatter.VideoReformatter()
        average, guess = float(stream.average_rate or 0), float(stream.guessed_rate or 25)
        rate = guess if not average or 0.9 * average <= guess <= 3 * average else average
        is_avi = container.format.name == "avi"
        trust = trust and container.format.name != "mpegvideo"  # a stream without a container has no times
        slots = []  # the ticks of an AVI with a picture: an AVI stores no other times
        end = 0.0  # of all packets, in seconds
        shown, tick, now, show, lost = 0, 0, 0.0, None, None
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream or packet.size == 0 and packet.dts is not None:
                continue
            slots += [packet.dts] if packet.size and not packet.is_corrupt else []
            try:
                frames = decoder.decode(packet if packet.size else None)
            except av.FFmpegError as error:
                if isinstance(error, (MemoryError, BlockingIOError)):  # no memory for data, for threads
                    raise MemoryError from error
                # A broadcast starts within a group of pictures: pictures that refer to earlier ones are lost.
                if shown:
                    check_whole(container, stream, slots, end, rate)
                    raise DataError(f"damaged after frame {shown}: fetch it again") from error
                frames, lost = [], error
            for frame in frames:
                before, now = now, shown / rate
                if is_avi:
                    now = float(slots[min(shown, len(slots) - 1)] * stream.time_base)
                elif trust and frame.pts is not None:
                    now = float(frame.pts * stream.time_base)
                if shown == 0:
                    begin = now
                    if frame.color_trc in (HLG, PQ):
                        note(notes, "toned", "from HDR to SDR", getattr(file, "name", "a film"))
                elif trust and now <= before and not is_avi:
                    raise TimesRunBackwards
                else:
                    # Times are rounded to milliseconds, or jitter: a frame comes at a multiple of 1 / rate.
                    tick = max(tick + 1, round((now - begin) * rate))
                    yield show, 1 / rate, tick / rate
                show = partial(show_frame, frame, reformatter, stream.sample_aspect_ratio or 1)
                shown += 1
        check_whole(container, stream, slots, end, rate)
        if lost and not shown:
            raise lost
        if shown:
            yield show, 1 / rate, (tick + 1) / rate

def best_stream(container):
    """The stream of ffmpeg's choice: the largest, a default stream before others, no cover. DataError."""
    from av.stream import Disposition

    def weight(stream):
        return stream.width * stream.height + 5_000_000 * bool(stream.disposition & Disposition.default)
    streams = container.streams.video
    films = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    stream = max(films, key=weight, default=None)
    if stream is None or stream.width * stream.height > MAX_PIXELS:
        raise DataError(f"holds no pictures, or pictures of over {MAX_PIXELS} pixels: scale them down")
    return stream

def check_whole(container, stream, slots, end, rate):
    """Raises DataError if a header promises more than the file holds. Sound may run on, pictures pause."""
    if container.format.name == "avi":
        held = slots[-1] + 1 if slots else 0
        if held < stream.frames < 1 << 30:  # an unfinished film promises 2^30
            raise DataError(f"promises {stream.frames} frames, holds {len(slots)}: cut short? fetch it again")
    elif container.duration and not container.format.name.startswith("mpeg"):  # MPEG's are estimates
        lasts = container.duration / 1e6
        if end < 0.95 * lasts - 1 / rate:
            raise DataError(f"promises {lasts:.2f} s, holds {end:.2f} s: cut short? fetch it again")

def show_frame(frame, reformatter, aspect, fit):
    """A frame of PyAV -> fit(PIL RGB image, aspect): upright, transparent parts on white, in SDR."""
    if frame.colorspace == UNSPECIFIED and frame.height >= 720:  # as players do
        frame.colorspace = BT709
    has_alpha = any(component.is_alpha for component in frame.format.components)
    mode = "RGBA" if has_alpha else "RGB"
    frame = reformatter.reformat(frame, format="rgba" if has_alpha else "rgb24", threads=1)
    plane = frame.planes[0]
    size, line = (frame.width, frame.height), plane.line_size
    if frame.interlaced_frame:  # every other line: the other field is of another moment
        size, line, aspect = (frame.width, frame.height // 2), 2 * line, aspect / 2
    image = Image.frombuffer(mode, size, plane, "raw", mode, line, 1)
    image = to_rgb(image) if has_alpha else image
    # The matrix maps x, y to a x + c y, b x + d y.
    matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    a, b, _, c, d, *_ = np.frombuffer(matrices[0], np.int32).tolist() if matrices else (1, 0, 0, 0, 1)
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, aspect, a, d = image.transpose(Image.Transpose.TRANSPOSE), 1 / aspect, c, b
    image = ImageOps.mirror(image) if a < 0 else image
    image = ImageOps.flip(image) if d < 0 else image
    picture = fit(image, aspect=float(aspect))
    return to_sdr(picture, frame.color_trc) if frame.color_trc in (HLG, PQ) else picture

def to_sdr(picture, transfer):
    """HLG or PQ of BT.2020, uint8 [H, W, 3] -> sRGB (BT.2100; BT.2408: white is 75 % HLG, 203 nits)."""
    v = picture / 255
    if transfer == HLG:
        bright = (np.exp((v - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(v <= 0.5, v ** 2 / 3, bright) / 0.265
    else:
        p = v ** (1 / 78.84375)
        ratio = np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)
        light = 10000 / 203 * ratio ** (1 / 0.1593017578125)
    to_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    light = (light @ to_709.T).clip(0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * srgb).round().astype(np.uint8)

# ---- Many clips: trees of folders, and arrays ------------------------------------------------------------
def find_clips(path, notes, least=1, above=""):
    """Yield (name, path) of the clips of a path: a file, a folder of frames, or a folder of such files and
    folders at any depth. A clip within a folder is named folder_clip. least: as read_clip. Raises OSError."""
    entries = listing(path, STILL + MOVING, notes) if os.path.isdir(path) else []
    if not entries or is_frames(entries, least, above):
        yield above or Path(path).stem, str(path)
        return
    for entry in entries:
        name = entry.name if entry.is_dir() else Path(entry.name).stem
        name = f"{above}_{name}" if above else name
        yield from find_clips(entry.path, notes, least, name) if entry.is_dir() else [(name, entry.path)]

def is_frames(entries, least, above):
    """Whether the entries of a folder are frames: stills, and at the top of a tree no strips of squares.
    least: as read_clip. A picture of 4:1 at most is no strip if it holds fewer squares."""
    if not all(entry.is_file() and entry.name.lower().endswith(STILL) for entry in entries):
        return False
    with contextlib.suppress(Exception), Image.open(entries[0].path, formats=DECODERS) as first:
        # A TIFF and a photo (MPO) may hold a preview behind the picture.
        fewest = least if first.format in ("TIFF", "MPO") else 2
        if getattr(first, "n_frames", 1) >= fewest:
            return False
        short, long = sorted(first.size)
        is_strip = long > short and long % short == 0 and long // short >= min(least, 5)
        return bool(above) or not is_strip and len(entries) > 1
    return bool(above)

def array_clips(path, axes, notes):
    """Yield (name, a function of no arguments -> uint8 [T, H, W, 3]) for the clips in the arrays of a file:
    uint8, or floats in [0, 1] or [-1, 1]. axes: letters of N T H W C, as NTHWC or TNHW; None: a guess."""
    arrays = dict(read_arrays(path))
    names = arrays["names"].tolist() if {"videos", "names"} <= arrays.keys() else None
    for key, array in ({"videos": arrays["videos"]} if names else arrays).items():
        order = axes or guess_axes(array.shape)
        low, high = (array.min(), array.max()) if array.size and array.dtype.kind == "f" else (0, 255)
        is_clip = set("THW") <= set(order) <= set("NTHWC") and len(order) == len(set(order)) == array.ndim
        is_clip = is_clip and ("C" not in order or array.shape[order.index("C")] in (1, 3))
        if not is_clip or array.dtype != np.uint8 and not -1 <= low <= high <= 1 or array.size == 0:
            reason = "no uint8 or floats in [-1, 1] of 1 or 3 colours; --axes names axes, as NTHWC or TNHW"
            note(notes, "skipped", reason, f"{key}: {array.dtype} {array.shape}")
            continue
        array = array.transpose([order.index(letter) for letter in "NTHWC" if letter in order])
        array = array if "N" in order else array[None]
        array = array if "C" in order else array[..., None]
        if array.dtype != np.uint8 or order not in ("NTHWC", "THWC"):
            floats = "floats in [0, 1]" if low >= 0 else "floats in [-1, 1]"
            kind = "uint8" if array.dtype == np.uint8 else floats
            note(notes, "read", f"as {order}, {kind} (--axes names other axes)", f"{key} {array.shape}")
        if array.shape[1] > MAX_FRAMES:
            raise DataError(f"{key}: {array.shape} as N, T, H, W, C: --axes names the axes, as TNHW")
        for k, clip in enumerate(array):
            name = names[k] if names else f"{key}{k:04d}" if "N" in order else key
            yield str(name), partial(to_bytes, clip, low)

def guess_axes(shape):
    """The letters of an array's axes, "" for none: 1 or 3 channels are the last axis, else the axis before H
    and W, else 3 channels are the axis before T."""
    if len(shape) not in (3, 4, 5):
        return ""
    if len(shape) == 3:
        return "THW"
    clips = "N" * (len(shape) - 4)
    if shape[-1] in (1, 3, 4):  # 4, with transparency: array_clips skips it
        return clips + "THWC"
    if shape[-3] in (1, 3):
        return clips + "TCHW"
    if shape[-4] == 3:
        return clips + "CTHW"
    return "" if clips else "NTHW"

def to_bytes(clip, low):
    """uint8 or float [T, H, W, 1 or 3], from -1 on if `low` is negative -> uint8 [T, H, W, 3]."""
    if clip.dtype != np.uint8:
        clip = (255 * (clip if low >= 0 else (clip + 1) / 2)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(clip, (*clip.shape[:3], 3)))

def in_parallel(call, jobs, workers):
    """Yield (job, a function that returns or raises as call(*job)) in order, `workers` at a time."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque()
        for job in jobs:
            waiting.append((job, pool.submit(call, *job).result))
            if len(waiting) > 2 * workers:
                yield waiting.popleft()
        yield from waiting

def read_clips(paths, notes, least=1, most=MAX_FRAMES, workers=1, axes=None, **how):
    """The clips of files, folders, .npy and .npz -> {name: uint8 [T, H, W, 3]}, and {name: frames a second}.
    least <= T; a longer clip is cut after `most`. how: size, crop, every and fps of read_clip. notes: as
    `note`. Raises DataError if a path cannot be read at all."""
    jobs = []
    for path in paths:
        if str(path).lower().endswith((".npy", ".npz")) and os.path.isfile(path):
            with reading(path, "not a whole npy or npz"):
                jobs += array_clips(path, axes, notes)
        elif os.path.isdir(path) or str(path).lower().endswith(STILL + MOVING) and os.path.isfile(path):
            jobs += find_clips(path, notes, least)
        else:
            raise DataError(f"{printable(path)}: no clips and no folder of clips: unpack an archive first")
    if how.get("size"):
        most = min(most, MAX_SET // (max(1, len(jobs)) * 3 * how["size"] ** 2))
    if most < least:
        raise DataError(f"{len(jobs)} clips: {most} frames of each fit in or are kept, {least} are needed")

    def read(name, source):
        own_notes = []
        threads = 1 if workers > 1 else 0
        return read_clip(source, least, most + 1, notes=own_notes, threads=threads, **how), own_notes
    clips, rates = {}, {}
    progress = Progress("reading")
    for done, ((name, source), result) in enumerate(in_parallel(read, jobs, workers), 1):
        with reading(name if callable(source) else source, notes=notes):
            (clip, rate), own_notes = result()
            notes += own_notes
            if name in clips:
                raise DataError("two clips of one name")
            if len(clip) > most:
                note(notes, "cut", f"to the first {most} frames (--keep-frames keeps more)", name)
            clips[name], rates[name] = clip[:most], rate
        progress(done, len(jobs))
    return clips, rates

def note(notes, verb, reason, name):
    """Record why a clip or file was skipped, cut, read or toned."""
    notes.append((verb, reason, printable(name)))

def report(notes):
    """Print notes: how many, in the words of the first, and the first names. Reasons that differ only in
    numbers or quoted names are counted together."""
    groups = {}
    for verb, reason, name in notes:
        kind = re.sub(r"<[^<>]*>|0x[0-9a-fA-F]+|'[^']*'|[0-9]+", "..", reason)
        groups.setdefault((verb, kind), (reason, []))[1].append(name)
    for (verb, _), (reason, names) in groups.items():
        say(f"{verb} {len(names)}: {reason}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")

# ---- Clips for nav.py: clips, dictionary rows and windows --------------------------------------------
def data_path(dataset):
    """--dataset as a file: PATH.npz itself, or data/NAME.npz."""
    return Path(dataset) if dataset.lower().endswith(".npz") else Path("data", f"{dataset}.npz")

def find(dataset, count=None, layout=None, drawn=False):
    """nav.py's --dataset, --clips and --layout -> (Clips, their file or None). Raises DataError.
    Stand-ins are drawn for chair and weizmann if there is no such file, or if `drawn` says so."""
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
        command = "golf" if dataset == "golf" else f"folder {folder} --name NAME"
        raise DataError(f"--dataset {dataset}: there is no {path}; python data_prep.py {command} makes one")
    if count and count > len(clips.names):
        raise DataError(f"--clips {count}: {dataset} holds {len(clips.names)}")
    if count:
        clips = compact(subset(clips, range(count)))
    if layout == "grid" and not clips.grid:
        raise DataError(f"--layout grid: {len(clips.static_names)} static and {len(clips.transient_names)} "
                        f"transient names for {len(clips.names)} clips make none; folder --grid makes one")
    if layout in ("static", "both", "transient"):  # Fig. 2, Sec. 4.1
        own = np.arange(len(clips.names)), clips.names
        shared = np.zeros(len(clips.names), np.int64), ["all"]
        static = shared if layout == "transient" else own
        transient = shared if layout == "static" else own
        clips = dataclasses.replace(clips, static_id=static[0], static_names=static[1],
                                    transient_id=transient[0], transient_names=transient[1])
    return clips, None if drawn else str(path.resolve())

def subset(clips, keep, every=1):
    """The clips of indices `keep`, every `every`-th frame of them -> Clips with the same dictionaries."""
    films = np.split(clips.full, clips.length.cumsum()[:-1])
    films = [films[j][::every] for j in keep]
    return dataclasses.replace(
        clips, videos=clips.videos[keep, ::every], static_id=clips.static_id[keep],
        transient_id=clips.transient_id[keep], names=[clips.names[j] for j in keep],
        full=np.concatenate(films), length=np.array([len(film) for film in films]))

def compact(clips):
    """The same clips without unused rows of the dictionaries: an unseen name has no codes."""
    i, static_id = np.unique(clips.static_id, return_inverse=True)
    k, transient_id = np.unique(clips.transient_id, return_inverse=True)
    return dataclasses.replace(
        clips, static_id=static_id, static_names=[clips.static_names[row] for row in i],
        transient_id=transient_id, transient_names=[clips.transient_names[row] for row in k])

def movement(film):
    """The motion in a film uint8 [T, H, W, 3], H and W multiples of 16 -> float32 [T, 256].
    |frame - the frame before|, grey, averaged to 16 x 16, scaled to a mean square norm of 1."""
    T, H, W = film.shape[:3]
    change = np.abs(np.diff(film.mean(3, dtype=np.float32), axis=0))
    change = np.concatenate([change[:1], change])
    change = change.reshape(T, 16, H // 16, 16, W // 16).mean((2, 4))
    norm = np.sqrt(np.square(change).sum() / T)
    return change.reshape(T, 256) / max(1e-9, norm)

def closest(windows, means):
    """The index of the window [n, d] closest to every mean [S, d] -> int64 [S]."""
    return (np.square(windows).sum(1) - 2 * means @ windows.T).argmin(1)

def choose_windows(films, L, voters, starts=64, sweeps=40):
    """The begins of windows of L frames in which films move alike -> int64 [len(films)].
    Coordinate descent: every film in turn takes the window closest to the mean of the other films' windows,
    until nothing changes. A start is a window of some film, and the windows closest to it; of up to `starts`
    starts, the start wins whose final windows differ least, relative to the motion of their mean. The first
    `voters` films make the means, the others only follow."""
    windows = [sliding_window_view(movement(film), L, 0).reshape(-1, 256 * L) for film in films]
    candidates = [window for film in windows[:voters] for window in film]
    picked = np.linspace(0, len(candidates) - 1, min(starts, len(candidates))).astype(int)
    first = np.stack([candidates[j] for j in picked])  # (S, 256 L)
    begin = np.stack([closest(film, first) for film in windows])  # (films, S)
    chosen = np.stack([film[at] for film, at in zip(windows, begin)])  # (films, S, 256 L)
    for _ in range(sweeps):
        before = begin.copy()
        for k, film in enumerate(windows):
            is_voter = k < voters
            others = voters - is_voter
            if others:
                mean = (chosen[:voters].sum(0) - chosen[k] * is_voter) / others
                begin[k] = closest(film, mean)
                chosen[k] = film[begin[k]]
        if (begin == before).all():
            break
    mean = chosen[:voters].mean(0)
    disagreement = np.square(chosen[:voters] - mean).sum((0, 2)) / np.square(mean).sum(1).clip(1e-9)
    return begin[:, disagreement.argmin()]

def aligned(clips, held_out=()):
    """nav.py --window aligned: the begin of every clip's window -> int64 [N].
    Clips of a transient row get windows in which the clips move alike. Clips of indices `held_out` have no
    say: they take the window closest to the mean of the other clips' windows."""
    L = clips.videos.shape[1]
    films = np.split(clips.full, clips.length.cumsum()[:-1])
    begin = np.zeros(len(films), int)
    for row in range(len(clips.transient_names)):
        members = np.flatnonzero(clips.transient_id == row)
        members = sorted(members, key=lambda j: j in held_out)  # the held-out clips come last
        voters = sum(j not in held_out for j in members) or 1
        if members:
            begin[members] = choose_windows([films[j] for j in members], L, voters)
    return begin

def at_windows(clips, begin):
    """The same Clips, of L frames from begin [N] on, and nothing longer."""
    L = clips.videos.shape[1]
    films = np.split(clips.full, clips.length.cumsum()[:-1])
    videos = np.stack([film[at : at + L] for film, at in zip(films, begin)])
    return dataclasses.replace(clips, full=None, videos=videos)

# ---- Downloads and archives: streams, never unpacked ---------------------------------------------
class Remote:
    """The bytes of an http(s) address from `position` on, as a file. A broken connection is resumed."""
    def __init__(self, url, position=0):
        self.url = url
        self.position = position
        self.response = None
        self.progress = Progress("reading MB")

    def connect(self):
        request = Request(self.url, headers={"User-Agent": "data_prep", "Range": f"bytes={self.position}-"})
        self.response = urlopen(request, timeout=TIMEOUT)
        skip = 0 if self.response.status == 206 else self.position  # a server without ranges begins at 0
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
                is_end = not data and self.position >= self.total
                if is_end or data and self.position < MAX_STREAM:
                    return data
                raise OSError("the connection broke, or the file is endless")
            except Exception as error:  # OSError, ValueError or http.client's
                code = getattr(error, "code", 0)
                if 400 <= code < 500 and code not in (408, 429):
                    raise ConnectionRefusedError(f"{self.url}: check it: answer {code}") from None
                self.response = None
                reason = printable(error) or type(error).__name__
                time.sleep(BACKOFF * 2 ** failures)
        raise ConnectionError(f"{self.url}: {reason}, at byte {self.position}: run the same command again")

def download_if_url(source, options):
    """A path on this machine for --source. Raises OSError.
    An address is fetched whole into OUT/downloads, where NAME.part goes on after a stop, and recorded in
    options.fetched."""
    if "://" not in source:
        return Path(source)
    name = re.sub("[^A-Za-z0-9._-]", "", source.split("?")[0].rstrip("/").rpartition("/")[2])
    # The checksum tells apart addresses with equal last parts.
    path = Path(options.out, "downloads", f"{zlib.crc32(source.encode()):08x}-{name}")
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

def members(source, notes):
    """Yield (name, read) of every regular file in a folder, zip or tar (a Path), or in a tar (an address).
    read() gives the bytes, at most MAX_FILE, and is valid until the next member is asked for. Nothing is
    written under a member's name and no link is followed, so no name leads anywhere. Of a damaged archive,
    all before the damage is read. Raises OSError."""
    def is_usable(name, is_regular, size):
        if not is_regular or size > MAX_FILE:
            note(notes, "skipped", f"a link or another special member, or over {MAX_FILE} bytes", name)
        return is_regular and size <= MAX_FILE
    is_path = isinstance(source, Path)
    with reading(source, "the rest of the archive is damaged", notes):
        if is_path and source.is_dir():
            paths = list(source.rglob("*"))
            for path in sorted(paths, key=natural_key(paths)):
                is_link = path.is_symlink()
                is_file = path.is_file() and not is_link
                if (is_link or not path.is_dir()) and is_usable(path, is_file, path.lstat().st_size):
                    yield path.relative_to(source).as_posix(), path.read_bytes
        elif is_path and zipfile.is_zipfile(source):
            archive = zipfile.ZipFile(source)
            for info in archive.infolist():
                # A plain file, stored or deflated.
                is_regular = info.external_attr >> 28 in (0, 8) and info.compress_type in (0, 8)
                if not info.is_dir() and is_usable(info.filename, is_regular, info.file_size):
                    yield info.filename, lambda: archive.open(info).read(info.file_size)
        else:
            stream = io.FileIO if is_path else Remote
            openers = {b"BZh": bz2.open, b"\x1f\x8b\x08": gzip.open}
            opener = openers.get(stream(source).read(3), lambda file: file)
            archive = tarfile.open(fileobj=opener(stream(source)), mode="r|", tarinfo=SmallHeaders)
            while info := archive.next():
                archive.members.clear()  # tarfile would keep every header
                if not info.isdir() and is_usable(info.name, info.isreg(), info.size):
                    yield info.name, lambda: archive.extractfile(info).read()

# ---- The sets: a function a command, (options, notes) -> Clips ----------------------------------
CHAIR = "https://www.di.ens.fr/willow/research/seeing3Dchairs/data/rendered_chairs.tar"
WEIZMANN = "http://www.wisdom.weizmann.ac.il/~vision/VideoAnalysis/Demos/SpaceTimeActions/DB/"
GOLF = "http://data.csail.mit.edu/videogan/golf.tar.bz2"
PERSONS = ("daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar")
ACTIONS = ("bend", "jack", "jump", "pjump", "run", "side", "skip", "walk", "wave1", "wave2")
RENDER = re.compile(r"(?:.*/)?([^/]+)/renders/image_([0-9]{1,9})_p([0-9]{1,9})_t[0-9]+_r[0-9]+\.png")
FILM = re.compile(rf"(?:.*/)?([a-z]+)_({'|'.join(ACTIONS)})([12]?)\.avi", re.IGNORECASE)
STRIP = re.compile(r"^.*frames-stable-many/|\.\w+$")  # the parts of a golf strip's path around its name

def chair(options, notes):
    """'Seeing 3D Chairs' (Sec. 4.1, Appendix A).
    A model has 31 views at two elevations. Its four sequences are, at both elevations, 16 views from
    the first on, and 16 from half a turn later on, over the end of the circle. 820 models are drawn with the
    seed. Clips come sequence by sequence, first the lower elevation's first half; --clips cuts them."""
    source = download_if_url(options.source or CHAIR, options)
    views = {}  # {model: {elevation: its views}}: a first pass reads the names alone
    for total, (name, _) in enumerate(members(source, []), 1):
        if match := RENDER.fullmatch(name):
            views.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(match[2])
    views = {model: dict(sorted(views[model].items())[:2]) for model in sorted(views)}
    usable = [model for model in views if max(map(len, views[model].values())) >= options.frames]
    for model in views.keys() - set(usable):
        note(notes, "skipped", f"a model with fewer than {options.frames} renders", model)
    drawn = [usable[k] for k in np.random.default_rng(options.seed).permutation(len(usable))[:CHAIRS]]
    turns = {(model, elevation): {} for model in drawn for elevation in views[model]}  # {view: its picture}

    def renders():
        for name, read in members(source, notes):
            match = RENDER.fullmatch(name)
            if match and (match[1], int(match[3])) in turns:
                with reading(name, notes=notes):
                    yield match, read()

    def resize(match, data):
        picture = to_rgb(Image.open(io.BytesIO(data), formats=DECODERS))
        return crop_resize(picture, options.size, share=2 / 3)
    progress = Progress("resizing files")
    for done, ((match, _), result) in enumerate(in_parallel(resize, renders(), options.workers)):
        with reading(match[0], notes=notes):
            turns[match[1], int(match[3])][int(match[2])] = result()
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
                      f"Seeing 3D Chairs, {options.source or CHAIR}", "chair")

def weizmann(options, notes):
    """Weizmann's actions (Sec. 4.1, Appendix A): people x actions, whole films in `full`.
    Of a person's two films of an action (lena's run, skip, walk) the first is taken."""
    source = options.source or WEIZMANN
    is_whole = "://" not in source or re.search(r"\.(zip|tar|gz|bz2)(\?|$)", source)
    addresses = [source] if is_whole else [f"{source.rstrip('/')}/{action}.zip" for action in options.actions]
    paths = [download_if_url(address, options) for address in addresses]
    paths += [zipped for path in paths if path.is_dir() for zipped in sorted(path.rglob("*.zip"))]
    films, rates = {}, {}
    for name, read in itertools.chain.from_iterable(members(path, notes) for path in paths):
        match = FILM.fullmatch(name)
        if match and match[2].lower() in options.actions:
            with reading(name, notes=notes):
                key = match[1].lower(), match[2].lower()
                if match[3] == "2" or key in films:
                    raise DataError("a person's second film of an action")
                films[key], rates[key] = read_clip(read(), options.frames, size=options.size,
                                                   crop=not options.no_crop)
    keys = sorted(films)[: options.clips]
    source += ", not cropped" if options.no_crop else ""
    return from_clips([films.pop(key) for key in keys], options.frames, ["_".join(key) for key in keys],
                      [person for person, _ in keys], [action for _, action in keys],
                      f"Weizmann actions, {source}", "weizmann", [rates[key] for key in keys])

def golf(options, notes):
    """Golf scenes of 'Generating Videos with Scene Dynamics' (Sec. 4.1).
    Reading stops when there are enough clips, so the draw is made on the way: the seed tosses for every
    strip, a quarter is taken, and a single strip of a video (a folder) if the list has as many videos as
    clips are wanted. Strips passed over by the toss fill up a small archive. A clip is its first frames."""
    source = options.source or GOLF
    listed = golf_list(source)
    video_of = os.path.dirname  # the strips of a video share a folder
    one_each = listed is not None and len(set(map(video_of, listed))) >= options.clips
    clips, spare = {}, {}
    archive = source if "://" in source and not options.keep else download_if_url(source, options)
    for path, read in members(archive, notes):
        name = STRIP.sub("", path)
        if not path.lower().endswith((".jpg", ".jpeg", ".png")):
            continue
        toss = np.random.default_rng([options.seed, zlib.crc32(name.encode())]).random()
        is_second = one_each and video_of(name) in map(video_of, clips)
        take = clips if toss < 0.25 and not is_second else spare
        with reading(name, notes=notes):
            if listed is not None and name not in listed:
                raise DataError("not in the list")
            if take is clips or len(spare) < options.clips:
                take[name], _ = read_clip(read(), options.frames, options.frames, options.size)
        if len(clips) >= options.clips:
            break
    # Fill up, first with strips of further videos.
    for any_video, name in itertools.product((False, True), list(spare)):
        if name in spare and (any_video or video_of(name) not in map(video_of, clips)):
            clips[name] = spare.pop(name)
    names = list(clips)[: options.clips]
    order = sorted(names, key=natural_key(names))
    return from_clips([clips.pop(name) for name in order], options.frames, order, order, order,
                      f"golf scenes, {source}", "golf")

def golf_list(source):
    """golf.txt beside the archive -> the set of its strips' names; None without it: every strip counts."""
    try:
        if "://" in source:
            remote = Remote(f"{source.rpartition('/')[0]}/golf.txt")
            text = b"".join(itertools.islice(iter(remote.read, b""), 256))
        else:
            text = Path(source if os.path.isdir(source) else Path(source).parent, "golf.txt").read_bytes()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        return say(f"no list, every strip counts: {printable(error, 200)}")
    return {STRIP.sub("", line.strip()) for line in text.decode("utf-8", "replace").splitlines()}

LAST_UNDERSCORE = "(?P<static>.+)_(?P<transient>[^_]+)$"  # daria_wave1

def folder(options, notes):
    """Your own: files or folders of videos, GIFs, strips and frames, or .npy and .npz of arrays."""
    clips, rates = read_clips(
        options.source, notes, options.frames, options.keep_frames or 4 * options.frames, options.workers,
        options.axes, size=options.size, crop=not options.no_crop, every=options.every, fps=options.fps)
    pattern = options.pattern or (LAST_UNDERSCORE if options.grid else "(?P<static>.*)(?P<transient>)")
    cells = {}  # {(static, transient): the name of their clip}
    for name in clips:
        line = one_line(name)
        match = re.search(pattern, line)
        cell = (match["static"], match["transient"] if options.grid else line) if match else None
        if cell is None or "" in cell:
            note(notes, "skipped", "its name has no static and transient part for --grid or --pattern", name)
        elif cell in cells:
            note(notes, "skipped", "a second clip of its static and transient name", name)
        else:
            cells[cell] = name
    if not cells:
        raise DataError(f"{printable(' '.join(options.source))}: no usable clip")
    if options.grid:
        axes = [list(dict.fromkeys(names)) for names in zip(*cells)]
        for kind, names in zip(("static", "transient"), axes):
            some = printable(", ".join(names[:6]) + (", ..." if len(names) > 6 else ""), 200)
            say(f"{len(names)} {kind}: {some}")
            if len(names) < 2:
                raise DataError(f"--grid: all clips have the {kind} name {names[0]}; --pattern finds others")
        say(f"{len(cells)} of {len(axes[0]) * len(axes[1])} cells are filled")
    names = [one_line(name) for name in cells.values()]
    others = f" and {len(options.source) - 1} other paths" if len(options.source) > 1 else ""
    return from_clips([clips.pop(name) for name in cells.values()], options.frames, names, *zip(*cells),
                      f"clips of {printable(Path(options.source[0]).resolve().name)}{others}", "own",
                      [rates[name] for name in cells.values()])

def draw(options, _):
    """The drawn stand-ins, as a file."""
    progress = Progress("drawing")
    if options.what == "weizmann":
        return draw_people(options.frames, options.size, options.seed, progress)
    return draw_chairs(options.clips or 64, options.frames, options.size, options.seed, progress)

# ---- Drawn chairs: the stand-in of `--dataset chair` until the real renders are there --------------------
# A chair is a list of convex solids; they may overlap. A solid is a lower and an upper ring of corners,
# complex [2n] (x + iy in metres; the front is +y), their heights [2n] and a colour.

AZIMUTHS = 31  # as in 'Seeing 3D Chairs', at an elevation of 20 degrees
SUPERSAMPLE = 4  # rays of a pixel: 4 x 4

def colour(hue, saturation, value):
    """Numbers from 0 to 1 -> RGB, 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))

def ring(wide, deep=None, sides=4):
    """Half sizes -> the complex corners of a rectangle, or of an ellipse with more sides."""
    corners = np.exp(2j * np.pi * (np.arange(sides) + 0.5) / sides) / np.cos(np.pi / sides)
    return corners.real * wide + 1j * corners.imag * (deep or wide)

def make_chair(rng):
    """A random chair -> its solids. No part is thinner than a pixel of a 64 x 64 frame."""
    uniform = rng.uniform
    wood = colour(uniform(0.05, 0.1), uniform(0, 0.75), uniform(0.2, 0.95))  # or grey, or white
    soft = colour(uniform(), uniform(0.25, 0.9), uniform(0.45, 0.95))
    # Half sizes of the seat, and its height; height and lean of the back, half size of a leg.
    w, d, seat = uniform((0.21, 0.20, 0.38), (0.28, 0.26, 0.50))
    height, lean, leg = uniform((0.36, 0.03, 0.022), (0.60, 0.14, 0.032))
    back = rng.choice(["panel", "padded", "slats", "spindles", "tub"])
    sides = 16 if back == "tub" else 4
    solids = []
    def add(low, high, lower, upper=None, tint=wood):
        rings = np.concatenate([lower, lower if upper is None else upper])
        heights = np.concatenate([low + 0 * lower.real, high + 0 * lower.real])
        solids.append((rings, heights, tint))
        if abs(rings.real.mean()) > 1e-9:  # a part beside the middle has a twin on the other side
            solids.append((-rings.conj(), heights, tint))
    add(seat - 0.04, seat, ring(w, d, sides), tint=soft if uniform() < 0.5 else wood)
    if uniform() < 0.5:  # a cushion
        add(seat, seat + 0.04, ring(0.86 * w, 0.86 * d, sides), ring(0.8 * w, 0.8 * d, sides), soft)
    # Legs meet the seat at x, y.
    x, y = np.array([w, d]) * (0.72 if back == "tub" else 1) - leg - 0.01
    corners = x + 1j * y + ring(leg), x - 1j * y + ring(leg)
    straight = [(0, seat - 0.02, corner) for corner in corners]
    column = (0.02, seat - 0.02, ring(0.042, sides=12), ring(0.032, sides=12))
    spokes = [way * (w / 2 + ring(w / 2, 0.022)) for way in np.exp(1j * np.radians([90, 18, -54]))]
    legs = dict(
        straight=straight,
        splayed=[(0, seat - 0.02, uniform(1.15, 1.4) * corner, corner) for corner in corners],
        sled=[*straight, (0, 1.6 * leg, x + ring(leg, y + leg))],
        pedestal=[column, (0, 0.035, ring(w, sides=16), ring(0.85 * w, sides=16))],
        star=[column, *((0, 0.045, spoke) for spoke in spokes)])
    arms = dict(
        none=[],
        posts=[(seat - 0.04, seat + 0.2, w - 0.02 + 1j * (d - 0.06) + ring(0.018)),
               (seat + 0.2, seat + 0.23, w - 0.02 - 0.02j + ring(0.026, d))],
        panels=[(seat * uniform(0.4, 0.9), seat + 0.2, w + 0.03 + ring(0.03, d), None, soft)])
    for part in legs[rng.choice(list(legs))]:
        add(*part)
    for part in arms[rng.choice(list(arms))] if back != "tub" else []:
        add(*part)
    # Parts of a back: x of the middle, begin and end as shares of the height, half sizes, colour.
    edge = (w - 0.022, 0, 1, 0.022, 0.022, wood)
    backs = dict(
        panel=[(0, 0, 1, w, 0.022, soft)],
        padded=[edge, (0, uniform(0.15, 0.4), 0.96, w - 0.03, 0.028, soft)],
        slats=[edge, *((0, h, h + 0.15, w - 0.03, 0.014, wood) for h in (0.3, 0.55, 0.8))],
        spindles=[edge, (0, 0.84, 0.97, w - 0.03, 0.02, wood),
                  *((share * w, 0, 0.9, 0.014, 0.014, wood) for share in (0, 0.3, 0.6))], tub=[])
    for x, low, high, wide, deep, tint in backs[back]:
        lower, upper = (x - 1j * (d - 0.02 + lean * share) + ring(wide, deep) for share in (low, high))
        add(seat + low * height, seat + high * height, lower, upper, tint)
    # A tub's back is a round wall of wedges from the rear on, lower in front.
    for a, b in itertools.pairwise(np.linspace(0, uniform(1.7, 2.1), 8)) if back == "tub" else []:
        angle = np.array([a, b, b, a])
        wall = (w * np.sin(angle) - 1j * d * np.cos(angle)) * [0.84, 0.84, 0.99, 0.99]
        add(seat, seat + height * (0.42 - 0.23 * wall.imag / d), wall, tint=soft)
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
    # the farthest of the planes facing the camera, and leaves it through the nearest of the other planes.
    views = min(frames, AZIMUTHS)
    nearest = np.zeros((views, big, big), np.float32)  # 1 / depth of the first solid on each ray
    pictures = np.full((views, big, big, 3), 255, np.uint8)
    for points, spots, (rings, _, tint) in zip(seen, flat, solids):
        n = len(rings) // 2
        k = np.arange(n)
        # Three corners of a face: the sides, the lower ring and the upper ring.
        faces = np.hstack([(k, np.roll(k, -1), k + n), ((0, n), (1, n + 1), (2, n + 2))])
        a, b, c = points[:, faces].swapaxes(0, 1)
        planes = np.cross(b - a, c - a)
        planes /= (planes * a).sum(-1, keepdims=True) + 1e-9  # now planes @ point = 1 on the face
        is_front = (planes * points.mean(1, keepdims=True)).sum(-1) > 1  # the solid is behind the plane
        light = planes @ (-0.42, 0.71, 0.57) / np.sqrt((planes ** 2).sum(-1))
        paint = np.clip((0.45 + 0.5 * np.maximum(light, 0))[..., None] * tint, 0, 245).astype(np.uint8)
        for k in range(views):
            (left, top), (right, bottom) = spots[k].min(0), spots[k].max(0)
            columns = slice(*np.searchsorted(x, (left, right)))
            rows = slice(*np.searchsorted(y, (top, bottom)))
            inverse = np.tensordot(planes[k].astype(np.float32), rays[:, rows, columns], 1)  # 1 / depth
            enter, leave = inverse[is_front[k]], inverse[~is_front[k]].max(0)
            before = nearest[k, rows, columns]
            hit = enter.min(0) > np.maximum(leave, before)
            before[hit] = enter.min(0)[hit]
            pictures[k, rows, columns][hit] = paint[k, is_front[k]][enter.argmin(0)[hit]]
    small = [Image.fromarray(picture).reduce(SUPERSAMPLE) for picture in pictures]
    return np.stack([small[k % AZIMUTHS] for k in range(frames)])

def draw_chairs(clips=64, frames=16, size=64, seed=0, progress=lambda done, total: None):
    """Drawn chairs -> Clips, uint8 [clips, frames, size, size, 3]: an identity a clip, a rotation for all.
    Clip j depends on seed and j alone. progress(done, total) is called after every clip."""
    videos = np.empty((clips, frames, size, size, 3), np.uint8)
    for index in range(clips):
        videos[index] = render_chair(make_chair(np.random.default_rng([seed, index])), frames, size)
        progress(index + 1, clips)
    names = [f"chair{index:03d}" for index in range(clips)]
    return Clips(videos, np.arange(clips), np.zeros(clips, np.int64), names, ["rotation"], names,
                 f"drawn chairs (seed {seed}), a stand-in: python data_prep.py chair prepares the real ones",
                 "chair")

# ---- Drawn people: the stand-in of `--dataset weizmann` until the real films are there -------------------
# Points are complex, x + iy with y down, in heights of the person from the middle of the hips.

KEPT = 40  # frames of a drawn clip: a window of 16 and more than a period of any action
# Columns: whether the person is seen from the side; frames of a period; frames to cross the picture (0: the
# person stays); phase of the far limbs; moving arms. Then four key values (2 values come twice, 1 value
# stays) of thigh, knee, arm, elbow and lean (degrees, forwards, or outwards if seen from the front), and of
# the lift off the ground (in heights of the person; below 0 the legs bend).
MOTIONS = """
bend   1 32  0 0 2   | 2 -4          | -2              | 4 22          | 4      | 0 126     | 0
jack   0 12  0 0 2   | 2 16 29 16    | 0               | 10 85 160 85  | 6      | 0         | 0 0.08
jump   1  8 16 0 2   | 62 -4 34 28   | -105 -12 -56 -40| -60 60 110 30 | 15     | 44 14 6 16| 0 0.08 0.2 0.02
pjump  0 16  0 0 2   | 3             | 0               | 10 26         | 4      | 0         | -0.26 0.2
run    1  8 10 0.5 2 | 52 6 -36 16   | -50 -24 -26 -105| -50 -5 45 0   | 80     | 15        | 0.05 0
side   0 14 15 0 2   | 32 2          | 0               | 28 14         | 8      | 0         | 0 0.06
skip   1 16 14 0.5 2 | 78 24 -14 10  | -95 -18 -8 -45  | -40 0 50 10   | 30     | 4         | 0.13 0
walk   1 12 15 0.5 2 | 28 2 -26 14   | -6 -4 -16 -52   | -26 0 26 0    | 14     | 3         | 0
wave1  0 16  0 0 1   | 4             | 0               | 114 142       | -16 66 | 0         | 0
wave2  0 16  0 0 2   | 4             | 0               | 84 150        | -8 50  | 0         | 0
"""

def read_motions():
    """{action: (from the side, period, crossing, phase, arms, key values [4] of thigh, knee, ...)}."""
    table = {}
    for line in MOTIONS.strip().splitlines():
        action, numbers = line.split(maxsplit=1)
        first, *keys = [np.array(column.split(), float) for column in numbers.split("|")]
        table[action] = (*first, [np.resize(key, 4) for key in keys])
    return table

def make_person(rng, index, size):
    """A random person -> height, girth, colours of shirt, skin and trousers, background [size, size, 3]."""
    hue = index / len(PERSONS) + rng.uniform(0, 0.1)
    y, x = np.mgrid[:size, :size] / size
    rows, columns = ((14, 7), (6, 6), (1, 10), (10, 1))[index % 4]  # bricks, slabs, planks, boards
    stones = rng.normal(1, 0.1, (rows, columns))[(y * rows).astype(int), (x * columns).astype(int)]
    wall = colour(hue, 0.3, 0.75) * stones[..., None]
    ground = colour(rng.uniform(), 0.2, rng.uniform(0.4, 0.65))
    background = np.where(y[..., None] < rng.uniform(0.72, 0.8), wall, ground)
    background *= rng.normal(1, 0.03, (size, size, 1))
    shirt = colour(hue + 0.5, 0.75, rng.uniform(0.55, 0.95))
    skin = colour(0.07, rng.uniform(0.3, 0.55), rng.uniform(0.4, 0.95))
    trousers = colour(hue + rng.uniform(0.8, 1.2), 0.45, rng.uniform(0.2, 0.5))
    height = 0.54 + 0.015 * (index * 4 % 9)
    return height, rng.uniform(0.063, 0.09), shirt, skin, trousers, background.clip(0, 255).astype(np.uint8)

def limb(start, angle, bend, side, length):
    """Joint and end of an arm or a leg. An angle of 0 is straight down, of 90 towards `side`."""
    joint = start + length * 1j * np.exp(-1j * side * np.radians(angle))
    return joint, joint + length * 1j * np.exp(-1j * side * np.radians(angle + bend))

def draw_clip(person, motion, t):
    """Frames t [T] of a person in motion -> uint8 [T, H, W, 3]."""
    height, girth, shirt, skin, trousers, background = person
    from_side, period, crossing, phase, arms, keys = motion
    # From left to right and back again, or in the middle.
    across = t / crossing % 2 if crossing else 0.5 + 0 * t
    facing = np.where(from_side * (across >= 1), -1, 1)
    bars = {}  # {whether far: [(from [T], to [T], radius, colour)]}
    for far in (True, False):
        beat = 4 * (t / period + phase * far) % 4
        thigh, knee, arm, elbow, lean, lift = [np.interp(beat, range(5), [*key, key[0]]) for key in keys]
        if far and arms == 1:  # the other arm hangs
            arm, elbow = 8, 6
        side = facing if from_side or not far else -facing
        spine = -1j * np.exp(1j * facing * np.radians(lean))
        aside = side * (1 - from_side)
        shoulder, hip = 0.285 * spine + 0.085 * aside, 0.045 * aside
        elbow, hand = limb(shoulder, arm, elbow, side, 0.16)
        knee, foot = limb(hip, thigh, knee, side, 0.25 * (1 + lift.clip(max=0)))
        bars[far] = [(hip, knee, 0.045, trousers), (knee, foot, 0.036, trousers),
                     (foot, foot + 0.05 * side, 0.034, 0.3 * skin),
                     (shoulder, elbow, 0.034, shirt), (elbow, hand, 0.027, skin)]
    head = 0.41 * spine
    face = head + 0.036 * facing * from_side + 0.02j
    trunk = [(0 * head, 0.65 * head, girth, shirt), (head, head, 0.075, 0.3 * skin), (face, face, 0.06, skin)]
    # The lower foot stands on the ground, or is lifted.
    lowest = np.maximum(bars[True][1][1].imag, bars[False][1][1].imag)
    hips = (0.17 + 0.66 * np.minimum(across, 2 - across) + 0.865j) / height - 1j * (lowest + lift.clip(0))
    size = len(background) * SUPERSAMPLE
    still = Image.fromarray(background).resize((size, size), Image.Resampling.NEAREST)
    film = []
    for k in range(len(t)):
        picture = still.copy()
        draw = ImageDraw.Draw(picture)
        for a, b, radius, tint in bars[True] + trunk + bars[False]:
            ends = [size * height * (hips + point)[k] for point in (a, b)]
            ends = [(point.real, point.imag) for point in ends]
            radius *= size * height
            tint = tuple(tint.astype(int))
            draw.line(ends, tint, round(2 * radius))
            for end in ends:
                draw.circle(end, radius, tint)
        film.append(np.asarray(picture.reduce(SUPERSAMPLE)))
    return np.stack(film)

def draw_people(frames=16, size=64, seed=0, progress=lambda done, total: None):
    """Drawn people -> Clips, uint8 [90, frames, size, size, 3], 9 persons x 10 actions, at least 40 frames
    a clip in `full`. progress(done, total) is called after every clip."""
    pairs = list(itertools.product(PERSONS, ACTIONS))
    motions = read_motions()
    clips = []
    for index in range(len(PERSONS)):
        rng = np.random.default_rng([seed, index])
        person = make_person(rng, index, size)
        for action in ACTIONS:
            begin = rng.integers(int(motions[action][1]))  # a phase of their own
            clips.append(draw_clip(person, motions[action], begin + np.arange(max(frames, KEPT))))
            progress(len(clips), len(pairs))
    source = f"drawn people (seed {seed}), a stand-in: python data_prep.py weizmann prepares the real films"
    return from_clips(clips, frames, ["_".join(pair) for pair in pairs], [person for person, _ in pairs],
                      [action for _, action in pairs], source, "weizmann")

# ---- Commands --------------------------------------------------------------------------------------------
class Progress:
    """A line every five seconds: how many are done, of how many, and the remaining time."""
    def __init__(self, what):
        self.what = what
        self.start = self.told = time.monotonic()

    def __call__(self, done, total=None):
        now = time.monotonic()
        if now - self.told < 5:
            return
        self.told = now
        seconds = (now - self.start) * ((total or 0) / max(done, 1e-9) - 1)
        rest = f" of {total:.0f}, {seconds:.0f} s left" if total else ""
        put(f"{self.what}: {done:.0f}{rest}", sys.stderr)

class Parser(argparse.ArgumentParser):
    """argparse with errors of a single line."""
    def error(self, message):
        raise DataError(f"{message}; see {self.prog} --help")

def between(low, high=math.inf, kind=int):
    """The argparse type of a number from low to high."""
    def number(text):
        value = kind(text)
        if not low <= value <= high:
            expected = f"{low} to {high}" if high < math.inf else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text}: {expected} expected")
        return value
    number.__name__ = kind.__name__
    return number

def parse(arguments):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    most_clips = dict(chair=4 * CHAIRS, weizmann=90, golf=GOLFS)
    for prepare in (chair, weizmann, golf, folder, draw):
        command = prepare.__name__
        sub = commands.add_parser(command, help=prepare.__doc__.splitlines()[0], description=prepare.__doc__)
        sub.set_defaults(prepare=prepare, source=None, clips=0, fetched=[], grid=False, pattern=None)
        add = sub.add_argument
        add("--frames", type=between(MIN_FRAMES, MAX_FRAMES), default=16, help="frames a clip (16)")
        add("--size", type=int, choices=SIDES, default=64, help="side of a frame in pixels (64)")
        add("--out", default="data", help="folder for NAME.npz and NAME.png (data)")
        add("--name", required=command == "folder", help="the set's name (the command's, or drawn_WHAT)")
        add("--force", action="store_true", help="redo a set that is already there")
        if command == "folder":
            add("source", metavar="path", nargs="+")
            add("--grid", action="store_true", help="clips are named static_transient: two dictionaries")
            add("--pattern", metavar="REGEX", type=name_pattern,
                help="--grid by groups `static` and `transient`: "
                "KTH: (?P<static>person[0-9]+)_(?P<transient>[a-z]+)_d1, "
                "UCF101: v_(?P<transient>[A-Za-z]+)_(?P<static>g[0-9]+)_c01")
            add("--axes", metavar="LETTERS", help="of an array, as NTHWC, or TNHW of Moving MNIST (a guess)")
            add("--keep-frames", type=between(1, MAX_FRAMES), help="of a longer clip (4 x --frames)")
            either = sub.add_mutually_exclusive_group().add_argument
            either("--every", type=between(1, MAX_FRAMES), default=1, help="keep each EVERY-th frame")
            either("--fps", type=between(0.01, 1000, float), help="keep FPS frames of a second of clip time")
        else:
            add("--clips", type=between(1, 100_000), default=most_clips.get(command),
                help="how many: the first ones (all; draw chair: 64)")
            add("--seed", type=between(0, 2 ** 32), default=0, help="of the draw (0)")
        if command == "draw":
            add("what", choices=("chair", "weizmann"))
        if command in most_clips:
            add("--source", help="a folder, an archive or an http(s) address instead of the official address")
            add("--keep", action="store_true", help="keep the downloaded files; golf: download it whole")
        if command in ("folder", "chair"):
            add("--workers", type=between(1, 256), default=os.cpu_count(), help="threads (the cores)")
        if command == "weizmann":
            add("--actions", nargs="+", choices=ACTIONS, default=ACTIONS, help="some actions (all)")
        if command in ("folder", "weizmann"):
            add("--no-crop", action="store_true", help="squeeze whole frames instead of cutting a square")
    options = parser.parse_args(arguments)
    options.grid = options.grid or options.pattern is not None
    return options

def name_pattern(text):
    """The argparse type of --pattern."""
    try:
        groups = re.compile(text).groupindex
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not {"static", "transient"} <= groups.keys():
        raise argparse.ArgumentTypeError(f"{text}: groups (?P<static>...) and (?P<transient>...) expected")
    return text

def options_of(options):
    """The options that decide the content of a set -> JSON, with checksums for paths."""
    how = {key: value for key, value in sorted(vars(options).items())
           if key not in ("command", "prepare", "fetched", "out", "name", "force", "keep", "workers")}
    paths = options.source if isinstance(options.source, list) else [options.source or ""]
    how["source"] = [f"{zlib.crc32(os.fsencode(os.path.abspath(path))):08x}" for path in paths]
    return json.dumps(how)

def run(options):
    """Make data/NAME.npz and its contact sheet. Raises DataError before any work, and OSError."""
    name = options.name or (f"drawn_{options.what}" if options.command == "draw" else options.command)
    name = name.removesuffix(".npz")
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(f"--name {name}: letters, digits, dot, dash and underscore expected")
    if options.command == "folder" and name in ("chair", "weizmann", "golf"):
        raise DataError(f"--name {name}: the name of one of the paper's sets; choose another")
    for source in options.source if isinstance(options.source, list) else [options.source or CHAIR]:
        if not os.path.exists(source) and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?", source):
            raise DataError(f"{printable(source)}: does not exist, and is no http or https address")
    if options.command == "draw" and options.what == "weizmann" and options.clips:
        raise DataError("--clips: draw weizmann draws its whole grid of 90 clips; leave it out")
    clips = options.clips or (90 if options.command == "draw" else 0)
    if clips * options.frames * options.size ** 2 * 3 > MAX_SET:
        raise DataError(f"{clips} clips of that size pass {MAX_SET >> 30} GiB")
    out = Path(options.out, f"{name}.npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{printable(out)}: another data_prep.py makes it; let it end, or choose another --name"
    lock = take_lock(out.with_name(f".{name}.lock"), busy)
    try:
        make(out, options)
    finally:
        lock.release()

def make(out, options):
    """Make a set, `out` (a Path), and its contact sheet, for the holder of its lock, as the options of the
    command line say. Raises DataError and OSError."""
    sweep(out.parent, out.stem)
    picture = out.with_suffix(".png")
    how = options_of(options)
    if out.exists() and not options.force:
        there = load(out)
        before, now = json.loads(there.how or "{}"), json.loads(how)
        changed = [key for key in now if before and before.get(key) != now[key]]
        if changed:
            raise DataError(f"{out} was made with another {', '.join(changed)}: --force redoes it, or choose "
                            "another --name")
        if not picture.exists():
            contact_sheet(there, picture)
        return say(f"{printable(out)} is there: {there}; --force redoes it")
    notes = []
    try:
        clips = options.prepare(options, notes)
    finally:
        report(notes)
    clips.how = how
    picture.unlink(missing_ok=True)  # never a sheet of other clips
    save(clips, out)
    contact_sheet(clips, picture)
    say(f"{printable(out)}: {printable(clips, 300)}\nlook at {printable(picture)}")
    for path in options.fetched:
        say(f"kept {printable(path)}") if options.keep else path.unlink()

def contact_sheet(clips, picture):
    """A PNG of up to 16 frames of up to 16 clips, evenly spread."""
    N, L = clips.videos.shape[:2]
    shown = np.unique(np.linspace(0, N - 1, 16).round().astype(int))
    sheet(clips.videos[shown][:, :16], picture, row_labels=[clips.names[j][:24] for j in shown],
          title=f"{len(shown)} of {N} clips, {min(L, 16)} of {L} frames")

def main(arguments=None):
    """The command line -> exit status: 0, 2 after an error line, 130 after Ctrl-C."""
    try:
        return run(parse(arguments)) or 0
    except (DataError, OSError, ImportError) as error:
        warn(printable(error, 500), "data_prep.py")
        return 2
    except MemoryError:
        warn("not enough memory: fewer clips or --keep-frames, or a smaller --size, may fit", "data_prep.py")
        return 2
    except KeyboardInterrupt:
        warn("interrupted; nothing half-written is left", "data_prep.py")
        return 130

if __name__ == "__main__":
    sys.exit(main())
