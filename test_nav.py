"""Tests of nav: `pytest -q`."""

# ---- data_prep ------------------------------------------------------------------------------------------------------

import bz2
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_prep

HERE = Path(__file__).resolve().parent
REAL = HERE.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(data_prep, "BACKOFF", 0.02)


def prepare(*arguments):
    """data_prep.py's main in this process -> exit status."""
    try:
        return data_prep.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


def one_line(capsys):
    """What was said on standard error: one line."""
    text = capsys.readouterr().err.strip()
    assert text and "\n" not in text and "Traceback" not in text, text
    return text


def weights(count, begin, side, out):
    """[count, out]: the antialiased bicubic (a = -1/2) that takes begin..begin + side of `count` pixels to `out`."""
    scale = side / out
    centre = begin + (np.arange(out) + 0.5) * scale
    x = np.abs(np.arange(count)[:, None] + 0.5 - centre) / max(scale, 1)
    w = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return w / w.sum(0)


def resized(image, out, side=None):
    """An independent crop-and-resize of uint8 [H, W, 3]: a centred square of that side, or the whole picture."""
    high, wide = image.shape[:2]
    rows, columns = (weights(count, (count - (side or count)) / 2, side or count, out) for count in (high, wide))
    narrow = np.clip(np.tensordot(image.astype(float), columns, (1, 0)), 0, 255)  # [H, 3, out]
    return np.clip(np.tensordot(rows.T, narrow, (1, 0)), 0, 255).transpose(0, 2, 1)


def close(prepared, expected, most=2.0):
    return np.abs(prepared.astype(float) - expected).max() <= most


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def avi(video, promised=None, bits=24, codec=b"\0\0\0\0", flip=True, sizes=None, size=None):
    """uint8 [T, H, W, 3] as the Weizmann films have it: RIFF, uncompressed, BGR, bottom-up, rows padded to 4 bytes."""
    high, wide = size or video.shape[1:3]

    def chunk(tag, body):
        return tag + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    def rows(frame):
        frame = frame[:: -1 if flip else 1, :, ::-1]
        return np.pad(frame.reshape(len(frame), -1), ((0, 0), (0, -3 * frame.shape[1] % 4))).tobytes()

    count = len(video) if promised is None else promised
    main = struct.pack("<14I", 40000, 0, 0, 0x10, count % 2**32, 0, 1, 0, wide % 2**32, high % 2**32, 0, 0, 0, 0)
    form = struct.pack("<IiiHH4sIiiII", 40, wide, high if flip else -high, 1, bits, codec, 0, 0, 0, 0, 0)
    head = chunk(b"avih", main) + chunk(b"LIST", b"strl" + chunk(b"strh", b"vids" + bytes(52)) + chunk(b"strf", form))
    bodies = [rows(frame) for frame in video]
    if sizes:
        bodies = [body[: sizes.get(t, len(body))] for t, body in enumerate(bodies)]
    movi = b"movi" + b"".join(chunk(b"00db", body) for body in bodies)
    body = b"AVI " + chunk(b"LIST", b"hdrl" + head) + chunk(b"JUNK", bytes(11)) + chunk(b"LIST", movi)
    body += chunk(b"idx1", bytes(16))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def film(seed, frames=18, high=28, wide=37):
    """A small random film that is smooth enough to survive resizing: uint8 [frames, high, wide, 3]."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)) for _ in range(frames)]
    return np.stack([np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC)) for image in small])


def tar_of(entries, mode="w"):
    """A tar of (name, bytes) or ready TarInfo entries."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, body in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if body is not None:
                info.size = len(body)
            archive.addfile(info, io.BytesIO(body or b""))
    return file.getvalue()


def zip_of(entries, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, body in entries:
            archive.writestr(name, body)
    return file.getvalue()


def render(model, elevation, view, side=600):
    """A stand-in for one render: white ground, a coloured block that moves with the view."""
    image = np.full((side, side, 3), 255, np.uint8)
    x, y = side // 4 + view * side // 80, side // 3 + 7 * model
    image[y : y + side // 4, x : x + side // 5] = (40 * model % 256, 8 * view, 5 * elevation)
    image[y : y + side // 8, x : x + 9] = 0
    return image


def chair_entries(models, side=600, views=31):
    """The chair tar's members: rendered_chairs/<hash>/renders/..., and the list of names, which is no render."""
    entries = [("rendered_chairs/all_chair_names.mat", b"MATLAB 5.0 MAT-file" + bytes(200))]
    for model in models:
        for elevation in (20, 30):
            for view in range(views):
                number = view + (0 if elevation == 20 else views)
                name = f"image_{number:03d}_p{elevation:03d}_t{view * 360 // 31:03d}_r096.png"
                body = png(render(model, elevation, view, side))
                entries.append((f"rendered_chairs/{model:032x}/renders/{name}", body))
    return entries


@pytest.fixture(scope="session")
def chair_tar():
    """Three models of 62 renders; one of 600 x 600, the size of the real ones."""
    return tar_of(chair_entries([1]) + chair_entries([2, 3], side=90))


@pytest.fixture(scope="session")
def weizmann_zips():
    """{action: zip} of 9 persons x 10 actions, lena with two runs, skips and walks."""
    zips = {}
    for a, action in enumerate(data_prep.ACTIONS):
        entries = []
        for p, person in enumerate(data_prep.PERSONS):
            double = person == "lena" and action in ("run", "skip", "walk")
            for take in (1, 2) if double else ("",):
                entries.append((f"{person}_{action}{take}.avi", avi(film([p, a, take or 0], frames=16 + p % 3))))
        zips[action] = zip_of(entries)
    return zips


def strips(count, folders, frames=16, side=128):
    """Golf strips: (name in the archive, jpeg bytes)."""
    films = [film(index, frames, side, side).reshape(-1, side, 3) for index in range(count)]
    return [(f"frames-stable-many/{k % folders:04d}/{k:06d}.jpg", jpeg(strip)) for k, strip in enumerate(films)]


class Server:
    """A loopback HTTP server of {path: bytes}. cuts: (end of a path, share of the file after which one answer breaks
    off); hang: send that share, then nothing; slow: seconds for every 16 KiB; errors: how many 503s come first."""

    def __init__(self, files, ranges=True, cuts=(), hang=None, slow=0.0, moved=None, errors=0, tag='"one"'):
        self.files, self.ranges, self.cuts, self.hang, self.slow = files, ranges, list(cuts), hang, slow
        self.moved, self.errors, self.tag, self.asked, self.sent = moved or {}, errors, tag, [], 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                owner.asked.append((self.path, self.headers.get("Range")))
                if self.path in owner.moved:
                    self.send_response(302)
                    self.send_header("Location", owner.moved[self.path])
                    self.end_headers()
                    return
                if owner.errors:
                    owner.errors -= 1
                    self.send_error(503)
                    return
                if self.path not in owner.files:
                    self.send_error(404)
                    return
                body, begin = owner.files[self.path], 0
                if owner.ranges and self.headers.get("Range"):
                    begin = int(self.headers["Range"][6:-1])
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                if owner.tag:
                    self.send_header("ETag", owner.tag)
                self.send_header("Content-Length", str(len(body) - begin))
                self.end_headers()
                end = len(body)
                if owner.cuts and self.path.endswith(owner.cuts[0][0]):
                    end = int(len(body) * owner.cuts.pop(0)[1])
                hangs = owner.hang is not None and not self.path.endswith(".txt")
                if hangs:
                    end = int(len(body) * owner.hang)
                with contextlib.suppress(OSError):
                    for at in range(begin, end, 1 << 14):
                        self.wfile.write(body[at : min(at + (1 << 14), end)])
                        owner.sent += min(1 << 14, end - at)
                        time.sleep(owner.slow)
                    self.wfile.flush()
                    if hangs:
                        owner.stop.wait(10)
                self.close_connection = True

        self.stop = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


def same(a, b):
    """Two Clips hold the same."""
    arrays = ("videos", "static_id", "transient_id", "full", "length")
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in arrays) \
        and (a.names, a.static_names, a.transient_names) == (b.names, b.static_names, b.transient_names)


def trains(npz, tmp_path):
    """nav.py takes 20 steps on a set."""
    if not (HERE / "nav.py").exists():
        pytest.skip("nav.py is not there")
    command = [sys.executable, "nav.py", "--dataset", npz, "--steps", "20", "--clips", "4", "--width", "4", "--batch",
               "2", "--device", "cpu", "--out", tmp_path / "run"]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


# The prepared set


def some_clips(longer=False):
    videos = np.random.default_rng(0).integers(0, 255, (3, 5, 16, 16, 3), dtype=np.uint8)
    full = np.concatenate([videos[0], videos[1], videos[1][:2], videos[2]]) if longer else None
    length = np.array([5, 7, 5]) if longer else None
    return data_prep.Clips(videos, np.array([0, 0, 1]), np.array([0, 1, 0]), ["a", "b"], ["x", "y"],
                           ["a_x", "a_y", "b_x"], "drawn for a test", full, length)


@pytest.mark.parametrize("longer", [False, True])
def test_set_survives_save_and_load(tmp_path, longer):
    clips = some_clips(longer)
    data_prep.save(clips, tmp_path / "set.npz")
    again = data_prep.load(tmp_path / "set.npz")
    assert same(clips, again) and again.standin and again.source == clips.source
    with np.load(tmp_path / "set.npz", allow_pickle=False) as arrays:
        assert ("full" in arrays) == longer
    assert os.listdir(tmp_path) == ["set.npz"]


def damage(**changes):
    def write(path):
        data_prep.save(some_clips("length" in changes or "full" in changes), path)
        with np.load(path) as arrays:
            arrays = dict(arrays)
        for key, value in changes.items():
            if value is None:
                del arrays[key]
            else:
                arrays[key] = value(arrays[key]) if callable(value) else value
        np.savez_compressed(path, **arrays)

    return write


def cut_file(path):
    data_prep.save(some_clips(), path)
    path.write_bytes(path.read_bytes()[:-900])


def flip_bytes(path):
    data_prep.save(some_clips(), path)
    data = bytearray(path.read_bytes())
    data[400:500] = bytes(100)
    path.write_bytes(data)


def huge(shape, body=b""):
    """An npz whose `videos` promises a huge array and holds `body`."""
    def write(path):
        data_prep.save(some_clips(), path)
        with zipfile.ZipFile(path) as old:
            rest = {name: old.read(name) for name in old.namelist() if name != "videos.npy"}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=shape))
        path.write_bytes(zip_of([("videos.npy", header.getvalue() + body), *rest.items()]))

    return write


def fortran_bomb(path):
    """Declares 2^33 bytes, and does hold 2^27 zeros."""
    huge((2, 16, 16384, 16384, 3), bytes(1 << 24))(path)


BAD_SETS = [
    (lambda path: None, "cannot be read"),
    (lambda path: path.write_bytes(b""), "not a whole zip"),
    (lambda path: path.write_bytes(b"PK" * 500), "not a whole zip"),
    (cut_file, "truncated"),
    (flip_bytes, "damaged"),
    (damage(videos=None), "'videos' is missing"),
    (damage(static_id=None), "'static_id' is missing"),
    (damage(source=None), "'source' is missing"),
    (damage(length=None), "'length' is missing"),
    (damage(videos=lambda v: v.astype(np.float32)), "'videos' is float32, uint8 expected"),
    (damage(videos=lambda v: v[0]), "'videos' has shape (5, 16, 16, 3), 5 dimensions"),
    (damage(videos=lambda v: v[..., :2]), "'videos' has shape"),
    (damage(**dict.fromkeys(("videos", "static_id", "transient_id", "names"), lambda v: v[:0])), "holds no clip"),
    (damage(videos=lambda v: v[:, :0]), "'videos' has shape"),
    (damage(static_id=lambda v: v + 1), "'static_id' runs from 1 to 2, 0 to 1 expected"),
    (damage(transient_id=lambda v: v - 1), "'transient_id' runs from -1 to 0"),
    (damage(static_id=lambda v: v[:2]), "'static_id' has 2 entries"),
    (damage(static_id=lambda v: v.astype(np.int32)), "'static_id' is int32, int64 expected"),
    (damage(static_id=lambda v: v.astype(float)), "'static_id' is float64, int64 expected"),
    (damage(static_id=lambda v: v[:, None]), "'static_id' has shape (3, 1), 1 dimensions"),
    (damage(names=lambda v: v[:1]), "'names' has 1 entries"),
    (damage(names=lambda v: np.array([1, 2, 3])), "'names' is int64, str expected"),
    (damage(names=lambda v: np.array(["a", 1, {}], object)), "'names': holds Python objects"),
    (damage(source=lambda v: np.array(["a", "b"])), "'source' has shape (2,), 0 dimensions"),
    (damage(static_names=lambda v: v[:0]), "'static_id' runs from"),
    (damage(length=lambda v: v - [0, 0, 3]), "'length' adds up to"),
    (damage(length=lambda v: np.array([2**62, 2**62, 2**62])), "'length' adds up to"),
    (damage(full=lambda v: v[:, :8]), "'full' has frames of"),
    (damage(full=lambda v: v[:-1]), "'length' adds up to"),
    (huge((2**40, 16, 64, 64, 3)), "at most"),
    (huge((2**62, 2**62, 2**62, 1, 3)), "at most"),
    (huge((-1, 16, 64, 64, 3)), "'videos'"),
    (huge((4, 16, 64, 64, 3)), "promises"),
    (fortran_bomb, "at most"),
]


@pytest.mark.parametrize("case", range(len(BAD_SETS)))
def test_bad_set_is_named(tmp_path, case):
    write, text = BAD_SETS[case]
    write(tmp_path / "bad.npz")
    with pytest.raises(data_prep.DataError) as error:
        data_prep.load(tmp_path / "bad.npz")
    assert text in str(error.value) and "\n" not in str(error.value), error.value


def test_write_beside_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail(temporary):
        assert temporary.parent == tmp_path and temporary.suffix == ".txt"
        temporary.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError):
        data_prep.write_beside(path, fail)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file.txt"]
    data_prep.write_beside(path, lambda temporary: temporary.write_text("after"))
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["file.txt"]


def test_sheet_places_cells(tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 6, 3), dtype=np.uint8)
    data_prep.sheet(rows, tmp_path / "a.png", scale=2, gap=3)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (3 + 2 * 19, 3 + 3 * 15, 3)
    for r in range(2):
        for k in range(3):
            cell = picture[3 + r * 19 : 19 + r * 19, 3 + k * 15 : 15 + k * 15]
            assert np.array_equal(cell, rows[r, k].repeat(2, 0).repeat(2, 1))
    data_prep.sheet([[rows[0, 0], None]], tmp_path / "b.png", frames=[[(255, 0, 0), None]], row_labels=["one"],
                    column_labels=["a", "b"])
    picture = np.asarray(Image.open(tmp_path / "b.png"))
    assert (picture == (255, 0, 0)).all(2).sum() == 12 * 10 - 8 * 6
    assert (picture == rows[0, 0][0, 0]).all(2).any()


def test_gif_keeps_frames_and_still_ground(tmp_path):
    video = np.full((6, 32, 32, 3), 230, np.uint8)
    for t in range(6):
        video[t, 8:20, 3 * t : 3 * t + 8] = (30, 90 + 20 * t, 160)
    data_prep.write_gif(video, tmp_path / "a.gif", fps=10)
    again = data_prep.read_clip(tmp_path / "a.gif")
    assert again.shape == video.shape and np.abs(again.astype(int) - video).max() <= 6
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0 and image.info["duration"] == 100


# Drawings


def test_chairs_are_the_same_chairs_whatever_the_count():
    few, more = data_prep.draw_chairs(3), data_prep.draw_chairs(5)
    assert few.videos.shape == (3, 16, 64, 64, 3) and few.standin
    assert np.array_equal(few.videos, more.videos[:3])
    assert not np.array_equal(few.videos, data_prep.draw_chairs(3, seed=1).videos)
    assert few.static_id.tolist() == [0, 1, 2] and not few.transient_id.any() and len(few.transient_names) == 1


def test_chairs_fill_the_frame_and_never_touch_the_border():
    videos = data_prep.draw_chairs(24, frames=31, size=32, seed=3).videos
    assert (videos[:, :, [0, -1]] == 255).all() and (videos[:, :, :, [0, -1]] == 255).all()
    inked = (videos < 250).any(4)
    spans = inked.any((1, 3)).sum(1) / 32  # rows with ink in any view
    assert spans.min() >= 0.5 and np.median(spans) >= 0.72 and spans.max() <= 0.95
    assert (inked.mean((1, 2, 3)) > 0.04).all()
    turned = np.abs(videos[:, 1:].astype(int) - videos[:, :-1]).mean((2, 3, 4))
    assert turned.min() > 0  # it turns in every step
    assert len({tuple(video[0].mean((0, 1)).astype(int)) for video in videos}) > 20  # no two alike


def first_met(parts, k, rays):
    """What rays from camera k meet first, by intersecting every convex piece, without any sorting.

    rays: points [R, 3] that the rays go through -> piece or -1 [R], how far the runner-up is behind [R]."""
    corners = np.concatenate([piece.reshape(-1, 3) for piece, _ in parts])
    middle = (corners.min(0) + corners.max(0)) / 2
    distance = 5 * np.linalg.norm(corners - middle, axis=1).max()
    a, e = 2 * np.pi * k / 31, np.radians(20)
    eye = middle + distance * np.array([np.sin(a) * np.cos(e), np.cos(a) * np.cos(e), np.sin(e)])
    nearest, owner, margin = np.full(len(rays), np.inf), np.full(len(rays), -1), np.full(len(rays), np.inf)
    for index, (piece, _) in enumerate(parts):
        _, normals, offsets = data_prep.faces_of(piece)
        toward, gap = (rays - eye) @ normals.T, offsets - eye @ normals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            t = gap / toward
        enter = np.where(toward < 0, t, -np.inf).max(1)
        leave = np.where(toward > 0, t, np.inf).min(1)
        hit = (enter < leave - 1e-3) & (enter > 0)
        margin = np.where(hit, np.minimum(margin, np.abs(enter - nearest)), margin)
        closer = hit & (enter < nearest)
        nearest, owner = np.where(closer, enter, nearest), np.where(closer, index, owner)
    return owner, margin


def test_nothing_hidden_is_painted(monkeypatch):
    """The painter's order agrees with rays: what a ray to a point inside piece b meets first is painted after b."""
    orders, sort = [], data_prep.in_order
    monkeypatch.setattr(data_prep, "in_order", lambda *arguments: orders.append(sort(*arguments)) or orders[-1])
    wrong = seen = 0
    for index in range(4):
        parts = data_prep.make_chair(np.random.default_rng([9, index]))
        orders.clear()
        data_prep.render_chair(parts, 31, 8, 0.8)
        rng = np.random.default_rng(index)
        for k in (0, 3, 7, 12, 19, 26):
            for b, (piece, _) in enumerate(parts):
                rays = rng.dirichlet(np.ones(2 * piece.shape[1]), 40) @ piece.reshape(-1, 3)
                owner, margin = first_met(parts, k, rays)
                for other in owner[(owner >= 0) & (owner != b) & (margin > 1e-3)]:
                    seen += 1
                    wrong += orders[k].index(b) > orders[k].index(other)
    assert seen > 2500 and not wrong, (wrong, seen)


def test_people_are_persons_times_actions():
    clips = data_prep.draw_people(size=32)
    assert clips.videos.shape == (90, 16, 32, 32, 3) and clips.standin
    assert clips.length.tolist() == [28] * 90 and clips.full.shape == (90 * 28, 32, 32, 3)
    assert (len(clips.static_names), len(clips.transient_names)) == (9, 10) and len(set(clips.names)) == 90
    for name, i, j in zip(clips.names, clips.static_id, clips.transient_id):
        assert name == f"{clips.static_names[i]}_{clips.transient_names[j]}"
    grid = clips.videos.reshape(9, 10, 16, 32, 32, 3).astype(int)
    walkers = [clips.transient_names.index(action) for action in ("jump", "run", "side", "skip", "walk")]
    grounds = [np.median(person[walkers, ::3].reshape(-1, 32, 32, 3), 0) for person in grid]  # walkers show all of it
    for person, ground in zip(grid, grounds):
        assert np.abs(person[:, :, :2] - ground[:2]).max() <= 1  # one still background; nobody reaches its top
    assert all(np.abs(grounds[a] - grounds[b]).mean() > 4 for a in range(9) for b in range(a))
    for index, action in enumerate(clips.transient_names):  # what differs from the ground crosses the frame, or stays
        moving = (np.abs(grid[2, index] - grounds[2]).max(3) > 40)[:, :26]
        centre = [np.nonzero(frame)[1].mean() / 32 for frame in moving]
        span = max(centre) - min(centre)
        assert span > 0.5 if index in walkers else span < 0.2, (action, span)
    # No two actions look alike, and an action is the same for everybody: poses do not depend on the person.
    for a in range(10):
        for b in range(a):
            assert np.abs(grid[4, a] - grid[4, b]).mean() > 0.5, (a, b)


# Clips of anybody


def test_folder_reads_every_kind(tmp_path, capsys):
    source, video = tmp_path / "clips", film(5, frames=16, high=64, wide=64)
    source.mkdir()
    data_prep.write_gif(video, source / "a_run.gif")
    images = [Image.fromarray(frame) for frame in video]
    images[0].save(source / "b_run.png", save_all=True, append_images=images[1:])
    images[0].save(source / "c_run.webp", save_all=True, append_images=images[1:], lossless=True)
    (source / "d_run").mkdir()
    for t, image in enumerate(images):
        image.save(source / "d_run" / f"frame{t}.png")  # frame10 comes after frame9
    Image.fromarray(np.concatenate(video, 0)).save(source / "e_run.png")
    Image.fromarray(np.concatenate(video, 1)).save(source / "f_walk.png")
    (source / "g_walk.avi").write_bytes(avi(video))
    data_prep.write_gif(video[:9], source / "h_short.gif")
    (source / "i_walk.gif").write_bytes(b"GIF89a what")
    (source / "j_walk.png").symlink_to(source / "e_run.png")
    (source / "README.txt").write_text("not a clip")
    Image.fromarray(video[0]).save(source / "still_one.png")
    (source / "plain.avi").write_bytes(avi(video))
    (source / "a_run.avi").write_bytes(avi(video))
    assert prepare("folder", source, "--name", "mine", "--grid", "--out", tmp_path / "data") == 0
    said = capsys.readouterr().out
    for text in ("fewer than 16 frames: h_short", "cannot be decoded", "a link, which is not followed: j_walk.png",
                 "README.txt", "is no strip", "no such name: plain", "two clips of one name: a_run",
                 "7 clips x 16 frames x 64 x 64"):
        assert text in said, (text, said)
    clips = data_prep.load(tmp_path / "data" / "mine.npz")
    assert (tmp_path / "data" / "mine.png").exists() and not clips.standin
    assert clips.static_names == list("abcdefg") and clips.transient_names == ["run", "walk"]
    assert clips.transient_id.tolist() == [0, 0, 0, 0, 0, 1, 1]
    for name, got in zip(clips.names, clips.videos):
        most = 40 if name == "a_run" else 0  # the first of a name is kept, here the avi; GIF has 256 colours
        assert np.abs(got.astype(int) - video).max() <= most, name
    assert prepare("folder", source, "--name", "mine", "--out", tmp_path / "data") == 0
    assert "is there: 7 clips" in capsys.readouterr().out


def test_folder_reads_arrays_and_crops_the_middle(tmp_path):
    long, short = film(1, 20, 48, 60), film(2, 18, 60, 48)
    source = tmp_path / "arrays.npz"
    np.savez(source, b_y=short, a_x=long, wrong=np.zeros(3), float_x=long / 255.0)
    assert prepare("folder", source, "--name", "arrays", "--grid", "--out", tmp_path) == 2  # the source itself: no set
    assert prepare("folder", source, "--name", "two", "--grid", "--size", 24, "--out", tmp_path) == 0
    clips = data_prep.load(tmp_path / "two.npz")
    assert clips.names == ["a_x", "b_y"] and clips.length.tolist() == [20, 18] and len(clips.full) == 38
    for t in range(16):
        assert close(clips.videos[0, t], resized(long[t], 24, 48))
        assert close(clips.videos[1, t], resized(short[t], 24, 48))
    assert np.array_equal(clips.full[:16], clips.videos[0]) and np.array_equal(clips.full[20:36], clips.videos[1])


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not there")
def test_folder_reads_the_real_films(tmp_path):
    assert prepare("folder", REAL / "weizmann4_64.npz", "--name", "w4", "--grid", "--out", tmp_path) == 0
    clips = data_prep.load(tmp_path / "w4.npz")
    assert clips.videos.shape == (36, 16, 64, 64, 3) and (len(clips.static_names), len(clips.transient_names)) == (9, 4)
    with np.load(REAL / "weizmann4_64.npz") as arrays:
        for j, name in enumerate(clips.names):
            begin = clips.length[:j].sum()
            assert np.array_equal(clips.full[begin : begin + 40], arrays[name])


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not there")
def test_the_real_avi(tmp_path):
    data = (REAL / "eli_jack.avi").read_bytes()
    frames = data_prep.read_avi(data, "eli_jack.avi")
    assert len(frames) == 51 and frames[0].shape == (144, 180, 3)
    at = data.index(b"movi00db") + 12
    assert data[at : at + 3] == bytes(frames[0][143, 0, ::-1])  # the file begins with the lowest row, in BGR
    wall, shirt = frames[0][5:30, 30:60].mean((0, 1)), frames[0][42:60, 76:84].mean((0, 1))
    assert wall[0] > wall[2] and shirt[2] > shirt[0]  # a reddish wall above, a blue shirt
    assert data_prep.read_clip(REAL / "eli_jack.avi", 20, 64).shape == (20, 64, 64, 3)


def test_read_clip_sizes(tmp_path):
    video = film(3, 5, 30, 44)
    (tmp_path / "a.avi").write_bytes(avi(video))
    assert np.array_equal(data_prep.read_clip(tmp_path / "a.avi"), video)
    assert data_prep.read_clip(tmp_path / "a.avi", 3, 16).shape == (3, 16, 16, 3)
    (tmp_path / "down.avi").write_bytes(avi(video, flip=False))
    assert np.array_equal(data_prep.read_clip(tmp_path / "down.avi"), video)
    clear = Image.new("RGBA", (8, 16), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (data_prep.read_clip(tmp_path / "clear.png") == 255).all()
    for arguments in ((tmp_path / "a.avi", 6), (tmp_path / "none.gif",), (tmp_path,)):
        with pytest.raises(data_prep.DataError):
            data_prep.read_clip(*arguments)


@pytest.mark.parametrize("arguments", [
    "folder missing --name x", "folder . --name ../x", "folder . --name .x", "folder .", "what",
    "draw chair --frames 0", "draw chair --clips 0", "draw chair --size 4", "draw chair --seed -1", "draw golf",
    "draw chair --out file", "draw chair --out file/below", "draw weizmann --clips 3", "draw chair --size many",
    "chair --source missing.tar", "chair --source ftp://127.0.0.1/a.tar", "golf --source file:///etc/passwd",
    "chair --source http://", "chair --source http://[/a.tar", "weizmann --source . --sha256 00",
    "golf --source http://127.0.0.1:1/golf.tar.bz2 --sha256 " + "0" * 64, "chair --source . --sha256 " + "0" * 64,
    "chair --source http://127.0.0.1:1/a.tar --retries 0 --timeout 1", "chair --source http://127.0.0.1:x/a.tar",
    "chair --source . --timeout -1", "chair --source . --retries -1", "golf --source .", "chair --source file",
])
def test_bad_commands_say_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    assert prepare(*arguments.split()) == 2
    one_line(capsys)
    assert (tmp_path / "file").read_text() == "kept" and not list(tmp_path.rglob("*.npz"))


def test_a_damaged_set_is_not_taken_for_whole(tmp_path, capsys):
    (tmp_path / "drawn_chair.npz").write_bytes(b"half")
    assert prepare("draw", "chair", "--clips", 1, "--out", tmp_path) == 2
    assert "--force" in one_line(capsys)
    assert prepare("draw", "chair", "--clips", 1, "--out", tmp_path, "--force") == 0
    assert data_prep.load(tmp_path / "drawn_chair.npz").videos.shape == (1, 16, 64, 64, 3)


# The paper's three sets, served over loopback


def test_chair(tmp_path, chair_tar, capsys):
    with Server({"/rendered_chairs.tar": chair_tar}) as server:
        command = ["chair", "--source", server.url + "/rendered_chairs.tar", "--out", tmp_path]
        assert prepare(*command) == 0
        said = capsys.readouterr().out
        assert "SHA-256 " + hashlib.sha256(chair_tar).hexdigest() in said
        clips, asked = data_prep.load(tmp_path / "chair.npz"), len(server.asked)
        assert prepare(*command) == 0 and "is there: 12 clips" in capsys.readouterr().out and len(server.asked) == asked
        assert prepare(*command, "--force", "--clips", 4, "--seed", 1, "--keep") == 0 and len(server.asked) == asked + 1
    assert sorted(path.name.split("-")[-1] for path in tmp_path.rglob("*") if path.is_file()) == \
        ["chair.npz", "chair.png", "rendered_chairs.tar"]
    assert clips.videos.shape == (12, 16, 64, 64, 3)
    assert sorted(clips.static_names) == [f"{model:032x}" for model in (1, 2, 3)]
    assert clips.static_id.tolist() == [0, 1, 2] * 4
    assert clips.transient_id.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for name, row, kind, video in zip(clips.names, clips.static_id, clips.transient_id, clips.videos):
        model = int(clips.static_names[row], 16)
        side = 600 if model == 1 else 90
        for t in range(0, 16, 5):
            view = t + 16 * (kind % 2)
            expected = resized(render(model, (20, 30)[kind // 2], view % 31, side), 64, side * 2 // 3)
            assert close(video[t], expected), (name, t)
    small = data_prep.load(tmp_path / "chair.npz")
    assert len(small.videos) == 4 and small.transient_id.tolist() == [0, 0, 0, 1]
    assert small.static_names == [f"{m + 1:032x}" for m in np.random.default_rng(1).permutation(3)]


def test_chair_from_folder_archive_and_compressed_archive_are_the_same(tmp_path, capsys):
    entries = chair_entries([1, 2, 3], side=60)
    data = tar_of(entries)
    folder = tmp_path / "unpacked"
    for name, body in entries:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    sources = [folder, folder / "rendered_chairs"]
    for name, packed in (("a.tar", data), ("b.tar.gz", gzip.compress(data)), ("c.tar.bz2", bz2.compress(data)),
                         ("d.zip", zip_of(entries))):
        (tmp_path / name).write_bytes(packed)
        sources.append(tmp_path / name)
    sets = []
    for index, source in enumerate(sources):
        assert prepare("chair", "--source", source, "--out", tmp_path / f"out{index}", "--size", 16) == 0
        sets.append(data_prep.load(tmp_path / f"out{index}" / "chair.npz"))
    assert all(same(sets[0], other) for other in sets[1:]) and len(sets[0].videos) == 12


def test_weizmann(tmp_path, weizmann_zips, capsys):
    files = {f"/DB/{action}.zip": data for action, data in weizmann_zips.items()}
    with Server(files) as server:
        assert prepare("weizmann", "--source", server.url + "/DB/", "--out", tmp_path, "--size", 32) == 0
        assert "skipped 3: a person's second film of an action" in capsys.readouterr().out
        assert sorted(os.listdir(tmp_path / "downloads")) == []
        assert prepare("weizmann", "--source", server.url + "/DB", "--out", tmp_path / "wide", "--no-crop", "--keep",
                       "--clips", 12, "--size", 32) == 0
    assert len(os.listdir(tmp_path / "wide" / "downloads")) == 10
    clips, wide = data_prep.load(tmp_path / "weizmann.npz"), data_prep.load(tmp_path / "wide" / "weizmann.npz")
    assert clips.videos.shape == (90, 16, 32, 32, 3) and len(wide.videos) == 12
    assert clips.static_names == list(data_prep.PERSONS) and clips.transient_names == list(data_prep.ACTIONS)
    assert clips.length.tolist() == [16 + p % 3 for p in range(9) for _ in range(10)]
    begin = np.cumsum(clips.length) - clips.length
    for j in (0, 17, 54, 89):
        p, a = divmod(j, 10)
        double = data_prep.PERSONS[p] == "lena" and data_prep.ACTIONS[a] in ("run", "skip", "walk")
        source = film([p, a, int(double)], 16 + p % 3)
        for t in (0, 8, len(source) - 1):
            assert close(clips.full[begin[j] + t], resized(source[t], 32, 28))
    assert close(wide.videos[1, 3], resized(film([0, 1, 0], 16)[3], 32))


@pytest.fixture(scope="session")
def golf_files():
    """A tar.bz2 of 16 good strips in 8 folders and a few bad ones, and the list."""
    good = strips(16, 8)
    bad = [("frames-stable-many/0000/short.jpg", jpeg(film(1, 7, 128, 128).reshape(-1, 128, 3))),
           ("frames-stable-many/0001/odd.jpg", jpeg(film(1, 17, 128, 128).reshape(-1, 128, 3)[:-30])),
           ("frames-stable-many/0002/broken.jpg", good[3][1][:2000]),
           ("frames-stable-many/0003/wide.jpg", jpeg(np.zeros((128, 2304, 3), np.uint8)))]
    entries = sorted(good + bad)
    listed = "\n".join(name for name, _ in entries).encode()
    entries.append(("frames-stable-many/0004/unlisted.jpg", good[0][1]))
    return {"/videogan/golf.tar.bz2": bz2.compress(tar_of(entries)), "/videogan/golf.txt": listed}


def test_golf(tmp_path, golf_files, capsys):
    with Server(golf_files) as server:
        source = server.url + "/videogan/golf.tar.bz2"
        assert prepare("golf", "--source", source, "--out", tmp_path) == 0
        said = capsys.readouterr().out
        for text in ("fewer than 16 frames", "must be a multiple", "cannot be decoded", "not a vertical strip",
                     "not in the list"):
            assert sum(line.startswith("skipped 1: ") and text in line for line in said.splitlines()) == 1, (text, said)
        assert prepare("golf", "--source", source, "--out", tmp_path / "few", "--clips", 5) == 0
        assert prepare("golf", "--source", source, "--out", tmp_path / "again", "--clips", 5) == 0
        assert prepare("golf", "--source", source, "--out", tmp_path / "other", "--clips", 5, "--seed", 7) == 0
    clips = data_prep.load(tmp_path / "golf.npz")
    assert clips.videos.shape == (16, 16, 64, 64, 3) and len(clips.static_names) == len(clips.transient_names) == 16
    bodies = {name[19:-4]: body for name, body in strips(16, 8)}
    for name, video in zip(clips.names, clips.videos):
        strip = np.asarray(Image.open(io.BytesIO(bodies[name])))
        assert close(video[5], resized(strip[5 * 128 : 6 * 128], 64, 128)), name
    few, again, other = (data_prep.load(tmp_path / name / "golf.npz") for name in ("few", "again", "other"))
    assert len(few.videos) == 5 and same(few, again) and few.names != other.names
    assert len({name.split("/")[0] for name in few.names}) == 5  # a clip from each of five folders


def test_golf_stops_reading(tmp_path):
    noise = jpeg(np.random.default_rng(0).integers(0, 255, (64 * 16, 64, 3), dtype=np.uint8))  # 0.2 MB, do not shrink
    entries = [(f"frames-stable-many/{k:04d}.jpg", noise) for k in range(40)]
    data = bz2.compress(tar_of(entries), 1)
    with Server({"/golf.tar.bz2": data}, slow=0.003) as server:
        assert prepare("golf", "--source", server.url + "/golf.tar.bz2", "--out", tmp_path, "--clips", 2) == 0
        time.sleep(0.2)
        assert server.sent < 0.8 * len(data) and len(data_prep.load(tmp_path / "golf.npz").videos) == 2


@pytest.mark.parametrize("name", ["chair", "weizmann", "golf"])
def test_prepared_sets_train(tmp_path, name, weizmann_zips, golf_files):
    if not (HERE / "nav.py").exists():
        pytest.skip("nav.py is not there")
    files = {"chair": {"a.tar": tar_of(chair_entries([1, 2], side=60))},
             "weizmann": {f"{action}.zip": data for action, data in weizmann_zips.items()},
             "golf": {path.rpartition("/")[2]: data for path, data in golf_files.items()}}[name]
    (tmp_path / "in").mkdir()
    for path, data in files.items():
        (tmp_path / "in" / path).write_bytes(data)
    source = {"chair": "in/a.tar", "weizmann": "in", "golf": "in/golf.tar.bz2"}[name]
    assert prepare(name, "--source", tmp_path / source, "--out", tmp_path / "data") == 0
    trains(tmp_path / "data" / f"{name}.npz", tmp_path)


# Connections that break


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_a_cut_connection_is_taken_up(tmp_path, ranges, keep, capsys):
    data = tar_of(chair_entries([1, 2], side=60))
    with Server({"/a.tar": data}) as server:
        assert prepare("chair", "--source", server.url + "/a.tar", "--out", tmp_path / "whole") == 0
    with Server({"/a.tar": data}, ranges=ranges, cuts=[("a.tar", 0.3), ("a.tar", 0.7)]) as server:
        command = ["chair", "--source", server.url + "/a.tar", "--out", tmp_path / "cut"] + ["--keep"] * keep
        assert prepare(*command, "--sha256", hashlib.sha256(data).hexdigest().upper()) == 0
        begins = [int(asked[1][6:-1]) if asked[1] else 0 for asked in server.asked]
        assert len(begins) == 3 and 0 == begins[0] < begins[1] <= 0.3 * len(data) < begins[2] <= 0.7 * len(data)
    assert same(data_prep.load(tmp_path / "whole" / "chair.npz"), data_prep.load(tmp_path / "cut" / "chair.npz"))
    if keep:
        assert [path.read_bytes() == data for path in (tmp_path / "cut" / "downloads").iterdir()] == [True]


def test_golf_and_weizmann_over_cut_connections(tmp_path, golf_files, weizmann_zips):
    files = {"/walk.zip": weizmann_zips["walk"], **golf_files}
    cuts = [("walk.zip", 0.3), ("walk.zip", 0.7), ("golf.txt", 0.5), ("bz2", 0.3), ("bz2", 0.7)]
    with Server(files, cuts=cuts) as server:
        assert prepare("weizmann", "--source", server.url + "/walk.zip", "--out", tmp_path) == 0
        assert prepare("golf", "--source", server.url + "/videogan/golf.tar.bz2", "--out", tmp_path) == 0
        assert len(server.asked) == 8
    with Server(files) as server:
        assert prepare("weizmann", "--source", server.url + "/walk.zip", "--out", tmp_path / "b") == 0
        assert prepare("golf", "--source", server.url + "/videogan/golf.tar.bz2", "--out", tmp_path / "b") == 0
    for name in ("weizmann", "golf"):
        assert same(data_prep.load(tmp_path / f"{name}.npz"), data_prep.load(tmp_path / "b" / f"{name}.npz"))


@pytest.mark.parametrize("name", ["chair", "weizmann", "golf"])
def test_a_hanging_server_and_the_next_call(tmp_path, capsys, name, golf_files, weizmann_zips):
    tar = tar_of(chair_entries([1, 2, 3], side=60))
    files = {"/a.tar": tar, "/walk.zip": weizmann_zips["walk"], **golf_files}
    path = {"chair": "/a.tar", "weizmann": "/walk.zip", "golf": "/videogan/golf.tar.bz2"}[name]
    with Server(files) as server:
        assert prepare(name, "--source", server.url + path, "--out", tmp_path / "whole", "--clips", 9) == 0
        command = [name, "--source", server.url + path, "--out", tmp_path / "data", "--clips", 9, "--timeout", 0.5,
                   "--retries", 0]
        server.hang = 0.6
        capsys.readouterr()
        begin = time.monotonic()
        assert prepare(*command) == 2 and time.monotonic() - begin < 5
        assert "no answer for 0.5 s" in one_line(capsys)
        assert not (tmp_path / "data" / f"{name}.npz").exists()
        server.hang = None
        server.asked.clear()
        assert prepare(*command) == 0
        if name != "golf":  # goes on in the middle; a bz2 stream cannot
            assert int(server.asked[0][1][6:-1]) > 0.3 * len(files[path])
    assert same(data_prep.load(tmp_path / "whole" / f"{name}.npz"), data_prep.load(tmp_path / "data" / f"{name}.npz"))


def test_servers_that_answer_otherwise(tmp_path, capsys):
    data = tar_of(chair_entries([1], side=60))
    moved = {"/there": "/a.tar", "/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/a.tar"}
    with Server({"/a.tar": data}, moved=moved) as server:
        assert prepare("chair", "--source", server.url + "/there", "--out", tmp_path / "moved") == 0
        capsys.readouterr()
        for path, text in (("/file", "not allowed"), ("/ftp", "is not followed"), ("/none.tar", "404")):
            assert prepare("chair", "--source", server.url + path, "--out", tmp_path / "no") == 2
            assert text in one_line(capsys)
        server.errors = 1  # a 503 is tried again
        assert prepare("chair", "--source", server.url + "/a.tar", "--out", tmp_path / "busy") == 0
        capsys.readouterr()
        assert prepare("chair", "--source", server.url + "/a.tar", "--out", tmp_path / "no", "--sha256", "0" * 64) == 2
        assert "SHA-256" in one_line(capsys) and not (tmp_path / "no" / "chair.npz").exists()
        # Another file under the same address: the half that is here is not glued to it.
        command = ["chair", "--source", server.url + "/a.tar", "--out", tmp_path / "new", "--keep", "--timeout", 0.5,
                   "--retries", 0]
        server.hang = 0.6
        assert prepare(*command) == 2
        server.hang, server.tag = None, '"two"'
        capsys.readouterr()
        assert prepare(*command) == 2 and "another file" in one_line(capsys)
        assert prepare(*command, "--force") == 0


@pytest.mark.parametrize("name", ["chair", "golf"])
def test_killed_in_the_middle(tmp_path, name, golf_files):
    files = {"/a.tar": tar_of(chair_entries(list(range(1, 9)), side=60)), **golf_files}
    path = {"chair": "/a.tar", "golf": "/videogan/golf.tar.bz2"}[name]
    with Server(files) as server:
        command = [sys.executable, "data_prep.py", name, "--source", server.url + path, "--clips", "20", "--size", "32",
                   "--out"]
        assert subprocess.run([*command, tmp_path / "whole"], cwd=HERE, capture_output=True).returncode == 0
        for server.hang in (0.4, 0.8):
            asked = len(server.asked)
            quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running = subprocess.Popen([*command, tmp_path / "data"], cwd=HERE, **quiet)
            while len(server.asked) == asked or not server.asked[-1][0].endswith(path):
                time.sleep(0.02)
            time.sleep(0.5)
            running.send_signal(signal.SIGKILL)
            running.wait()
            assert not (tmp_path / "data" / f"{name}.npz").exists()
        (tmp_path / "data").mkdir(exist_ok=True)
        # What a kill leaves in the middle of the last write:
        (tmp_path / "data" / f".{name}.999999999.tmp.npz").write_bytes(b"half")
        server.hang = None
        assert subprocess.run([*command, tmp_path / "data"], cwd=HERE, capture_output=True).returncode == 0
    assert same(data_prep.load(tmp_path / "whole" / f"{name}.npz"), data_prep.load(tmp_path / "data" / f"{name}.npz"))
    assert sorted(os.listdir(tmp_path / "data")) == [f"{name}.npz", f"{name}.png"]


def test_control_c_says_one_line(tmp_path):
    with Server({"/a.tar": tar_of(chair_entries([1, 2], side=60))}, hang=0.5) as server:
        command = [sys.executable, "data_prep.py", "chair", "--source", server.url + "/a.tar", "--out", tmp_path]
        running = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        while not server.asked:
            time.sleep(0.05)
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        error = running.communicate()[1].strip()
    assert running.returncode == 130 and "interrupted" in error and "\n" not in error


# Hostile archives: what each of them must not do is in test_hostile


def link(name, kind, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def one_chair(name="rendered_chairs/good/renders"):
    return [(f"{name}/image_{k:03d}_p020_t{k:03d}_r096.png", png(render(1, 20, k, 30))) for k in range(16)]


def png_header(side):
    """A PNG that promises side x side pixels and has none."""
    def chunk(tag, body):
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def zip_lies(declared, body=bytes(1 << 20)):
    """A zip whose directory declares another size than its one member has."""
    data = bytearray(zip_of([("daria_walk.avi", body)]))
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at += data.index(mark)
        data[at : at + 4] = struct.pack("<I", declared)
    return bytes(data)


def zip_bomb(megabytes):
    """A zip whose one member says that it inflates to that much, and does."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = once * megabytes + packer.flush()
    data = bytearray(zip_of([("daria_walk.avi", packed)], zipfile.ZIP_STORED))
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at += data.index(mark)
        data[at : at + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        data[at + 14 : at + 18] = struct.pack("<I", megabytes << 20)
    return bytes(data)


def tar_size(entries, size, text=None):
    """A tar whose first member declares `size` bytes (or that text)."""
    data = bytearray(tar_of(entries))
    data[124:136] = text or (b"\x80" + size.to_bytes(11, "big"))
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def big_member(kind, size=1 << 33):
    """The header of a member of that kind and size, e.g. a name of 8 GB, and a little of it."""
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)


def bz2_bomb():
    """Endless zeros in a tar member: 300 MB in 15 kB."""
    info = tarfile.TarInfo("zeros.jpg")
    info.size = 300 << 20
    return bz2.compress(info.tobuf()) + 300 * bz2.compress(bytes(1 << 20))  # streams in a row are one


def gif_of_many(count):
    file = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (255 * (k % 2),) * 3) for k in range(count)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


PLAIN = film(0, 16, 8, 8)
STRIP = jpeg(film(0, 16, 16, 16).reshape(-1, 16, 3))
SMALL_RENDER = png(render(1, 20, 1, 12))
CHAIR_TAR = tar_of(one_chair())
FILM_ZIP = zip_of([("daria_walk.avi", avi(film(1, 16, 30, 30)))])
STRIPS = [(f"frames-stable-many/{k}.jpg", STRIP) for k in range(3)]

LOOSE, SPECIAL = "x/renders/image_000_p020_t000_r096.png", "a link, a device or another special member"


def chairs(*entries):
    return "chair", "a.tar", tar_of([entry for part in entries for entry in part])


def renders_of(body):
    """One chair whose renders are all `body`, or what it makes of a render."""
    return chairs([(name, body(render) if callable(body) else body) for name, render in one_chair()])


def strips_of(entries):
    return "golf", "golf.tar", tar_of(entries)


def films_of(*entries):
    return "weizmann", "a.zip", zip_of(entries)


def one_film(body=PLAIN, **options):
    """The zip of one film, daria_walk.avi: bytes, or frames with options of `avi`."""
    return films_of(("daria_walk.avi", body if isinstance(body, bytes) else avi(body, **options)))


# name: (command, the file's name, its bytes, usable clips or 0, what the line says)
HOSTILE = {
    "tar-dotdot": (*chairs(one_chair("../../evil/renders"), one_chair()), 2, "unsafe name"),
    "tar-dotdot-only": (*chairs(one_chair("../../evil/renders")), 0, "unsafe name"),
    "tar-absolute": (*chairs(one_chair("/tmp/evil/renders")), 0, "unsafe name"),
    "tar-symlink": (*chairs([link(LOOSE, tarfile.SYMTYPE)], one_chair()), 2, SPECIAL),
    "tar-symlink-folder": (*chairs([link("rendered_chairs", tarfile.SYMTYPE, "/tmp")], one_chair()), 2, SPECIAL),
    "tar-hard-link": (*chairs([link(LOOSE, tarfile.LNKTYPE, "../../etc/passwd")]), 0, SPECIAL),
    "tar-device": (*chairs([link("a", tarfile.CHRTYPE), link("b", tarfile.BLKTYPE), link("c", tarfile.FIFOTYPE)]), 0,
                   "skipped 3: " + SPECIAL),
    "tar-newline": (*chairs(one_chair("a\nb/renders"), one_chair("a\x1b[31m/renders")), 0, "unsafe name"),
    "tar-twice": (*chairs(one_chair(), one_chair("x/renders"), one_chair()), 4, "a model that comes twice"),
    "tar-render-twice": (*chairs(one_chair(), one_chair()), 2, "one render too many"),
    "tar-many-renders": (*chairs([(LOOSE.replace("000_p", f"{k}_p"), SMALL_RENDER) for k in range(300)]), 2,
                         "skipped 100: one render too many"),
    "tar-huge-size": ("chair", "a.tar", tar_size(one_chair(), 1 << 60), 0, "declares"),
    "tar-negative-size": ("chair", "a.tar", tar_size(one_chair(), 0, b"-0000000001\0"), 0, "declares"),
    "tar-no-size": ("chair", "a.tar", tar_size(one_chair(), 0, b"what is it?\0"), 0, "no tar header"),
    "tar-truncated": ("chair", "a.tar", CHAIR_TAR[: len(CHAIR_TAR) // 3], 0, "truncated"),
    "tar-truncated-late": ("chair", "a.tar", tar_of(one_chair() + one_chair("x/renders"))[:-12000], 2, "truncated"),
    "tar-truncated-header": ("chair", "a.tar", CHAIR_TAR[:300], 0, "truncated"),
    "tar-empty": ("chair", "a.tar", b"", 0, "truncated"),
    "tar-garbage": ("chair", "a.tar", random.Random(0).randbytes(5000), 0, "no tar header"),
    "tar-long-name-8GB": ("chair", "a.tar", big_member(tarfile.GNUTYPE_LONGNAME), 0, "declares"),
    "tar-long-name-900MB": ("chair", "a.tar", big_member(tarfile.GNUTYPE_LONGNAME, 900 << 20), 0, "a member's name of"),
    "tar-pax-900MB": ("chair", "a.tar", big_member(tarfile.XHDTYPE, 900 << 20), 0, "a member's name of"),
    "tar-pax-path": (*chairs([("x" * 150 + "/../../" + LOOSE, b"")]), 0, "unsafe name"),
    "png-40000": (*renders_of(png_header(40000)), 0, "cannot be decoded"),
    "png-12000": (*renders_of(png_header(12000)), 0, "12000 x 12000 pixels"),
    "png-truncated": (*renders_of(lambda body: body[:-40]), 0, "cannot be decoded"),
    "png-is-text": (*renders_of(b"what"), 0, "cannot be decoded"),
    "png-is-eps": (*renders_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 0, "cannot be decoded"),
    "bz2-bomb": ("golf", "golf.tar.bz2", bz2_bomb(), 0, "zip bomb"),
    "bz2-truncated": ("golf", "golf.tar.bz2", bz2.compress(tar_of(STRIPS))[:-300], 0, "the rest of the archive"),
    "bz2-damaged": ("golf", "golf.tar.bz2", b"BZh9" + bytes(500), 0, "damaged"),
    "gz-truncated": ("golf", "golf.tar.gz", gzip.compress(tar_of(STRIPS), 0)[:-9000], 2, "the rest of the archive"),
    "strip-endless": (*strips_of([("a.png", png(np.zeros((30000, 1, 3), np.uint8)))]), 0, "a strip of 30000 frames"),
    "strip-square": (*strips_of([("a.png", png(np.zeros((64, 64, 3), np.uint8)))]), 0, "not a vertical strip"),
    "strip-twice": (*strips_of(STRIPS + STRIPS[:1]), 3, "two clips of one name"),
    "strip-dotdot": (*strips_of([("../frames-stable-many/../x.jpg", STRIP)] + STRIPS), 3, "unsafe name"),
    "zip-dotdot": (*films_of(("../daria_walk.avi", avi(PLAIN))), 0, "unsafe name"),
    "zip-absolute": (*films_of(("/tmp/daria_walk.avi", avi(PLAIN)), ("daria_run.avi", avi(PLAIN))), 1, "unsafe name"),
    "zip-twice": (*films_of(("daria_walk.avi", avi(PLAIN)), ("x/daria_walk.avi", avi(PLAIN))), 1, "two clips of one"),
    "zip-bomb-declared": ("weizmann", "a.zip", zip_bomb(300), 0, "zip bomb"),
    "zip-bomb-undeclared": ("weizmann", "a.zip", zip_lies(1000, bytes(8 << 20)), 0, "cannot be unpacked"),
    "zip-bomb-inflated": ("weizmann", "a.zip", zip_lies(4_000_000_000), 0, "zip bomb"),
    "zip-lzma": ("weizmann", "a.zip", zip_of([("daria_walk.avi", bytes(1 << 20))], zipfile.ZIP_LZMA), 0, "another way"),
    "zip-truncated": ("weizmann", "a.zip", FILM_ZIP[:-30], 0, "not a whole zip"),
    "zip-half": ("weizmann", "a.zip", FILM_ZIP[: len(FILM_ZIP) // 2], 0, "not a whole zip"),
    "zip-directory-lies": ("weizmann", "a.zip", FILM_ZIP[:-10] + struct.pack("<I", 1 << 31) + FILM_ZIP[-6:], 0,
                           "a zip directory of"),
    "avi-promises-2^31": (*one_film(promised=2**31), 0, "promises 2147483648 frames"),
    "avi-0-byte-frame": (*one_film(sizes={3: 0}), 0, "frame 3 holds 0 bytes"),
    "avi-short-frame": (*one_film(sizes={3: 50}), 0, "frame 3 holds 50 bytes"),
    "avi-no-frame": (*one_film(PLAIN[:0], size=(8, 8)), 0, "holds no frame"),
    "avi-too-wide": (*one_film(size=(2**31 - 1, 2**31 - 1)), 0, "pixels, at most"),
    "avi-no-width": (*one_film(size=(8, 0)), 0, "0 x 8 pixels"),
    "avi-codec": (*one_film(codec=b"DIVX"), 0, "codec DIVX"),
    "avi-8-bit": (*one_film(bits=8), 0, "uncompressed, 8 bits"),
    "avi-truncated": (*one_film(avi(PLAIN)[:-600]), 0, "truncated"),
    "avi-header-only": (*one_film(avi(PLAIN)[:130]), 0, "daria_walk.avi"),
    "avi-is-text": (*one_film(b"what"), 0, "not an avi"),
    "avi-too-short": (*one_film(PLAIN[:5]), 0, "fewer than 16 frames"),
    "npz-object": ("folder", "a.npz", None, 0, "Python objects"),
    "npz-huge": ("folder", "a.npz", None, 0, "at most"),
    "gif-endless": ("folder", "clips/a.gif", gif_of_many(1500), 1, ""),
    "gif-truncated": ("folder", "clips/a.gif", gif_of_many(20)[:100], 0, "no usable clip"),
    "webp-truncated": ("folder", "clips/a.webp", b"RIFF\x10\0\0\0WEBPVP8X", 0, "cannot be decoded"),
    "png-16-bit": ("folder", "clips/a.png", None, 0, "more than 8 bits"),
}


def hostile_source(name, folder):
    """Write the case's file -> the path that the command gets."""
    command, file, body, *_ = HOSTILE[name]
    path = folder / "in" / file
    path.parent.mkdir(parents=True)
    if name == "npz-object":
        np.savez(path, a_b=np.array([{}], object))
    elif name == "npz-huge":
        huge((2**34,))(path)
        with zipfile.ZipFile(path) as archive:
            path.write_bytes(zip_of([("a_b.npy", archive.read("videos.npy"))]))
    elif name == "png-16-bit":
        Image.fromarray(np.zeros((256, 16), np.uint16)).save(path)
    else:
        path.write_bytes(body)
    return path if file.startswith(("a.", "golf")) else path.parent


def hostile_command(name, folder):
    source = hostile_source(name, folder)
    command = HOSTILE[name][0]
    how = ["folder", source, "--name", "mine"] if command == "folder" else [command, "--source", source]
    return [*how, "--out", folder / "out", "--size", 16]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path, capsys, name):
    """Nothing but the set and its sheet is written; what was wrong is said; without a usable clip it exits 2."""
    command, before = hostile_command(name, tmp_path), {path for path in Path("/tmp").iterdir()}
    status, clips, text = prepare(*command), HOSTILE[name][3], HOSTILE[name][4]
    said = capsys.readouterr()
    assert status == (0 if clips else 2), said
    assert text in said.out + said.err and "Traceback" not in said.err, said
    assert all(line.isprintable() for line in said.out.splitlines() + said.err.splitlines())
    if not clips:
        assert said.err.count("\n") == 1
    npz = list((tmp_path / "out").glob("*.npz"))
    assert len(npz) == bool(clips) and all(len(data_prep.load(path).videos) == clips for path in npz)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in written} <= {"in", "out"}, written
    assert not {path.name for path in set(Path("/tmp").iterdir()) - before} & {"evil", "daria_walk.avi"}


def test_hostile_folder(tmp_path, capsys):
    """An unpacked folder: links out of it are not followed, pipes do not block."""
    good = tmp_path / "in" / "good" / "renders"
    good.mkdir(parents=True)
    for name, body in one_chair():
        (good / name.rpartition("/")[2]).write_bytes(body)
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "in" / "linked").symlink_to(good.parent)
    (good / "image_099_p020_t099_r096.png").symlink_to("/etc/passwd")
    os.mkfifo(good / "image_098_p020_t098_r096.png")
    assert prepare("chair", "--source", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "skipped 4: a link" in capsys.readouterr().out
    assert data_prep.load(tmp_path / "out" / "chair.npz").static_names == ["good"]


def test_hostile_archives_stay_under_a_gigabyte(tmp_path):
    """All of them in one process, whose largest memory is asked at the end."""
    for name in HOSTILE:
        (tmp_path / name).mkdir()
    commands = [[str(argument) for argument in hostile_command(name, tmp_path / name)] for name in HOSTILE]
    code = "import sys, json, resource, data_prep\nfor c in json.load(sys.stdin): data_prep.main(c)\n" \
           "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    run = subprocess.run([sys.executable, "-c", code], input=json.dumps(commands), cwd=HERE, capture_output=True,
                         text=True)
    peak = int(run.stdout.rpartition("peak ")[2]) * (1 if sys.platform == "darwin" else 1024)
    assert run.returncode == 0 and peak < 1 << 30, peak
