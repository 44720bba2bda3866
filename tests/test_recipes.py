"""Recipes: what an optimizer is made of, and how its state is told from parameter to parameter."""

from dataclasses import replace

import pytest
import torch

from segmentation import SegFormer
from segmentation.recipes import FAST, RECIPES, optimizer_for, set_learning_rate
from segmentation.training.parallel import load_optimizer_state, whole_optimizer_state

CPU = torch.device("cpu")
TUNED = replace(FAST, encoder_lr=0.1)


def rates_and_decays(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_encoders_take_their_share_and_vectors_do_not_decay(recipe):
    model = SegFormer(3)
    model.encoder.stages[0].requires_grad_(False)
    row = replace(RECIPES[recipe], encoder_lr=0.25)
    optimizer = optimizer_for(row, model.named_parameters(), CPU)
    set_learning_rate(optimizer, 0.4)
    found = rates_and_decays(model, optimizer)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name not in found
            continue
        rate = 0.1 if name.startswith("encoder.") else 0.4
        decay = 0.0 if parameter.dim() == 1 else row.weight_decay or 0.0
        assert found.pop(name) == (pytest.approx(rate), decay)
    assert not found


def test_an_optimizers_state_fits_another_grouping():
    """Numbers stand for parameters in the model's order, so one rate's state is two rates' too."""
    model = SegFormer(3)
    one = optimizer_for(RECIPES["deck"], model.named_parameters(), CPU)
    model(torch.rand(1, 3, 32, 32)).sum().backward()
    one.step()
    two = optimizer_for(TUNED, model.named_parameters(), CPU)
    load_optimizer_state(model, two, whole_optimizer_state(model, one))
    assert two.state.keys() == one.state.keys()
    for parameter, entry in one.state.items():
        assert all(torch.equal(value, two.state[parameter][key]) for key, value in entry.items())
    assert {group["lr_share"] for group in two.param_groups} == {0.1, 1.0}
