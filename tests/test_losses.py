"""The Tversky loss against hand numbers, an independent implementation and its own definition."""

import math

import pytest
import torch

from segmentation import TverskyLoss
from segmentation.losses import LossSums, TverskyCrossEntropy, tversky_loss
from segmentation.recipes import RECIPES, criterion_for


def logits_of(probability: list[list[float]]) -> torch.Tensor:
    """Rows of class probabilities, one a pixel -> logits 1 x K x 1 x P."""
    return torch.tensor(probability, dtype=torch.float64).log().T[None, :, None]


def random_case(K: int = 5, N: int = 3, size: tuple[int, int] = (17, 23), dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(N, K, *size, generator=generator, dtype=dtype)
    target = torch.randint(0, K, (N, *size), generator=generator)
    target[0, :4] = 255
    return logits, target


def test_hand_numbers_tell_alpha_from_beta():
    # Two pixels, the first of class 0, the second of class 1.
    logits = logits_of([[0.8, 0.2], [0.4, 0.6]])
    target = torch.tensor([[[0, 1]]])
    # class 0: TP 0.8, FP 0.4, FN 0.2; class 1: TP 0.6, FP 0.2, FN 0.4
    for alpha, beta in ((0.3, 0.7), (0.7, 0.3), (1.0, 0.0), (0.0, 1.0)):
        index0 = (0.8 + 1e-7) / (0.8 + alpha * 0.4 + beta * 0.2 + 1e-7)
        index1 = (0.6 + 1e-7) / (0.6 + alpha * 0.2 + beta * 0.4 + 1e-7)
        loss = TverskyLoss(alpha, beta)(logits, target)
        assert loss.item() == pytest.approx(1 - (index0 + index1) / 2, abs=1e-12)


def test_alpha_punishes_false_positives_and_beta_false_negatives():
    target = torch.tensor([[[1, 1, 0, 0]]])
    # Class 1 where it is not.
    extra = logits_of([[0.01, 0.99], [0.01, 0.99], [0.1, 0.9], [0.99, 0.01]])
    # Class 1 not where it is.
    missed = logits_of([[0.01, 0.99], [0.9, 0.1], [0.99, 0.01], [0.99, 0.01]])

    def class_one(logits: torch.Tensor, alpha: float, beta: float) -> float:
        sums = LossSums.apply(logits, target, 255)[:3, 1:]
        return tversky_loss(sums, alpha, beta).item()

    assert class_one(extra, 0.9, 0.1) > class_one(extra, 0.1, 0.9)
    assert class_one(missed, 0.9, 0.1) < class_one(missed, 0.1, 0.9)


def test_half_and_half_is_dice_and_one_and_one_is_jaccard():
    logits, target = random_case()
    p, valid = logits.softmax(1), target != 255
    dice, jaccard = [], []
    for k in range(5):
        tp = p[:, k][target == k].sum()
        total, pixels = p[:, k][valid].sum(), (target == k).sum()
        dice.append(2 * tp / (total + pixels))
        jaccard.append(tp / (total + pixels - tp))
    for weight, index in ((0.5, dice), (1.0, jaccard)):
        expected = 1 - torch.stack(index).mean().item()
        assert TverskyLoss(weight, weight)(logits, target).item() == pytest.approx(
            expected, abs=1e-9
        )


@pytest.mark.parametrize("alpha, beta", [(0.3, 0.7), (0.8, 0.2)])
def test_value_and_gradient_equal_segmentation_models_pytorch(alpha: float, beta: float):
    import segmentation_models_pytorch as smp  # seconds, which other tests need not wait for

    logits, target = random_case()
    logits.requires_grad_()
    oracle = smp.losses.TverskyLoss(
        "multiclass", alpha=alpha, beta=beta, ignore_index=255, smooth=0.0
    )
    losses = TverskyLoss(alpha, beta)(logits, target), oracle(logits, target)
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-8)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)


def test_gradient_equals_finite_differences():
    logits, target = random_case(K=3, N=2, size=(3, 4))
    target[0, :2] = 255
    assert torch.autograd.gradcheck(lambda x: TverskyLoss()(x, target), (logits.requires_grad_(),))


def test_ignored_pixels_do_not_matter():
    logits, target = random_case()
    other = logits.clone()
    other[0, :, :4] = 100 * torch.randn(5, 4, 23, dtype=torch.float64)
    assert TverskyLoss()(logits, target).item() == TverskyLoss()(other, target).item()
    logits.requires_grad_()
    TverskyLoss()(logits, target).backward()
    assert logits.grad[0, :, :4].abs().max() == 0
    assert logits.grad[0, :, 4:].abs().min() > 0


@pytest.mark.parametrize("criterion", [TverskyLoss, TverskyCrossEntropy])
@pytest.mark.parametrize("ignored", [4, -1])
def test_any_number_can_be_the_ignored_one(criterion: type[TverskyLoss], ignored: int):
    logits, target = random_case()
    target[target == 4] = 255
    other = torch.where(target == 255, ignored, target)
    expected, found = criterion()(logits, target), criterion(ignore_index=ignored)(logits, other)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)


def test_absent_class_leaves_the_mean():
    logits, target = random_case()
    target[target == 4] = 255
    sums = LossSums.apply(logits, target, 255)
    assert TverskyLoss()(logits, target).item() == pytest.approx(
        tversky_loss(sums[:3, :4], 0.3, 0.7).item()
    )


def test_all_ignored_gives_zero_with_a_graph():
    logits, target = random_case(dtype=torch.float32)
    logits.requires_grad_()
    loss = TverskyLoss()(logits, torch.full_like(target, 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_perfect_and_opposite():
    target = torch.tensor([[[0, 1, 2]]])
    right = 50 * torch.eye(3)[None, :, None]
    assert TverskyLoss()(right, target).item() == pytest.approx(0, abs=1e-6)
    assert TverskyLoss()(-right, target).item() > 0.5


def test_half_precision_logits_of_a_large_image_stay_finite():
    """A sum over a million pixels overflows float16, and in bfloat16 it stops growing at 256."""
    target = torch.zeros(1, 1024, 1024, dtype=torch.int64)
    target[:, 512:] = 1
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.zeros(1, 2, 1024, 1024, dtype=dtype)
        logits[:, 0, :512] = logits[:, 1, 512:] = 20
        logits.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = TverskyLoss()(logits, target)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert logits.grad.isfinite().all()
        # Nothing known: TP = FP = FN in both classes, so 1 - TI is 1/2;
        # each pixel's cross entropy is log 2.
        loss = TverskyCrossEntropy()(torch.zeros_like(logits), target)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0.5 + math.log(2), abs=1e-5)


def test_batch_is_one_region_not_a_mean_of_images():
    logits, target = random_case(N=2)
    joined = torch.cat((logits[:1], logits[1:]), dim=3), torch.cat((target[:1], target[1:]), dim=2)
    assert TverskyLoss()(logits, target).item() == pytest.approx(
        TverskyLoss()(*joined).item(), abs=1e-12
    )


def test_channels_last_logits_give_the_same():
    logits, target = random_case()
    other = logits.clone(memory_format=torch.channels_last).requires_grad_()
    logits.requires_grad_()
    losses = TverskyLoss()(logits, target), TverskyLoss()(other, target)
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-12)
    gradients = torch.autograd.grad(losses[0], logits)[0], torch.autograd.grad(losses[1], other)[0]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("weights", [None, (0.5, 3.0, 1.0, 0.1, 2.0)])
def test_cross_entropy_is_added_as_a_mean_over_labelled_pixels(weights):
    logits, target = random_case()
    weights = None if weights is None else torch.tensor(weights, dtype=logits.dtype)
    # A weighted mean.
    logits.requires_grad_()
    entropy = torch.nn.functional.cross_entropy(logits, target, weights, ignore_index=255)
    expected = TverskyLoss(0.4, 0.6)(logits, target) + entropy
    loss = TverskyCrossEntropy(0.4, 0.6, class_weights=weights)(logits, target)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    gradients = [torch.autograd.grad(each, logits)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)
    loss = TverskyCrossEntropy()(logits, torch.full_like(target, 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_what_is_certain_and_wrong_has_a_gradient():
    """A probability of e^-200 is 0 in float32."""
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    loss = TverskyCrossEntropy()(logits, torch.tensor([[[1]]]))
    loss.backward()
    assert 80 < loss.item() < 100
    assert logits.grad.flatten().tolist() == pytest.approx([1, -1])


def test_weights_of_one_class_alone_cancel_however_small():
    logits, target = logits_of([[0.8, 0.2]]), torch.tensor([[[0]]])
    loss = TverskyCrossEntropy(class_weights=torch.tensor([0.1, 1.0]))(logits, target)
    entropy = loss - TverskyLoss()(logits, target)
    assert entropy.item() == pytest.approx(-math.log(0.8), abs=1e-12)


def test_the_fast_recipe_weighs_rare_classes_by_the_root_of_their_pixels():
    weights = criterion_for(RECIPES["fast"], [1600, 400, 100, 0, 1]).class_weights
    # Of five the fourth is absent, and 10 is the most.
    assert weights.tolist() == [0.25, 0.5, 1.0, 10.0, 10.0]
