"""What data_prep.py draws until the real clips are there: chairs (ray casting) and people, as arrays."""
import colorsys
import itertools

import numpy as np
from PIL import Image

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

def make_person(rng, index, size):  # -> height, girth, clothes [3, 3], background
    hue = index / len(PERSONS) + rng.uniform(0, 0.1)
    background = make_background(rng, hue, index % 4, size)
    clothes = np.array([colour(hue + 0.5, 0.75, rng.uniform(0.55, 0.95)),  # shirt
                        colour(0.07, rng.uniform(0.3, 0.55), rng.uniform(0.4, 0.95)),  # skin
                        colour(hue + rng.uniform(0.8, 1.2), 0.45, rng.uniform(0.2, 0.5))])  # trousers
    return 0.54 + 0.015 * (index * 4 % 9), rng.uniform(0.063, 0.09), clothes, background

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
