"""Built-in data set: rendered views of houses and gardens from a drone that looks straight down, with exact masks.

A first run needs data, and a download is where first runs fail. These scenes need none, there is no end of them, and
their truth is known to the pixel. They carry the 24 ids of the TU Graz semantic drone data set, and so take the same
grouping to five or two classes.

A scene is a plot in metres: a street with cars, a house, water, paths, and what people leave between them. Height, yaw,
sun, colour temperature, exposure, haze, blur and sensor noise vary. What stands up leans away from the centre by
perspective and casts its shadow away from the sun; a shadow never changes a label. Colours of the classes overlap on
purpose (red roof and red car, pond and shaded asphalt), so that shape and surroundings have to be learnt.
"""

import copy

import numpy as np

from .canvas import View, blob, choose, disc, oval, patch, polygon, rectangle, rgb, strokes, turn

SIZES = {"train": 240, "val": 40, "test": 40}

PAVED, DIRT, GRASS, GRAVEL, WATER, ROCKS, POOL, VEGETATION, ROOF, WALL, WINDOW = range(1, 12)
FENCE, FENCE_POLE, PERSON, DOG, CAR, BICYCLE, TREE, BALD_TREE, AR_MARKER, OBSTACLE = range(13, 23)


def paint_ground(view: View, rng: np.random.Generator) -> None:
    """Lawn or dry meadow, with bare earth in places."""
    lawn = choose(rng, (104, 132, 62), (124, 138, 78), (88, 120, 60), (140, 138, 88))
    view.albedo[:] = view.grain(lawn, 0.25, 0.25, 0.15, 0.3)((slice(None), slice(None)))
    view.mask[:] = GRASS
    for _ in range(rng.integers(1, 5)):
        earth = view.grain(
            choose(rng, (140, 112, 80), (122, 98, 72), (156, 134, 100)), 0.1, 0.2, 0.2, 0.3
        )
        view.paint(
            blob(rng.uniform(-0.5, 0.5, 2) * view.extent, rng.uniform(0.8, 2.6), rng, 0.15),
            DIRT,
            earth,
        )


def paint_paths(
    view: View, rng: np.random.Generator, house: np.ndarray, drive: np.ndarray, street: float
) -> None:
    """The drive, a terrace, and a gravel path that swings through the garden to the street."""
    stones = view.grain(
        choose(rng, (168, 162, 152), (184, 174, 158), (150, 144, 136)), 0.05, 0.1, 0.15, 0.6
    )
    bricks = view.grain(
        choose(rng, (158, 118, 98), (170, 164, 154), (140, 136, 134)), 0.05, 0.1, 0.15, 0.25
    )
    bricks = view.jointed(bricks, 0, *((0.8, 0.8) if rng.random() < 0.5 else (0.5, 1.0)))
    view.paint(polygon(drive), *((GRAVEL, stones) if rng.random() < 0.4 else (PAVED, bricks)))
    middle, end = house.mean(axis=0), np.array([rng.uniform(-0.5, 0.5) * view.extent, street])
    terrace = middle + np.array(
        [rng.uniform(-1.5, 1.5), rng.choice([-1, 1]) * (np.ptp(house[:, 1]) / 2 + 1)]
    )
    view.paint(polygon(rectangle(terrace, rng.uniform(4, 7), rng.uniform(3, 4.5))), PAVED, bricks)
    t = np.linspace(0, 1, 9)[:, None]
    path = middle + t * (end - middle) + np.sin(t * np.pi) * rng.normal(0, 2.5, 2)
    view.paint(
        strokes(np.stack([path[:-1], path[1:]], axis=1), rng.uniform(1.3, 2.2)), GRAVEL, stones
    )


def paint_street(view: View, rng: np.random.Generator, middle: np.ndarray, width: float) -> None:
    """Pavements on both sides of a carriageway with a broken line, and at times a crossing."""
    slabs = view.grain(
        choose(rng, (172, 168, 160), (156, 148, 140), (184, 170, 150)), 0.05, 0.1, 0.1, 0.2
    )
    asphalt = view.grain(
        choose(rng, (92, 92, 96), (112, 110, 108), (76, 78, 82), (134, 130, 124)),
        0.1,
        0.15,
        0.1,
        0.2,
    )
    white = view.grain(rgb(222, 222, 214), 0, 0.1, 0.1, 0.2)
    slabs = view.jointed(slabs, 0, 1.0, 0.6)
    for across, texture in (
        (width + 2.4, slabs),
        (width + 0.3, rgb(196, 194, 188)),
        (width, asphalt),
    ):
        view.paint(polygon(rectangle(middle, 3 * view.extent, across)), PAVED, texture)
    for x in np.arange(-0.8 * view.extent, 0.8 * view.extent, 3.0) + rng.uniform(0, 3):
        view.paint(polygon(rectangle(middle + np.array([x, 0]), 1.5, 0.14)), PAVED, white)
    if rng.random() < 0.4:
        x = rng.uniform(-0.4, 0.4) * view.extent
        for y in np.arange(0.6 - width / 2, width / 2 - 0.2, 1.0):
            view.paint(polygon(rectangle(middle + np.array([x, y]), 2.6, 0.5)), PAVED, white)


def paint_water(view: View, rng: np.random.Generator) -> None:
    """A tiled pool, a pond with a stony bank, or both."""
    kinds = rng.choice(["pool", "pond", "both"], p=[0.4, 0.3, 0.3])
    if kinds != "pond":
        place, angle, power = (
            view.spot(rng, 3.4, 0.38),
            rng.normal(0, 0.1),
            rng.choice([2.0, 4.0, 12.0]),
        )
        length, width = rng.permutation([rng.uniform(5.5, 8.5), rng.uniform(3.2, 4.5)])
        rim = view.grain(choose(rng, (200, 192, 176), (176, 172, 166)), 0, 0.1, 0.1, 0.2)
        rim = view.jointed(rim, angle, 0.8, 0.8)
        water = view.grain(
            choose(rng, (84, 172, 192), (60, 142, 178), (112, 184, 180)), 0.1, 0.15, 0.25, 0.1
        )
        view.paint(polygon(rectangle(place, length + 1.6, width + 1.6, angle)), PAVED, rim)
        view.shade(polygon(oval(place, length + 0.3, width + 0.3, angle, power)), 0.1, 0.3)
        view.paint(polygon(oval(place, length, width, angle, power)), POOL, water, 0.9)
    if kinds != "pool":
        place, radius = view.spot(rng, 3.2, 0.38), rng.uniform(2.4, 3.8)
        bank = view.grain(choose(rng, (120, 108, 80), (104, 100, 84)), 0.1, 0.2, 0.2, 0.3)
        water = view.grain(
            choose(rng, (62, 84, 78), (74, 88, 96), (88, 96, 72), (56, 74, 92)), 0.35, 0.25, 0.05
        )
        view.paint(
            blob(place, radius + 0.5, copy.deepcopy(rng)), DIRT, bank
        )  # the same waves as the shore
        view.paint(blob(place, radius, rng), WATER, water, 0.8)
        for angle in rng.uniform(0, 2 * np.pi, 8):
            paint_rock(view, rng, place + np.array([radius + 0.4, 0]) @ turn(angle))


def paint_rock(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    size, stone = (
        rng.uniform(0.4, 1.0),
        choose(rng, (146, 142, 136), (120, 114, 108), (164, 152, 136)),
    )
    base = place + rng.normal(0, size / 2, (7, 2)).clip(-size, size)
    view.box(base, size * 0.6, ROCKS, view.grain(stone, 0, 0.1, 0.2, 0.3), stone)


def paint_table(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    """A table between two benches."""
    angle = rng.uniform(0, np.pi)
    wood = choose(rng, (150, 112, 76), (176, 150, 120), (112, 84, 64), (128, 128, 130))
    planks = view.jointed(view.grain(wood, 0, 0.1, 0.1, 0.2), angle + np.pi / 2, 0.35)
    for offset, width, height in ((-1.0, 0.5, 0.45), (1.0, 0.5, 0.45), (0.0, 1.1, 0.8)):
        view.box(
            rectangle(place + np.array([0, offset]) @ turn(angle), 2.4, width, angle),
            height,
            OBSTACLE,
            planks,
            wood,
        )


def paint_shed(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    """A low hut or a container: nothing to land on."""
    angle, length, width = rng.choice([0, np.pi / 2]), rng.uniform(2.8, 4.2), rng.uniform(2.0, 2.6)
    metal = choose(rng, (120, 84, 62), (92, 116, 128), (150, 84, 62), (126, 130, 126), (76, 92, 74))
    ribs = view.jointed(view.grain(metal, 0, 0.15, 0.15, 0.2), angle, 0.5, joint=0.4)
    view.box(rectangle(place, length, width, angle), 2.3, OBSTACLE, ribs, metal)


def paint_parasol(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    """Eight gores of cloth, lit by how they face the sun."""
    cloth = choose(rng, (214, 206, 190), (176, 60, 48), (52, 56, 60), (70, 104, 150), (60, 110, 80))
    rim = np.array([rng.uniform(1.3, 1.8), 0])
    view.shade(disc(place + view.sun * 2.2, rim[0]))
    middle = view.lift(place, 2.2)
    for k in np.arange(8) * np.pi / 4:
        light = float(np.clip(0.95 - 0.3 * turn(k + np.pi / 8)[0] @ view.sun, 0, 1.3))
        gore = np.stack([middle, middle + rim @ turn(k), middle + rim @ turn(k + np.pi / 4)])
        view.paint(polygon(gore), OBSTACLE, cloth, light)


def paint_marker(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    """A calibration target with two black squares."""
    yaw = turn(rng.uniform(0, np.pi))
    for x, y, width, grey in ((0, 0, 1.2, 236), (-0.25, -0.25, 0.45, 20), (0.25, 0.25, 0.45, 20)):
        view.paint(
            polygon(rectangle(np.array([x, y]), width, width) @ yaw + place),
            AR_MARKER,
            rgb(grey, grey, grey),
        )


def paint_person(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    tall, angle = rng.uniform(1.5, 1.9), rng.uniform(0, np.pi)
    clothes = choose(
        rng,
        (180, 50, 46),
        (50, 78, 140),
        (224, 220, 210),
        (40, 40, 46),
        (210, 170, 60),
        (90, 120, 90),
    )
    shoulders = view.lift(place, tall - 0.3)
    view.shade(strokes(np.array([[place, place + view.sun * tall]]), 0.42), 0.1)
    view.paint(
        strokes(np.array([[place, shoulders]]), 0.36),
        PERSON,
        choose(rng, (52, 58, 84), (70, 64, 58)),
        0.6,
    )
    view.paint(polygon(oval(shoulders, 0.74, 0.44, angle)), PERSON, clothes)
    view.paint(
        disc(view.lift(place, tall), 0.14),
        PERSON,
        choose(rng, (66, 46, 34), (150, 110, 70), (30, 26, 24)),
    )


def paint_dog(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    angle, coat = (
        rng.uniform(0, 2 * np.pi),
        choose(rng, (92, 64, 44), (200, 176, 140), (44, 40, 38)),
    )
    view.shade(polygon(oval(place + view.sun * 0.5, 1.0, 0.4, angle)))
    view.paint(polygon(oval(place, 1.0, 0.36, angle)), DOG, coat)
    view.paint(disc(place + np.array([0.5, 0]) @ turn(angle), 0.18), DOG, coat * 0.8)


def paint_bicycle(view: View, rng: np.random.Generator, place: np.ndarray) -> None:
    """Two wheels, a frame and a bar, as they look on a stand."""
    yaw = turn(rng.uniform(0, np.pi))
    wheels = np.array([[[-0.95, 0.0], [-0.3, 0.14]], [[0.3, 0.0], [0.95, 0.14]]]) @ yaw + place
    frame = np.array([[[-0.85, 0], [0.85, 0]], [[0.5, -0.32], [0.5, 0.32]]]) @ yaw + place
    view.shade(strokes(wheels + view.sun * 0.5, 0.3), 0.2, 0.8)
    view.paint(strokes(wheels, 0.26), BICYCLE, rgb(44, 44, 46))
    view.paint(
        strokes(frame, 0.2),
        BICYCLE,
        choose(rng, (190, 50, 44), (60, 110, 170), (210, 210, 206), (90, 160, 90)),
    )


def paint_car(view: View, rng: np.random.Generator, place: np.ndarray, angle: float) -> None:
    """Body, glass and roof, one above the other, and two lamps."""
    length, width, top = rng.uniform(3.9, 4.9), rng.uniform(1.75, 1.95), rng.uniform(1.35, 1.7)
    greys = (218, 218, 216), (58, 62, 70), (120, 126, 132), (36, 36, 38)
    colour, glass = (
        choose(rng, (196, 60, 50), (54, 84, 130), (150, 140, 110), (160, 84, 60), *greys),
        rgb(58, 68, 80),
    )
    angle += rng.choice([0, np.pi])
    cabin = place + np.array([-0.07 * length, 0]) @ turn(angle)
    view.box(oval(place, length, width, angle, 6), 0.75, CAR, colour, colour * 0.6)
    view.box(oval(cabin, 0.58 * length, 0.88 * width, angle, 6), 0.95, CAR, glass, glass, foot=0.75)
    view.box(
        oval(cabin, 0.36 * length, 0.8 * width, angle, 6), top, CAR, colour, glass * 0.7, foot=0.95
    )
    for side in (-0.36, 0.36):
        lamp = view.lift(place + np.array([0.46 * length, side * width]) @ turn(angle), 0.75)
        view.paint(disc(lamp, 0.12), CAR, rgb(236, 234, 220))


def paint_border(
    view: View, rng: np.random.Generator, start: np.ndarray, end: np.ndarray, kind: str
) -> None:
    """A wall, a fence with posts or a hedge between two points, piece by piece so that each leans by itself."""
    length, angle, count = np.hypot(*(end - start)), np.arctan2(*(end - start)[::-1]), 5
    brick = choose(rng, (150, 96, 76), (176, 168, 156), (196, 184, 160), (132, 126, 120))
    timber = choose(rng, (134, 98, 66), (96, 74, 58), (190, 186, 178), (110, 112, 110))
    leaf = choose(rng, (62, 92, 44), (74, 100, 58))
    for middle in start + (end - start) * (np.arange(count)[:, None] + 0.5) / count:
        run = rectangle(
            middle, length / count, {"wall": 0.7, "fence": 0.25, "hedge": 1.1}[kind], angle
        )
        if kind == "wall":
            view.box(
                run,
                1.6,
                WALL,
                view.jointed(view.grain(brick, 0, 0.1, 0.15, 0.2), angle, 0.6),
                brick,
            )
        elif kind == "fence":
            wood = view.grain(timber, 0, 0.1, 0.1, 0.2)
            view.box(run, 1.7, FENCE, wood, view.jointed(wood, angle, 0.3))
            view.box(rectangle(run[0], 0.4, 0.4, angle), 1.9, FENCE_POLE, wood, timber)
        else:
            leaves = view.grain(leaf, 0.1, 0.3, 0.5, 0.5)
            view.box(run, 1.5, VEGETATION, leaves, leaves)


def paint_house(view: View, rng: np.random.Generator, base: np.ndarray) -> None:
    """Walls with windows where the camera sees them; a hipped roof of tiles with skylights, solar panels, a chimney."""
    middle, (length, width) = base.mean(axis=0), np.ptp(base, axis=0)
    eave, pitch = rng.uniform(2.8, 4.5), rng.uniform(0.35, 0.65)
    ridge, half = eave + pitch * (width / 2 + 0.3), np.array([(length - width) / 2, 0])
    plaster = choose(rng, (216, 206, 186), (196, 178, 150), (222, 220, 214), (168, 110, 88))
    tile = choose(rng, (158, 82, 62), (132, 70, 58), (84, 84, 90), (110, 92, 78), (172, 110, 80))
    view.box(base, eave, WALL, plaster, view.grain(plaster, 0, 0.1, 0.1, 0.1))
    eaves, tops = (
        rectangle(middle, length + 0.6, width + 0.6),
        np.stack([middle - half, middle + half]),
    )
    view.shade(polygon(eaves + view.sun * eave, tops + view.sun * ridge))
    corners, (left, right) = view.lift(eaves, eave), view.lift(tops, ridge)
    outwards = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])
    for k, outward in enumerate(outwards):
        if base[k] @ outward < 0:  # this wall is turned to the camera
            front = np.concatenate(
                [view.lift(base[[k, k - 3]], 0), view.lift(base[[k - 3, k]], eave)]
            )
            for t in np.arange(0.1, 0.85, 0.2):
                view.paint(
                    polygon(patch(front, t, t + 0.12, 0.3, 0.75)), WINDOW, rgb(70, 84, 100), 0.6
                )
    view.paint(
        polygon(corners, np.stack([left, right])), ROOF, tile * 0.7
    )  # shows between the faces as caps of the ridges
    for k, tip in enumerate(([right, left], [right, right], [left, right], [left, left])):
        face, outward = np.concatenate([corners[[k, k - 3]], tip]), outwards[k]
        light = float(np.clip((1 - pitch * view.sun @ outward) / np.hypot(1, pitch), 0.1, 1.3))
        tiles = view.jointed(
            view.grain(tile, 0.1, 0.12, 0.12, 0.25), (k + 1) % 2 * np.pi / 2, 0.42, 0.3, joint=0.25
        )
        view.paint(polygon(face + 0.012 * (face.mean(axis=0) - face)), ROOF, tiles, light)
        if k % 2 == 0:
            panels = rng.random() < 0.35
            glass = view.grain(rgb(40, 52, 84) if panels else rgb(90, 106, 124), 0.2, 0.1)
            glass = view.jointed(glass, 0, 1.0, 0.9, joint=0.08) if panels else glass
            panes = (
                [(0.22, 0.78)]
                if panels
                else [(t, t + 0.11) for t in rng.uniform(0.2, 0.7, rng.integers(1, 3))]
            )
            for a, b in panes:
                label, low, high = (OBSTACLE, 0.2, 0.75) if panels else (WINDOW, 0.35, 0.65)
                view.paint(polygon(patch(face, a, b, low, high)), label, glass, light)
    if rng.random() < 0.8:
        place, brick = (
            middle + rng.uniform(-0.8, 0.8) * half,
            choose(rng, (140, 80, 64), (170, 166, 160)),
        )
        view.box(
            rectangle(place, 1.1, 0.9), ridge + 0.8, OBSTACLE, brick * 0.5, brick, foot=ridge - 0.3
        )
        view.paint(
            polygon(rectangle(view.lift(place, ridge + 0.8), 0.6, 0.4)), OBSTACLE, rgb(24, 22, 22)
        )


def paint_canopy(
    view: View, rng: np.random.Generator, place: np.ndarray, radius: float, top: float, label: int
) -> None:
    """A shadow, a dark crown, and on it clumps of leaves, brighter toward the sun."""
    leaf = choose(rng, (78, 106, 48), (62, 92, 52), (104, 116, 56), (52, 80, 46), (130, 110, 50))
    middle, toward = view.lift(place, top), -view.sun / np.hypot(*view.sun)
    view.shade(
        blob(place + view.sun * top, radius, copy.deepcopy(rng)), 0.4
    )  # the same waves as the crown
    view.paint(blob(middle, radius, rng), label, view.grain(leaf * 0.55, 0.1, 0.2, 0.4, 0.5), 0.55)
    for angle, out in rng.uniform((0, 0.1), (2 * np.pi, 0.66), (8, 2)):
        offset = turn(angle)[0] * out
        leaves = view.grain(leaf * np.float32(rng.uniform(0.8, 1.1)), 0, 0.2, 0.4, 0.6)
        clump = blob(middle + offset * radius, radius * rng.uniform(0.24, 0.36), rng, 0.1)
        view.paint(clump, label, leaves, float(0.7 + 0.5 * offset @ toward))


def paint_tree(view: View, rng: np.random.Generator) -> None:
    """A tree in leaf or, one in six, bare branches."""
    radius = rng.uniform(1.3, 2.7)
    place, top = view.spot(rng, 0.8 * radius), rng.uniform(1.2, 1.8) * radius
    if rng.random() < 5 / 6:
        return paint_canopy(view, rng, place, radius, top, TREE)
    branches = []
    for angle in np.arange(9) * 0.7 + rng.normal(0, 0.2, 9):
        fork, tip = rng.uniform((0.4, 0.8), (0.6, 1.1))[:, None] * turn(angle)[0] * radius
        ends = [tip, tip @ turn(0.35), 0.9 * tip @ turn(-0.35)]
        branches += [(0 * fork, fork), *((fork, end) for end in ends)]
    bark = choose(rng, (120, 104, 92), (150, 138, 126), (92, 78, 68))
    view.shade(strokes(np.array(branches) + place + view.sun * top, 0.2), 0.15, 0.7)
    texture = view.grain(bark, 0, 0, 0.2, 0.3)
    return view.paint(strokes(np.array(branches) + view.lift(place, top), 0.24), BALD_TREE, texture)


def render(
    seed: int, split: str, index: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Image (uint8 H x W x 3) and mask (uint8 H x W, TU Graz ids) of a scene, which is the same at any size (H, W)."""
    rng = np.random.default_rng([seed, list(SIZES).index(split), index])
    view = View(rng, size)
    half, side = view.extent / 2, rng.choice([-1, 1])
    street, width = np.array([0, side * rng.uniform(0.5, 0.8) * half]), rng.uniform(4.8, 6.5)
    middle = np.array([rng.uniform(-0.5, 0.5), -side * rng.uniform(0.4, 0.75)]) * half
    house = rectangle(
        middle, rng.uniform(0.55, 0.85) * min(half, 14), rng.uniform(0.44, 0.58) * min(half, 13)
    )
    gate = middle[0] + rng.choice([-1, 1]) * (np.ptp(house[:, 0]) / 2 + 1.9)
    drive = rectangle(
        np.array([gate, (street[1] + middle[1]) / 2]), 3.2, abs(street[1] - middle[1])
    )
    front, flank = (
        street[1] - side * (width / 2 + 1.7),
        rng.choice([-1, 1]) * rng.uniform(0.76, 0.94) * half,
    )
    road, border = (
        rectangle(street, 4 * half, width + 3.4),
        rectangle(np.array([flank, 0]), 0.8, 4 * half),
    )
    view.taken += [polygon(claim) for claim in (road, border, house, drive)]

    # From low to high: what is painted later covers, and shades, what is there.
    paint_ground(view, rng)
    paint_paths(view, rng, house, drive, street[1])
    paint_street(view, rng, street, width)
    paint_water(view, rng)
    heap = view.spot(rng, 1.5)
    for place in heap + rng.normal(0, 1.0, (rng.integers(4, 10), 2)):
        paint_rock(view, rng, place)
    for paint, room, least, most in (
        (paint_marker, 0.8, 0, 1),
        (paint_dog, 0.6, 0, 1),
        (paint_table, 1.6, 1, 3),
        (paint_person, 0.5, 2, 6),
        (paint_bicycle, 1.0, 1, 3),
    ):
        for _ in range(rng.integers(least, most + 1)):
            paint(view, rng, view.spot(rng, room))
    for k, x in enumerate(rng.permutation([-0.75, -0.2, 0.35, 0.85])[: rng.integers(2, 5)]):
        place = street + np.array([x * half + rng.normal(0, 0.5), (-1) ** k * width / 4])
        paint_car(view, rng, place, rng.normal(0, 0.03))
    paint_car(
        view, rng, drive.mean(axis=0) + rng.normal(0, (0.1, 0.8)), np.pi / 2 + rng.normal(0, 0.06)
    )
    for _ in range(rng.integers(2, 6)):
        radius = rng.uniform(0.4, 1.0)
        paint_canopy(view, rng, view.spot(rng, 0.8), radius, 0.7 * radius, VEGETATION)
    kinds = rng.choice(["wall", "fence", "hedge"], 2, p=[0.55, 0.35, 0.1])
    paint_border(view, rng, np.array([-1.5 * half, front]), np.array([gate - 2, front]), kinds[0])
    paint_border(view, rng, np.array([gate + 2, front]), np.array([1.5 * half, front]), kinds[0])
    paint_border(
        view, rng, np.array([flank, front]), np.array([flank, -side * 1.5 * half]), kinds[1]
    )
    for _ in range(rng.integers(1, 3)):
        paint_parasol(view, rng, view.spot(rng, 1.7))
    for _ in range(rng.integers(0, 3)):
        paint_shed(view, rng, view.spot(rng, 2.0))
    paint_house(view, rng, house)
    for _ in range(rng.integers(2, 6)):
        paint_tree(view, rng)
    return view.photograph(rng), view.mask
