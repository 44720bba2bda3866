"""UFormer: the weighted mean of probabilities, its weights as parameters, rebuilt exactly."""

import pytest
import torch
from conftest import run_script
from torch import nn

from segmentation import ResNet18UNet, SegFormer, UFormer, build_model, load_checkpoint
from segmentation.errors import BadInput

pytestmark = pytest.mark.usefixtures("small_models")


class Fixed(nn.Module):
    """The same class probabilities at each pixel, whatever the image: a parameter, K numbers."""

    def __init__(self, *probabilities: float):
        super().__init__()
        # Logits are free up to a constant.
        self.logits = nn.Parameter(torch.tensor(probabilities).log() + 5)

    def forward(self, image: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        return self.logits.view(1, -1, 1, 1).expand(len(image), -1, *image.shape[2:])


IMAGE = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, (0.35, 0.25, 0.4)),
        ((0.5, 0.5), (0.35, 0.25, 0.4)),
        ((1, 3), (0.225, 0.275, 0.5)),
        ((0.0, 1.0), (0.1, 0.3, 0.6)),
        (torch.tensor([0.25, 0.75]), (0.225, 0.275, 0.5)),
        # By class: 0.6, 0.25 and 0.2, of which the sum is 1.05
        (((1, 0.5, 1), (0, 0.5, 0)), (0.6 / 1.05, 0.25 / 1.05, 0.2 / 1.05)),
    ],
)
def test_the_output_is_the_logarithm_of_the_weighted_mean(weights, expected):
    model = UFormer(Fixed(0.6, 0.2, 0.2), Fixed(0.1, 0.3, 0.6), weights=weights)
    output = model(IMAGE)
    assert output.shape == (2, 3, 4, 5)
    assert torch.allclose(output.exp(), torch.tensor(expected).view(1, 3, 1, 1), atol=1e-6)
    assert torch.allclose(output.softmax(1), output.exp(), atol=1e-6)


@pytest.mark.parametrize(
    ("members", "weights"),
    [
        (2, (1.0,)),
        (2, (0.2, 0.3, 0.5, 0.0)),
        (2, (0.5, -0.5)),
        (2, (0, 0)),
        (2, ((1, 0), (1, 0))),
        (2, (float("nan"), 1.0)),
        (2, (float("inf"), 1.0)),
        (0, None),
    ],
)
def test_weights_that_make_no_average_are_refused(members, weights):
    with pytest.raises(ValueError, match="weight"):
        UFormer(*(Fixed(0.5, 0.5) for _ in range(members)), weights=weights)


@pytest.mark.parametrize("weights", [(0.3, 0.7), ((0.3, 0.6), (0.7, 0.4))])
def test_gradients_of_weights_and_members_are_those_of_the_formula(weights):
    model = UFormer(Fixed(0.6, 0.4), Fixed(0.1, 0.9), weights=weights).double()
    image = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    assert model(image).dtype == torch.float64

    def output(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            model, dict(zip(dict(model.named_parameters()), values, strict=True)), image
        )

    assert torch.autograd.gradcheck(output, tuple(model.parameters()))
    model(image)[:, 0].sum().backward()
    assert model.log_weights.grad.abs().min() > 0


@pytest.mark.parametrize("weights", [(0, 0, 1), (1, 0, 0)])
def test_weights_of_zero_stay_zero_and_gradients_finite(weights):
    model = UFormer(Fixed(0.6, 0.4), Fixed(0.1, 0.9), Fixed(0.5, 0.5), weights=weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IMAGE)[:, 0].mean().neg().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
    assert model.weights.flatten().tolist() == list(weights)


def test_confident_members_do_not_overflow():
    sure, opposed = Fixed(0.5, 0.5), Fixed(0.5, 0.5)
    sure.logits.data, opposed.logits.data = torch.tensor([300.0, 0.0]), torch.tensor([0.0, 300.0])
    assert torch.allclose(
        UFormer(sure, opposed, weights=(0.75, 0.25))(IMAGE).exp()[0, :, 0, 0],
        torch.tensor([0.75, 0.25]),
    )


@pytest.mark.parametrize("weights", [None, [0.3, 0.7], [[0.3, 0.6, 0.1], [0.7, 0.4, 0.9]]])
def test_configuration_and_state_rebuild_it_exactly(weights):
    members = [{"model": "unet", "num_classes": 3}, {"model": "segformer", "num_classes": 3}]
    config = {"model": "uformer", "members": members, "weights": weights}
    model = build_model(config).eval()
    model.log_weights.data += torch.rand_like(model.log_weights)
    again = build_model(config).eval()
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 40, 33)
    with torch.no_grad():
        assert torch.equal(model(image), again(image))
        assert model(image).shape == (1, 3, 40, 33)
    assert [type(member) for member in model.members] == [ResNet18UNet, SegFormer]


def test_a_configuration_without_sense_is_bad_input():
    with pytest.raises(BadInput, match="weight"):
        build_model(
            {
                "model": "uformer",
                "members": [{"model": "unet", "num_classes": 3}],
                "weights": [0.5, 0.5],
            }
        )


def test_half_precision_members_are_averaged_in_full():
    model = UFormer(Fixed(0.6, 0.4).bfloat16(), Fixed(0.1, 0.9).bfloat16())
    assert model(IMAGE).dtype == torch.float32


FLAGS = "--encoder-weights none --epochs 1 --batch-size 8 --augment 0 --workers 0 --seed 3".split()


@pytest.fixture(scope="module")
def members(trained):
    """best.pt of a U-Net and a SegFormer."""
    return [trained(model) / "best.pt" for model in ("unet", "segformer")]


@pytest.mark.parametrize(("frozen", "count"), [(True, 3), (False, 2)])
def test_training_an_average_of_trained_members(tmp_path, tiny_folder, members, frozen, count):
    members = [*members, *members][:count]
    out, freeze = tmp_path / "uformer", ["--freeze-members"] if frozen else []
    start = ("--model", "uformer", "--init", *members, *freeze)
    assert run_script("train", "--data", tiny_folder, *start, *FLAGS, "--out", out) == 0
    model, meta = load_checkpoint(out / "last.pt")
    assert meta["config"]["model"] == "uformer"
    assert not torch.equal(model.weights, torch.full((count, 1), 1 / count))
    for member, file in zip(model.members, members, strict=True):
        before = load_checkpoint(file)[0].state_dict()
        same = [torch.equal(value, before[name]) for name, value in member.state_dict().items()]
        assert all(same) if frozen else sum(same) < 0.1 * len(same)
    assert run_script("evaluate", out / "best.pt") == 0
