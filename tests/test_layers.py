"""Layers of both models: normalisation, an undecided start, keyed dropout and stochastic depth."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from segmentation.models.layers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DropPath,
    KeyedDropout,
    Normalise,
    keyed_uniform,
    start_undecided,
)


def test_normalise_takes_imagenets_mean_and_spread():
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    assert IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert IMAGENET_STD == (0.229, 0.224, 0.225)
    ones = Normalise()((mean + std).expand(1, 3, 2, 2))
    torch.testing.assert_close(ones, torch.ones(1, 3, 2, 2))


def test_classifier_starts_undecided():
    torch.manual_seed(0)
    classifier = nn.Conv2d(32, 5, 1)
    start_undecided(classifier)
    probability = classifier(torch.randn(2, 32, 8, 8)).softmax(1)
    assert (probability - 1 / 5).abs().max() < 0.1


def test_keyed_numbers_are_uniform_and_each_images_own():
    keys = torch.arange(64)
    maps = keyed_uniform(keys, salt=3, count=1000)
    assert maps.shape == (64, 1000, 1, 1)
    numbers = maps.flatten(1)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005
    assert abs(numbers.var() - 1 / 12) < 0.002
    assert torch.equal(maps[5:7], keyed_uniform(keys[5:7], salt=3, count=1000))
    rows = torch.cat((numbers, keyed_uniform(keys, 4, 1000).flatten(1)))
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.2  # 128 rows of 1000: six standard deviations
    neighbours = torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten()))
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 0.02
    next_key = torch.stack((numbers[:-1, 1:].flatten(), numbers[1:, :-1].flatten()))
    assert abs(torch.corrcoef(next_key)[0, 1]) < 0.02  # not the last key's numbers, one place on


def test_keys_are_no_index_arithmetic_to_a_compiler():
    """torch's compiler folds an arange times a constant into an index, which no GPU can hold."""

    def drawn(keys):
        return keyed_uniform(keys, torch.arange(4)[:, None], 3)

    aten = torch.ops.aten
    graph = make_fx(drawn)(torch.arange(2)).graph
    products = [node.args[0] for node in graph.nodes if node.target == aten.mul.Tensor]
    factors = {node.target for node in products}
    assert factors == {aten.bitwise_and.Scalar, aten.bitwise_xor.Tensor}


def test_keyed_dropout_keeps_the_mean_and_is_off_in_eval_mode():
    dropout, x = KeyedDropout(0.3, salt=0), torch.ones(4, 5000, 2, 3)
    keys = torch.tensor([7, 8, 9, 2**62])
    y = dropout(x, keys)
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))  # all of a channel or nothing
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((y == 0).float().mean() - 0.3) < 0.01
    assert torch.equal(y, dropout(x, keys))
    assert not torch.equal(y, dropout(x, keys + 1))
    assert not torch.equal(y, KeyedDropout(0.3, salt=1)(x, keys))
    assert torch.equal(dropout.eval()(x, keys), x)


def test_dropout_without_keys_follows_torchs_generator():
    dropout, x = KeyedDropout(0.5, salt=0), torch.ones(2, 100, 1, 1)
    torch.manual_seed(1)
    first, second = dropout(x, None), dropout(x, None)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, None), first)
    assert not torch.equal(first, second)


def test_stochastic_depth_decides_per_image():
    numbers = keyed_uniform(torch.arange(4000), salt=2)
    y = DropPath(0.25)(torch.ones(4000, 3, 2, 1), numbers).flatten(1)
    assert (y == y[:, :1]).all()
    assert abs((y[:, 0] == 0).float().mean() - 0.25) < 0.03
    assert abs(y.mean() - 1) < 0.04
