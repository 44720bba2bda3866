"""Whole images, tiles and strips: the same probabilities, without seams, in bounded memory."""

import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segmentation.errors import BadInput
from segmentation.evaluation import inference
from segmentation.evaluation.inference import (
    LARGE_TILE,
    LARGEST_WHOLE,
    Prediction,
    predict,
    predict_strips,
)

ROOT = Path(__file__).parents[1]

# How far probabilities may lie apart that are computed in another order, as in tiles, strips or
# mirror images: logits of up to 10 are sums of up to 28 terms, of which each rounding takes up to
# 2^-24: 10 x 28 x 6e-8, and half of it is seen after the softmax.
# A seam, or a view that was not turned back, is a hundred times as large.
ROUNDING = 1e-5


def convolution(kernel: int, classes: int = 3, dilation: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(3, classes, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.normal_(layer.weight, std=3 / kernel, generator=torch.Generator().manual_seed(kernel))
    return layer


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def assembled(strips) -> torch.Tensor:
    """The strips as one K x H x W map; each must start where the one before ended."""
    parts, expected = [], 0
    for top, strip in strips:
        assert top == expected
        assert strip.dtype == torch.float32
        parts.append(strip)
        expected += strip.shape[1]
    return torch.cat(parts, dim=1)


class Watched(nn.Module):
    """A convolution that notes the sizes and the modes it is called with."""

    def __init__(self):
        super().__init__()
        self.layer, self.sizes, self.modes = convolution(3), set(), set()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.add(tuple(image.shape[2:]))
        self.modes.add((self.training, self.layer.training, torch.is_grad_enabled()))
        return self.layer(image)


@pytest.mark.parametrize("tile", [32, 33, 50, 64])
def test_tile_weights_are_positive_and_sum_to_one(tile):
    for size in [*range(1, 200), 1000]:
        tiles = inference._tiles(size, tile)
        total = torch.zeros(size)
        for start, weights in tiles:
            assert len(weights) == min(tile, size)
            assert (weights > 0).all()
            total[start : start + len(weights)] += weights
        torch.testing.assert_close(total, torch.ones(size), rtol=0, atol=1e-6)
        for (start, _), (following, _) in itertools.pairwise(tiles):
            assert start < following <= start + 0.75 * tile
        assert tiles[0][0] == 0


@pytest.mark.parametrize("tile", [None, 32, 40])
@pytest.mark.parametrize("flips", [None, "all"])
def test_every_size_comes_back(tile, flips):
    model = Watched()
    thorough = tile is None and not flips
    sides = (1, 2, *range(28, 37), 50, 64, 70) if thorough else range(1, 71, 7)
    for height, width in itertools.product(sides, sides):
        result = predict(model, torch.rand(2, 3, height, width), tile=tile, flips=flips)
        assert result.shape == (2, 3, height, width)
        torch.testing.assert_close(result.sum(1), torch.ones(2, height, width))
    assert min(min(size) for size in model.sizes) == 32
    assert max(max(size) for size in model.sizes) == (tile or sides[-1])


def test_small_image_is_padded_at_its_border_only():
    """A kernel of one pixel sees no padding: one that moved the image, or stayed, would show."""
    model, image = convolution(1), torch.rand(1, 3, 5, 9)
    torch.testing.assert_close(predict(model, image, flips="all"), model(image).softmax(1).detach())
    model, repeated = convolution(3), F.pad(image, (0, 23, 0, 27), mode="replicate")
    torch.testing.assert_close(predict(model, image), predict(model, repeated)[..., :5, :9])


@pytest.mark.parametrize("size", [(33, 65), (64, 64), (100, 131), (20, 150), (150, 20), (64, 65)])
def test_tiles_of_a_pixelwise_model_equal_the_whole(size):
    model, image = convolution(1), torch.rand(2, 3, *size)
    torch.testing.assert_close(
        predict(model, image, tile=64), predict(model, image), rtol=0, atol=ROUNDING
    )


def test_tiles_of_a_small_kernel_equal_the_whole():
    """A pixel at a tile's border lacks neighbours; the weights leave next to nothing of that."""
    model, image, tile = convolution(3), torch.rand(1, 3, 200, 170), 64
    difference = (predict(model, image, tile=tile) - predict(model, image)).abs().amax((0, 1))
    inner = torch.ones(200, 170, dtype=torch.bool)
    for start, _ in inference._tiles(200, tile):
        inner[[start, start + tile - 1]] = False
    for start, _ in inference._tiles(170, tile):
        inner[:, [start, start + tile - 1]] = False
    assert difference[inner].max() < ROUNDING
    assert 0 < difference.max() < 5e-3


@pytest.mark.parametrize("tile", [None, 48])
@pytest.mark.parametrize("flips", [None, "all"])
@pytest.mark.parametrize("size", [(33, 65), (130, 97), (20, 20), (48, 300)])
def test_strips_are_predict(monkeypatch, tile, flips, size):
    monkeypatch.setattr(inference, "STRIP_VALUES", 3 * size[1] * 10)
    model, image = Watched(), picture(*size)
    strips = list(predict_strips(model, image, Prediction(tile=tile, flips=flips)))
    assert max(strip.shape[1] for _, strip in strips) <= 10
    # Bit for bit: the same windows, in the same memory format, are added in the same order.
    assert torch.equal(
        assembled(strips), predict(model, as_batch(image), tile=tile, flips=flips)[0]
    )


@pytest.mark.parametrize(
    "output", [(40, 60), (41, 61), (80, 120), (133, 200), (39, 200), (17, 23), (3, 500), (1, 1)]
)
@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("values", [1, 2000, 2**22])
def test_strips_are_interpolated_like_the_whole(monkeypatch, output, tile, values):
    monkeypatch.setattr(inference, "STRIP_VALUES", values)
    model, image = convolution(3), picture(40, 60)
    with torch.no_grad():
        whole = (
            model(as_batch(image))
            if tile is None
            else predict(model, as_batch(image), tile=tile).log()
        )
    expected = F.interpolate(whole, size=output, mode="bilinear").softmax(1)[0]
    strips = predict_strips(model, image, Prediction(tile=tile), output)
    torch.testing.assert_close(assembled(strips), expected, rtol=0, atol=ROUNDING)


def test_certain_pixels_do_not_spoil_their_neighbours():
    """A probability that underflows to 0 has no logarithm."""
    model = nn.Conv2d(3, 2, 1)
    nn.init.constant_(model.weight, 0)
    model.bias.data = torch.tensor([0.0, 500.0])
    result = assembled(predict_strips(model, picture(40, 40), output_size=(90, 90)))
    assert torch.equal(result[1], torch.ones(90, 90))


def test_very_large_images_are_shown_in_tiles_unless_another_side_is_asked_for():
    side = int(LARGEST_WHOLE**0.5)
    assert Prediction().tile_for(side, side) is None
    assert Prediction().tile_for(4000, 6000) == LARGE_TILE
    assert Prediction(tile=512).tile_for(4000, 6000) == Prediction(tile=512).tile_for(99, 9) == 512


def test_flips_average_the_probabilities_of_four_views():
    model, image = convolution(3), torch.rand(2, 3, 40, 57)
    views = [model(image.flip(dims)).softmax(1).flip(dims) for dims in ([], [2], [3], [2, 3])]
    torch.testing.assert_close(
        predict(model, image, flips="all"), torch.stack(views).mean(0).detach()
    )
    for dims in ([2], [3]):
        torch.testing.assert_close(
            predict(model, image.flip(dims), flips="all").flip(dims),
            predict(model, image, flips="all"),
        )


def test_the_mirror_image_alone_leaves_up_and_down_as_they_are():
    model, image = convolution(3), torch.rand(2, 3, 40, 57)
    views = [model(image.flip(dims)).softmax(1).flip(dims) for dims in ([], [3])]
    torch.testing.assert_close(
        predict(model, image, flips="horizontal"), torch.stack(views).mean(0).detach()
    )


def test_flips_of_a_symmetric_model_change_nothing():
    model, image = convolution(3), torch.rand(1, 3, 45, 70)
    model.weight.data = (model.weight.data + model.weight.data.flip(2)) / 2
    model.weight.data = (model.weight.data + model.weight.data.flip(3)) / 2
    for tile in (None, 40):
        plain = predict(model, image, tile=tile)
        torch.testing.assert_close(
            predict(model, image, tile=tile, flips="all"), plain, rtol=0, atol=ROUNDING
        )


def test_modes_come_back():
    model, image = Watched(), picture(100, 100)
    model.train()
    model.layer.eval()  # a frozen layer
    for _ in predict_strips(model, image, Prediction(tile=32)):
        assert model.training
        assert not model.layer.training
        assert torch.is_grad_enabled()
    assert model.modes == {(False, False, False)}

    model.forward = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        predict(model, as_batch(image))
    assert model.training
    assert not model.layer.training


def test_training_goes_on_after_predicting():
    model = nn.Sequential(convolution(3), nn.BatchNorm2d(3))
    image = torch.rand(2, 3, 40, 40)
    before = model[1].running_mean.clone()
    result = predict(model, image)
    assert torch.equal(model[1].running_mean, before)
    result.mul_(2)  # an ordinary tensor
    model(image).sum().backward()


def test_read_only_memory_map(tmp_path):
    np.save(tmp_path / "image.npy", picture(90, 70))
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    torch.set_warn_always(True)  # or it warns once in a process, perhaps in another test
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = assembled(predict_strips(convolution(1), image, Prediction(tile=32)))
        assert result.shape == (3, 90, 70)
    torch.set_warn_always(False)


def test_strips_that_are_kept_do_not_change():
    strips = predict_strips(convolution(3), picture(150, 60), Prediction(tile=32))
    _, first = next(strips)
    copy = first.clone()
    list(strips)
    assert torch.equal(first, copy)


def test_bad_input_is_refused_before_the_first_strip():
    model, image = convolution(1), picture(40, 40)
    with pytest.raises(BadInput, match="tile 31"):
        predict(model, as_batch(image), tile=31)
    with pytest.raises(BadInput, match="tile 31"):
        predict_strips(model, image, Prediction(tile=31))
    with pytest.raises(BadInput, match="float32"):
        predict_strips(model, image.astype(np.float32))
    with pytest.raises(BadInput, match="uint8"):
        predict_strips(model, image[..., 0])
    with pytest.raises(BadInput, match="uint8"):
        predict(model, torch.from_numpy(image).permute(2, 0, 1)[None])


def label_changes(labels: torch.Tensor, size: int, tile: int) -> tuple[float, float]:
    """Share of last-axis neighbours with different labels: (at tiles' borders, elsewhere)."""
    changes = (labels[..., 1:] != labels[..., :-1]).flatten(0, -2).float().mean(0)
    borders = torch.zeros(size - 1, dtype=torch.bool)
    for start, _ in inference._tiles(size, tile):
        for border in (start - 1, start + tile - 1):
            if 0 <= border < size - 1:
                borders[border] = True
    return changes[borders].mean().item(), changes[~borders].mean().item()


def seam_ratios(tile: int) -> list[float]:
    """How much more often labels change at tile borders than elsewhere, (vertically, horizontally).

    The network sees 15 pixels far, and its zero padding is felt at every border of a tile.
    """
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2),
        nn.Tanh(),
    ]
    layers += [
        nn.Conv2d(8, 8, 5, padding=8, dilation=4),
        nn.Tanh(),
        nn.Conv2d(8, 4, 3, padding=2, dilation=2),
    ]
    model = nn.Sequential(*layers)
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=1.5 / layer.weight[0].numel() ** 0.5)
    image = F.interpolate(torch.rand(6, 3, 160, 160), size=(480, 480), mode="bicubic").clamp(0, 1)
    centre = nn.BatchNorm2d(3, eps=1e-12, affine=False).eval()  # torch 2.11 refuses 0
    centre.running_mean.fill_(0.2)
    labels = predict(nn.Sequential(centre, model), image, tile=tile).argmax(1)
    ratios = []
    for along in (labels.transpose(1, 2), labels):
        at_borders, elsewhere = label_changes(along, 480, tile)
        assert elsewhere > 0.01
        ratios.append(at_borders / elsewhere)
    return ratios


def test_labels_change_no_more_often_at_tile_borders(monkeypatch):
    assert max(seam_ratios(64)) < 1.05
    # Without the taper the same measure finds the seams.
    monkeypatch.setattr(torch, "sin", torch.ones_like)
    assert max(seam_ratios(64)) > 1.3


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest floating-point tensor made under it has."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [
            leaf.numel()
            for leaf in tree_leaves(result)
            if torch.is_tensor(leaf) and leaf.is_floating_point()
        ]
        self.values = max(self.values, *sizes, 0)
        return result


@pytest.mark.parametrize("options", [{}, {"flips": "all"}])
def test_float_maps_do_not_grow_with_the_height(monkeypatch, options):
    monkeypatch.setattr(inference, "STRIP_VALUES", 20_000)
    largest = []
    for height in (300, 1200):
        with LargestTensor() as watch:
            for _ in predict_strips(
                convolution(3, classes=5), picture(height, 100), Prediction(tile=64, **options)
            ):
                pass
        largest.append(watch.values)
    assert largest[0] == largest[1]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's process table")
@pytest.mark.slow
def test_memory_after_many_images_is_flat():
    model, image = convolution(3), picture(256, 256)
    for number in range(200):
        for _, strip in predict_strips(model, image, Prediction(tile=128), (300, 300)):
            strip.argmax(0)
        if number == 20:
            early = resident_bytes()
    assert resident_bytes() - early < 50 * 2**20


MEASURE = """
import sys
import numpy as np, torch
from torch import nn
from segmentation.evaluation.inference import Prediction, predict_strips
torch.set_num_threads(2)
if sys.argv[1] == "convolution":
    model = nn.Sequential(nn.Conv2d(3, 5, 7, stride=4, padding=3), nn.Upsample(scale_factor=4))
elif sys.argv[1] == "segformer":
    from segmentation.models.segformer import SegFormer
    model = SegFormer(num_classes=5)
else:
    from segmentation.models.unet import ResNet18UNet
    model = ResNet18UNet(num_classes=5)
image = np.load(sys.argv[2], mmap_mode="r")
rows = 0
for top, strip in predict_strips(model, image, Prediction(tile=512)):
    labels = strip.argmax(0).to(torch.uint8)
    assert top == rows and strip.shape[::2] == (5, 6000)
    rows += len(labels)
assert rows == 4000
# Not getrusage: its peak starts with that of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's process table")
@pytest.mark.parametrize("model", ["convolution", "segformer", "unet"])
def test_24_megapixels_in_less_than_two_gigabytes(tmp_path, model):
    np.save(tmp_path / "image.npy", picture(4000, 6000))
    command = [sys.executable, "-c", MEASURE, model, str(tmp_path / "image.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout) * 1024
    print(f"{model}: peak {peak / 1e9:.2f} GB")
    assert peak < 2e9
