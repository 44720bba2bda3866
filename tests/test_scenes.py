import numpy as np
import pytest

from segmentation.data.scenes import IMAGES_PER_SPLIT, render
from segmentation.data.scenes.shapes import distance, hull, rectangle
from segmentation.data.scenes.view import View, rgb

GROUPS = {
    "obstacles": [0, 6, 10, 11, 12, 13, 14, 21, 22, 23],
    "water": [5, 7],
    "nature": [2, 3, 8, 19, 20],
    "moving": [15, 16, 17, 18],
    "landable": [1, 4, 9],
}


def grouped(mask: np.ndarray) -> np.ndarray:
    table = np.zeros(24, np.uint8)
    for group, ids in enumerate(GROUPS.values()):
        table[ids] = group
    return table[mask]


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
    # A factor of three: each coarse pixel's centre is a fine pixel's; only rounding may differ.
    assert (fine[1::3, 1::3] != coarse).mean() < 1e-3
    means = fine_image.reshape(size[0], 3, size[1], 3, 3).mean(axis=(1, 3))
    assert np.abs(means - coarse_image).mean() < 12


def test_every_group_has_its_share(scenes: list[tuple[np.ndarray, np.ndarray]]):
    shares = np.array(
        [np.bincount(grouped(mask).ravel(), minlength=5) / mask.size for _, mask in scenes]
    )
    least = {"obstacles": 0.03, "water": 0.01, "nature": 0.15, "moving": 0.02, "landable": 0.25}
    for group, share in zip(GROUPS, shares.T, strict=True):
        assert (share > least[group]).mean() >= 0.9, group
        assert share.max() < 0.65, group
    assert shares.mean(axis=0)[0] > 0.08
    assert shares.mean(axis=0)[[1, 3]].min() > 0.04


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


def test_mask_holds_the_pixels_whose_centre_is_inside():
    view = View(np.random.default_rng(0), (60, 90))
    assert np.hypot(
        view.x[20, 31] - view.x[20, 30], view.y[20, 31] - view.y[20, 30]
    ) == pytest.approx(view.extent / 90, rel=1e-3)
    corners = rectangle(np.array([1.0, -0.5]), 6, 3, angle=0.4)
    view.paint(corners, 9, rgb(0xFFFFFF))
    c, s = np.cos(0.4), np.sin(0.4)
    along, across = c * (view.x - 1) + s * (view.y + 0.5), -s * (view.x - 1) + c * (view.y + 0.5)
    inside = (np.abs(along) < 3) & (np.abs(across) < 1.5)
    np.testing.assert_array_equal(view.mask == 9, inside)
    np.testing.assert_array_equal(view.albedo[..., 0] > 0.5, inside)
    assert (view.mask == 9).mean() * 60 * 90 * view.pixel**2 == pytest.approx(18, rel=0.05)
    assert ((view.albedo > 0.1) & (view.albedo < 0.9)).any()  # the image's edge is smooth


def test_distances_by_hand():
    x, y = np.array([0.0, 3.0, 1.0]), np.array([0.0, 0.0, 2.0])
    corners = rectangle((0, 0), 4, 2)
    inner = np.array([[0.2, 0.1], [2.0, 0.5]])  # points within, or on a side, do not change it
    for shape in (corners, hull(corners, inner), hull(corners, corners)):
        np.testing.assert_allclose(distance(shape, x, y), [-1, 1, 1])
    triangle = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(distance(triangle, x, y), [0, 0, -0.2], atol=1e-12)


def test_distance_is_that_to_the_convex_hull():
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 3600)
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for count in (3, 8, 32):
        points = rng.normal(size=(count, 2))
        places = rng.uniform(-3, 3, (200, 2))
        # By the supporting line in every direction: exact but for the step of the angles.
        exact = (places @ normals.T - (points @ normals.T).max(axis=0)).max(axis=1)
        ours = distance(points, *places.T)
        inside = exact < 0
        np.testing.assert_array_equal(ours < 0, inside)
        np.testing.assert_allclose(ours[inside], exact[inside], atol=0.01)
        assert (ours <= exact + 0.01).all()


def test_shadows_fall_away_from_the_sun_and_keep_labels():
    view = View(np.random.default_rng(1), (120, 120))
    view.albedo[:], view.mask[:] = 0.5, 3
    base = rectangle(np.zeros(2), 2, 2)
    view.shade(hull(base + view.sun * 1, base + view.sun * 3))
    assert (view.mask == 3).all()
    dark = view.light < 0.5
    middle = np.array([view.x[dark].mean(), view.y[dark].mean()])
    np.testing.assert_allclose(middle, 2 * view.sun, atol=0.1)
    before = view.light.copy()
    view.shade(hull(base + view.sun * 1, base + view.sun * 3))
    np.testing.assert_array_equal(view.light, before)


def test_what_stands_higher_leans_farther_out_and_the_mask_follows():
    view = View(np.random.default_rng(2), (120, 120))
    base = rectangle(np.array([4.0, 0.0]), 2, 2)
    view.box(base, 3.0, 10, rgb(0xC80000), rgb(0x0000C8))
    scale = view.altitude / (view.altitude - 3)
    inside = (
        (view.x > 3)
        & (view.x < 5 * scale)
        & (np.abs(view.y) < scale * np.clip(view.x / 3, 1, None))
    )
    seen = view.mask == 10
    assert not (seen & ~inside).any()
    assert seen.sum() * view.pixel**2 == pytest.approx(
        4 * scale**2 + (1 + scale) * 3 * (scale - 1), rel=0.05
    )


def test_a_box_casts_its_shadow_from_the_ground_to_its_top():
    view = View(np.random.default_rng(2), (120, 120))
    view.box(rectangle(np.zeros(2), 1, 1), 4.0, 22, rgb(0x5A5A5A), rgb(0x5A5A5A))
    for height, lit in ((-1.5, True), (2.5, False), (3.5, False), (6.0, True)):
        x, y = height * view.sun
        at = np.unravel_index(np.argmin(np.hypot(view.x - x, view.y - y)), view.x.shape)
        assert view.mask[at] == 0
        assert (view.light[at] > 0.5) == lit
