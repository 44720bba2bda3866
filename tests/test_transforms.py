"""One draw, one map, one sampling: exact masks that fit the image, and hand numbers."""

from dataclasses import astuple, replace
from functools import partial

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V

from segmentation.data.transforms import (
    Augmentation,
    Light,
    draw_deck,
    draw_fast,
    draw_window,
    transform_pair,
    view_size,
    window_corner,
)

SCALES = (0.76, 1.32)  # of the fast recipe
draw_strong = partial(draw_fast, scale_range=SCALES, recoloured=1.0)


def numbers_of(drawn):
    """The numbers of an Augmentation or a Light, in one row."""
    given = [each for each in astuple(drawn) if each is not None]
    return np.hstack([np.hstack(each) if isinstance(each, tuple) else each for each in given])


def random_pair(height, width, seed=0):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, generator.integers(0, 12, (height, width), dtype=np.uint8)


def same(outputs, image, mask):
    return np.array_equal(outputs[0].permute(1, 2, 0), image) and np.array_equal(outputs[1], mask)


def test_no_change_is_an_exact_copy():
    image, mask = random_pair(37, 53)
    view, labels = transform_pair(image, mask, Augmentation())
    assert view.dtype == labels.dtype == torch.uint8 and view.is_contiguous()
    assert same((view, labels), image, mask)
    assert same(
        transform_pair(image, mask, Augmentation(position=(0, 0.999)), (20, 30)),
        image[:20, -30:],
        mask[:20, -30:],
    )


def test_a_full_turn_through_the_interpolation_is_the_identity():
    image, mask = random_pair(37, 53)
    assert same(transform_pair(image, mask, Augmentation(degrees=360.0)), image, mask)
    window = slice(8, 28), slice(0, 30)
    draw = Augmentation(degrees=360.0, position=(0.48, 0))
    assert same(transform_pair(image, mask, draw, (20, 30)), image[window], mask[window])


def test_flips_are_numpys_and_twice_is_the_identity():
    image, mask = random_pair(30, 41)
    for draw, axes in (
        (Augmentation(True, False), 1),
        (Augmentation(False, True), 0),
        (Augmentation(True, True), (0, 1)),
    ):
        view, labels = transform_pair(image, mask, draw)
        assert same((view, labels), np.flip(image, axes), np.flip(mask, axes))
        assert same(
            transform_pair(view.permute(1, 2, 0).numpy(), labels.numpy(), draw), image, mask
        )


def test_rotation_of_one_pixel_by_hand():
    # Centre (150, 100). Pixel (190, 100) has its centre 40.5 right of it and 0.5 below.
    # 30 degrees counter-clockwise: right 40.5 cos 30 + 0.5 sin 30 = 35.32,
    # down 0.5 cos 30 - 40.5 sin 30 = -19.82, so at (185.32, 80.18).
    image, mask = np.zeros((200, 300, 3), np.uint8), np.zeros((200, 300), np.uint8)
    image[100, 190], mask[100, 190] = 200, 7
    view, labels = transform_pair(image, mask, Augmentation(degrees=30.0))
    assert divmod(int(view[0].argmax()), 300) == (80, 185)
    assert labels[80, 185] == 7
    # A flip comes before the rotation: the pixel is then 40.5 left,
    # and lands at (114.93 + 0.25, 120.25 + 0.43).
    view, _ = transform_pair(image, mask, Augmentation(flip_horizontal=True, degrees=30.0))
    assert divmod(int(view[0].argmax()), 300) == (120, 115)


def test_quarter_turn_of_a_wide_image():
    image, mask = random_pair(4, 8)
    view, labels = transform_pair(image, mask, Augmentation(degrees=90.0))
    assert same((view[:, :, 2:6], labels[:, 2:6]), np.rot90(image[:, 2:6]), np.rot90(mask[:, 2:6]))
    assert (labels[:, :2] == 255).all() and (labels[:, 6:] == 255).all()


def test_rotation_agrees_with_torchvision():
    generator = np.random.default_rng(0)
    mask = generator.integers(0, 12, (9, 12), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    image = np.stack([mask * 20] * 3, -1)
    view, labels = transform_pair(image, mask, Augmentation(degrees=-17.0))
    expected = V.rotate(torch.from_numpy(mask)[None], -17.0, InterpolationMode.NEAREST, fill=255)[0]
    assert (labels == expected).float().mean() > 0.999
    expected = V.rotate(torch.from_numpy(image).permute(2, 0, 1), -17.0, InterpolationMode.BILINEAR)
    inside = labels != 255
    inside[1:-1, 1:-1] &= (labels[:-2, 1:-1] != 255) & (labels[2:, 1:-1] != 255)
    assert ((view.int() - expected.int()).abs()[:, inside] <= 1).float().mean() > 0.99


def test_the_centred_part_is_enlarged_by_hand_numbers():
    # Half of 8 columns: output column k shows source position 2.25 + k / 2;
    # a ramp of 8 i is there 8 (1.75 + k / 2).
    image = np.zeros((8, 8, 3), np.uint8) + 8 * np.arange(8, dtype=np.uint8)[None, :, None]
    _, mask = random_pair(8, 8)
    view, labels = transform_pair(image, mask, Augmentation(central_crop=0.5))
    assert view[0, 3].tolist() == [14 + 4 * k for k in range(8)]
    assert np.array_equal(labels, mask[2:6, 2:6].repeat(2, 0).repeat(2, 1))


def test_a_small_image_lies_whole_inside_the_crop():
    image, mask = random_pair(20, 50)
    tops = set()
    for seed in range(20):
        view, labels = transform_pair(
            image, mask, draw_window(np.random.default_rng(seed)), (32, 32)
        )
        top = int((labels != 255).any(1).int().argmax())
        tops.add(top)
        assert (labels != 255).sum() == 20 * 32 and (labels[top : top + 20] != 255).all()
        assert (view[:, :top] == view[:, top : top + 1]).all() and (
            view[:, top + 20 :] == view[:, top + 19, None]
        ).all()


# Copied, and sampled.
@pytest.mark.parametrize("draw", [Augmentation(), Augmentation(degrees=360.0)])
def test_a_small_image_in_the_middle_by_hand(draw):
    # A crop of 8 x 9 has four rows and four columns more, so five places each:
    # the middle one leaves two a side.
    image, mask = random_pair(4, 5)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), "edge"), np.pad(mask, 2, constant_values=255)
    assert same(transform_pair(image, mask, draw, (8, 9)), *padded)


def test_image_and_mask_agree_under_every_draw():
    generator = np.random.default_rng(1)
    mask = generator.integers(0, 12, (6, 9), dtype=np.uint8).repeat(16, 0).repeat(16, 1)[:93, :139]
    # The second channel marks pixels beside a border:
    # away from them bilinear and nearest must give the same label.
    border = np.zeros_like(mask)
    for axis in (0, 1):
        for step in (1, -1):
            border[mask != np.roll(mask, step, axis)] = 255
    image = np.stack([mask * 20, border, border], -1)
    for seed in range(500):
        draw = draw_deck(np.random.default_rng(seed))
        view, labels = transform_pair(image, mask, draw, (64, 64) if seed % 2 else None)
        comparable = (view[1] == 0) & (labels != 255)
        assert comparable.float().mean() > 0.4
        assert torch.equal(view[0][comparable], labels[comparable] * 20)
        assert set(labels.unique().tolist()) <= {*np.unique(mask).tolist(), 255}


@pytest.mark.parametrize("crop", [(24, 24), (80, 30), None])
def test_labels_stay_exact_whatever_the_mask_size(crop):
    image, _ = random_pair(40, 60)
    for seed, size in enumerate([(40, 60), (20, 30), (120, 180), (33, 47)] * 25):
        mask = np.random.default_rng(seed).choice(np.array([0, 3, 200], np.uint8), size)
        for draw in (
            draw_deck(np.random.default_rng(seed)),
            draw_window(np.random.default_rng(seed)),
        ):
            view, labels = transform_pair(image, mask, draw, crop)
            assert tuple(labels.shape) == tuple(view.shape[1:]) == (crop or (40, 60))
            assert set(labels.unique().tolist()) <= {0, 3, 200, 255}


def test_a_finer_mask_of_the_same_labels_gives_the_same_labels():
    image, mask = random_pair(40, 60)
    for draw in [Augmentation(), *(draw_deck(np.random.default_rng(seed)) for seed in range(20))]:
        labels = transform_pair(image, mask, draw, (30, 30))[1]
        finer = transform_pair(image, mask.repeat(3, 0).repeat(5, 1), draw, (30, 30))[1]
        assert (finer == labels).float().mean() > 0.995
    centres = np.full((120, 300), 99, np.uint8)
    centres[1::3, 2::5] = mask
    assert same(transform_pair(image, centres, Augmentation()), image, mask)


def test_outside_the_source_the_image_repeats_its_edge():
    image = np.full((20, 30, 3), 90, np.uint8)
    for draw in (Augmentation(), Augmentation(degrees=20.0)):
        view, labels = transform_pair(image, image[:, :, 0], draw, (40, 40))
        assert (labels == 255).any() and (view == 90).all()


def test_draws_cover_their_ranges():
    draws = [draw_deck(np.random.default_rng([0, 0, index])) for index in range(2000)]
    degrees = np.array([draw.degrees for draw in draws])
    assert -30 <= degrees.min() < -29 and 29 < degrees.max() <= 30 and abs(degrees.mean()) < 1.5
    assert abs(np.mean([draw.flip_horizontal for draw in draws]) - 0.5) < 0.05
    assert abs(np.mean([draw.flip_vertical for draw in draws]) - 0.5) < 0.05
    assert {draw.central_crop for draw in draws} == {0.7}


def test_fast_draws_cover_their_ranges():
    draws = [draw_strong(np.random.default_rng([0, 0, index])) for index in range(2000)]
    light = np.array([numbers_of(draw.light) for draw in draws])
    highest = np.array([1.6, *[1.3] * 3, *[1.4] * 3])  # gamma, tint, and the other three
    lowest = np.array([1 / 1.6, *[1 / 1.3] * 3, *[0.6] * 3])
    assert (light >= lowest).all() and (light.min(0) < lowest + 0.01).all()
    assert (light <= highest).all() and (light.max(0) > highest - 0.01).all()
    assert (np.abs(np.log(light[:, :4]).mean(0)) < 0.03).all()  # as often darker as brighter
    assert abs(np.mean([draw.flip_horizontal for draw in draws]) - 0.5) < 0.05

    generators = [np.random.default_rng([0, 0, index]) for index in range(2000)]
    draws = [draw_fast(each, SCALES, 0.25).light for each in generators]
    plain = np.array([numbers_of(light) for light in draws if light.gamma == 1])
    assert abs(len(plain) / 2000 - 0.75) < 0.05 and (plain[:, :4] == 1).all()
    assert plain[:, 4:].min() >= 0.7 and plain[:, 4:].max() <= 1.3
    for sizes in (SCALES, (1.0, 4.0)):
        generators = (np.random.default_rng([0, 0, index]) for index in range(2000))
        scales = [draw_fast(each, sizes, 0.0).scale for each in generators]
        assert sizes[0] <= min(scales) < 1.01 * sizes[0]
        assert 0.99 * sizes[1] < max(scales) <= sizes[1]
        assert abs(np.log(scales).mean() - np.log(sizes).mean()) < 0.03  # as often 1 / s as s


@pytest.mark.parametrize("draw, numbers", [(draw_window, 2), (draw_deck, 5), (draw_strong, 11)])
def test_each_drawn_number_is_independent_of_the_others(draw, numbers):
    drawn = [draw(np.random.default_rng([0, 0, index])) for index in range(2000)]
    # A row for each number, and one for each axis of position.
    table = np.array([numbers_of(each) for each in drawn]).T
    table = table[np.ptp(table, axis=1) > 0]
    assert len(table) == numbers
    assert np.abs(np.corrcoef(table) - np.eye(numbers)).max() < 0.1  # four standard deviations
    positions = np.array(
        [draw(np.random.default_rng([0, 0, index])).position for index in range(2000)]
    )
    assert (positions >= 0).all() and (positions.min(0) < 0.01).all()
    assert (positions < 1).all() and (positions.max(0) > 0.99).all()


@pytest.mark.parametrize("draw", [draw_deck, draw_strong])
def test_a_crop_is_the_part_of_the_view_where_it_lies(draw):
    # Odd: (2 i + 1) / 2 x 61 / h is no integer, so no centre lies on an edge.
    image, mask = random_pair(61, 91)
    for seed in range(100):
        drawn = replace(draw(np.random.default_rng(seed)), light=None)
        view, labels = transform_pair(image, mask, drawn)
        # A crop of h has H - h + 1 places.
        top, left = (
            int(p * (side - crop + 1))
            for p, side, crop in zip(drawn.position, labels.shape, (20, 30), strict=True)
        )
        part, part_labels = transform_pair(image, mask, drawn, (20, 30))
        window = slice(top, top + 20), slice(left, left + 30)
        assert ((part.int() - view[:, window[0], window[1]].int()).abs() <= 1).all()
        assert (part_labels == labels[window]).float().mean() > 0.99


class Frame:
    """A frame too large to decode per sample, that counts what is read of it."""

    def __init__(self, *shape):
        self.shape, self.read = shape, 0

    def __getitem__(self, window):
        block = np.zeros([s.stop - s.start for s in window] + list(self.shape[2:]), np.uint8)
        self.read += block.size
        return block


def test_only_the_window_is_read():
    for seed in range(50):
        for draw, side in ((draw_window, 256), (draw_deck, 0.7 * 256 * (3**0.5 + 1) / 2 + 5)):
            image, mask = Frame(4000, 6000, 3), Frame(4000, 6000)
            transform_pair(image, mask, draw(np.random.default_rng(seed)), (256, 256))
            assert 0 < image.read <= 3 * side**2 and 0 < mask.read <= side**2


def test_half_the_size_is_the_mean_of_four_and_twice_the_size_lies_between():
    image, mask = random_pair(36, 52)
    half, labels = transform_pair(image, mask, Augmentation(scale=0.5))
    means = image.reshape(18, 2, 26, 2, 3).mean((1, 3))
    assert np.abs(half.permute(1, 2, 0).numpy() - means).max() <= 0.5
    # All four are equally near.
    corners = [torch.from_numpy(mask[y::2, x::2]) for y in (0, 1) for x in (0, 1)]
    assert torch.stack([labels == corner for corner in corners]).any(0).all()
    # Sixteen, of which interpolation alone sees four.
    quarter, _ = transform_pair(image, mask, Augmentation(scale=0.25))
    means = image.reshape(9, 4, 13, 4, 3).mean((1, 3))
    assert np.abs(quarter.permute(1, 2, 0).numpy() - means).max() <= 0.5
    ramp = np.zeros((8, 8, 3), np.uint8) + 8 * np.arange(8, dtype=np.uint8)[None, :, None]
    twice, _ = transform_pair(ramp, random_pair(8, 8)[1], Augmentation(scale=2.0))
    assert twice.shape == (3, 16, 16) and twice[0, 3, 1:-1].tolist() == [
        2 + 4 * k for k in range(14)
    ]


def test_a_views_sides_are_rounded_to_the_nearest_and_never_to_nothing():
    image, mask = random_pair(13, 11)
    assert transform_pair(image, mask, Augmentation(scale=0.75))[1].shape == (10, 8)  # 9.75 x 8.25
    assert transform_pair(image, mask, Augmentation(scale=0.01))[1].shape == (1, 1)


def test_a_small_view_of_an_odd_source_does_not_shift():
    ramp = np.zeros((61, 101, 3), np.uint8) + 2 * np.arange(101, dtype=np.uint8)[None, :, None]
    view, _ = transform_pair(ramp, ramp[:, :, 0], Augmentation(scale=0.4))
    positions = (np.arange(40) + 0.5) * 101 / 40 - 0.5
    assert np.abs(view[0, 5].numpy() - 2 * positions)[1:-1].max() <= 0.51


def test_light_by_hand_numbers():
    # Two pixels, red 200 and grey 100: greys 66.67 and 100, mean 83.33.
    # Powers of 2: 255 x (200 / 255)^2 is 156.86, 255 x (100 / 255)^2 is 39.22.
    image = np.array([[[200, 0, 0], [100, 100, 100]]], np.uint8)
    mask = np.array([[0, 1]], np.uint8)
    for light, expected in (
        (Light(gamma=2.0), [[157, 0, 0], [39, 39, 39]]),
        (Light(tint=(0.8, 1.1, 2.0)), [[160, 0, 0], [80, 110, 200]]),
        (Light(saturation=0.5), [[133, 33, 33], [100, 100, 100]]),
        (Light(contrast=0.5), [[142, 42, 42], [92, 92, 92]]),
        (Light(brightness=1.2), [[217, 17, 17], [117, 117, 117]]),
    ):
        view, labels = transform_pair(image, mask, Augmentation(light=light))
        assert view[:, 0].T.tolist() == expected and torch.equal(labels, torch.from_numpy(mask))
    # Greys 250 and 10, mean 130: 130 +- 1.3 x 120 is 286 and -26, beyond what a byte can hold.
    view, _ = transform_pair(
        np.array([[[250] * 3, [10] * 3]], np.uint8), mask, Augmentation(light=Light(contrast=1.3))
    )
    assert view[:, 0].T.tolist() == [[255] * 3, [0] * 3]


def test_fast_draws_keep_image_and_mask_together():
    mask = (
        np.random.default_rng(1).integers(0, 12, (6, 9), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    )
    image = np.stack([mask * 20] * 3, -1)
    sizes = []
    for seed in range(300):
        draw = draw_strong(np.random.default_rng(seed))
        sizes.append(np.log2(draw.scale))
        assert not draw.flip_vertical
        view, labels = transform_pair(image, mask, replace(draw, light=None), (64, 64))
        inside = labels != 255
        agree = (view[0][inside].float() / 20).round() == labels[inside]
        assert agree.float().mean() > 0.7  # all but the blurred borders of the boxes
    assert -0.401 <= min(sizes) < -0.38 and 0.38 < max(sizes) <= 0.401
    assert abs(np.mean(sizes)) < 0.04


@pytest.mark.parametrize("crop", [(17, 26), (9, 11)])
def test_labels_of_a_small_view_are_those_at_its_pixels_centres(crop):
    """Odd sides and scale, so odd windows: no centre lies between two pixels of the mask."""
    image, mask = random_pair(89, 131)
    for seed in range(20):
        draw = Augmentation(position=tuple(np.random.default_rng(seed).random(2)), scale=0.2)
        _, labels = transform_pair(image, mask, draw, crop)
        size, corner = (
            view_size(draw, mask.shape),
            window_corner(draw, view_size(draw, mask.shape), crop),
        )
        rows, columns = (
            (2 * (first + np.arange(length)) + 1) * side // (2 * small)
            for first, length, side, small in zip(corner, crop, mask.shape, size, strict=True)
        )
        assert np.array_equal(labels, mask[rows][:, columns])
