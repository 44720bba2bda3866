import numpy as np
import pytest

from segmentation.data.scenes import FINER, IMAGES_PER_SPLIT, THINGS, draw, lay_out, render, shapes

GROUPS = {
    "obstacles": [0, 6, 10, 11, 12, 13, 14, 21, 22, 23],
    "water": [5, 7],
    "nature": [2, 3, 8, 19, 20],
    "moving": [15, 16, 17, 18],
    "landable": [1, 4, 9],
}
SCATTERED = ("pool", "basin", "pond", "person", "bush", "table", "shed", "tree")
MIDDLE = np.zeros(2)


def grouped(mask: np.ndarray) -> np.ndarray:
    table = np.zeros(24, np.uint8)
    for group, ids in enumerate(GROUPS.values()):
        table[ids] = group
    return table[mask]


def painted(seed: int, *names: str) -> list[np.ndarray]:
    """Colours, sunlight and ids of these things, one above the other, at 10 pixels a metre."""
    rng = np.random.default_rng(seed)
    plot = {name: [(MIDDLE, 0.0)] for name in names}
    return [np.asarray(image) for image in draw(rng, plot, MIDDLE, 30, (300, 300))]


def centre(inside: np.ndarray) -> np.ndarray:
    """The mean place, x and y, of True."""
    return np.argwhere(inside).mean(axis=0)[::-1]


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [render(0, "train", index, (128, 128)) for index in range(30)]


def test_a_scene_is_the_same_every_time():
    for first, again in zip(
        render(3, "val", 7, (64, 96)), render(3, "val", 7, (64, 96)), strict=True
    ):
        np.testing.assert_array_equal(first, again)


def test_seed_split_and_index_each_give_another_scene():
    keys = [
        (seed, split, index) for seed in (0, 1) for split in IMAGES_PER_SPLIT for index in (0, 1, 2)
    ]
    masks = [render(*key, (32, 32))[1] for key in keys]
    for k, mask in enumerate(masks):
        assert all((mask != other).mean() > 0.2 for other in masks[:k])


@pytest.mark.parametrize("size", [(33, 65), (300, 400), (256, 256), (400, 150)])
def test_any_size(size: tuple[int, int]):
    image, mask = render(0, "test", 1, size)
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert image.dtype == mask.dtype == np.uint8
    assert mask.max() <= 23
    assert 30 < image.mean() < 225
    assert image.std() > 20


@pytest.mark.parametrize("size", [(64, 64), (50, 80)])
def test_another_size_samples_the_same_scene(size: tuple[int, int]):
    coarse_image, coarse = render(0, "train", 5, size)
    fine_image, fine = render(0, "train", 5, (3 * size[0], 3 * size[1]))
    # A factor of three: each coarse pixel's centre is a fine pixel's. Corners are rounded to the
    # canvas, so an edge may lie a third of a pixel off: labels differ beside edges alone.
    windows = np.lib.stride_tricks.sliding_window_view(coarse, (3, 3))
    inside = windows.min(axis=(2, 3)) == windows.max(axis=(2, 3))
    differs = fine[1::3, 1::3] != coarse
    assert differs[1:-1, 1:-1][inside].mean() < 1e-3
    assert differs.mean() < 0.03
    means = fine_image.reshape(size[0], 3, size[1], 3, 3).mean(axis=(1, 3))
    assert np.abs(means - coarse_image).mean() < 12
    grass = (coarse == 3) & ~differs
    assert np.corrcoef(means[grass][:, 1], coarse_image[grass][:, 1])[0, 1] > 0.9  # its texture


def test_every_group_has_its_share(scenes: list[tuple[np.ndarray, np.ndarray]]):
    shares = np.array(
        [np.bincount(grouped(mask).ravel(), minlength=5) / mask.size for _, mask in scenes]
    )
    least = {"obstacles": 0.03, "water": 0.01, "nature": 0.15, "moving": 0.02, "landable": 0.25}
    for group, share in zip(GROUPS, shares.T, strict=True):
        assert (share > least[group]).mean() >= 0.9, group
        assert share.max() < 0.65, group
    assert shares.mean(axis=0)[0] > 0.06
    assert shares.mean(axis=0)[[1, 3]].min() > 0.03


def test_ids_are_those_of_the_drone_data(scenes: list[tuple[np.ndarray, np.ndarray]]):
    seen = set(np.unique([mask for _, mask in scenes]).tolist())
    assert seen == {1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 15, 17, 19, 22}


def test_colours_change_where_the_mask_does(scenes: list[tuple[np.ndarray, np.ndarray]]):
    def contrast(image: np.ndarray, mask: np.ndarray, shift: int) -> float:
        step = np.abs(np.diff(image.astype(float), axis=1)).sum(axis=2)
        edge = np.roll(mask[:, 1:] != mask[:, :-1], shift, axis=1)
        return step[:, 8:-8][edge[:, 8:-8]].mean()

    steps = {
        shift: np.mean([contrast(*scene, shift) for scene in scenes])
        for shift in (-3, -2, -1, 0, 1, 2, 3)
    }
    assert max(steps, key=steps.__getitem__) == 0
    assert steps[0] > 1.3 * max(steps[-3], steps[3])
    assert 0.85 < steps[-1] / steps[1] < 1.18  # half a pixel off would favour one side


def test_what_is_labelled_is_coloured_and_at_its_place():
    for name in THINGS:
        colours, _, ids = painted(0, name)
        labelled = ids > 0
        np.testing.assert_array_equal(colours.any(axis=2), labelled)
        assert set(np.unique(ids[labelled])) <= {layer.id for layer in THINGS[name]}
        assert np.abs(centre(labelled) - 149.5).max() < 3
    house = painted(0, "house")[2] == 9
    assert 0.85**2 < house.mean() * 30 * 30 / (10.5 * 7.6) < 1.15**2 * 1.03
    assert house[150 - FINER : 150 + FINER, 150 - FINER : 150 + FINER].all()


def test_outlines_by_hand():
    corners = {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    layer, _, outline = next(shapes(np.random.default_rng(0), "house"))
    assert {tuple(corner) for corner in np.sign(outline).tolist()} == corners
    length, width = 2 * np.abs(outline).T
    assert np.ptp(length) < 1e-9 and 0.85 < length[0] / layer.length < 1.15
    assert np.ptp(width) < 1e-9 and 0.85 < width[0] / layer.width < 1.15
    (_, _, rim), (layer, _, water) = shapes(np.random.default_rng(0), "basin")
    stretch = np.abs(rim).max(axis=0) * 2 / (THINGS["basin"][0].length, THINGS["basin"][0].width)
    radii = np.hypot(*(water / stretch * 2 / (layer.length, layer.width)).T)
    assert 0.92 <= radii.min() < 0.95 and 1.05 < radii.max() <= 1.08


def test_shadows_change_no_label_and_fall_away_from_the_bright_side():
    for seed in range(8):
        bare = painted(seed, "lawn")
        colours, light, ids = painted(seed, "lawn", "house")
        shadow = light == 0
        assert (bare[1] == 255).all() and set(np.unique(light)) == {0, 255}
        assert (ids[shadow] == 3).all()
        assert shadow.mean() * 30 * 30 > 4 * 0.35 * 7.6 * 0.85  # height, lowest sun, shorter side
        roof = ids == 9
        fall = centre(shadow) - centre(roof)
        brightness = colours.sum(axis=2)
        bright = roof & (brightness > brightness[roof].mean())
        dim = roof & ~bright
        assert (centre(bright) - centre(dim)) @ fall < 0


def test_small_things_stand_beside_the_street_and_the_house():
    places = in_the_way = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        extent = rng.uniform(19, 31)
        plot = lay_out(rng, np.array([0, extent / 3]), extent)
        ((house, _),) = plot["house"]
        for name in SCATTERED:
            for place, _ in plot[name]:
                places += 1
                on_the_street = abs(place[1]) < 4
                on_the_house = (abs(place - house) < (5.25, 3.8)).all()
                in_the_way += on_the_street or on_the_house
    assert places > 300
    assert in_the_way < 0.03 * places  # where all is full
