"""Scores against hand-made matrices and scikit-learn."""

import numpy as np
import pytest
import torch

from segmentation import ConfusionMatrix
from segmentation.metrics import confusion_matrix, image_scores


def random_labels(K: int = 4, N: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, K, (N, 11, 13), generator=generator)
    prediction = torch.where(
        torch.rand(target.shape, generator=generator) < 0.6, target, (target + 1) % K
    )
    target[:, :2] = 255
    return prediction, target


def scores_of(prediction: list[int], target: list[int], K: int) -> dict:
    matrix = ConfusionMatrix(K)
    matrix.update(torch.tensor([[prediction]]), torch.tensor([[target]]))
    return matrix.scores()


def test_hand_made_matrix():
    # class 0: TP 2, FP 1 (a pixel of class 2), FN 1; class 1: TP 1, FP 1, FN 0; class 2: TP 0, FN 1
    matrix = ConfusionMatrix(3)
    prediction, target = (
        torch.tensor([[[0, 0, 1, 1, 0, 2]]]),
        torch.tensor([[[0, 0, 0, 1, 2, 255]]]),
    )
    matrix.update(prediction, target)
    assert matrix.matrix.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    scores = matrix.scores(["a", "b", "c"])
    assert scores["iou"] == pytest.approx({"a": 2 / 4, "b": 1 / 2, "c": 0.0})
    assert scores["accuracy"] == pytest.approx({"a": 2 / 3, "b": 1.0, "c": 0.0})
    assert scores["miou"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert scores["mpa"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["pixel_accuracy"] == pytest.approx(3 / 5)
    assert scores["fwiou"] == pytest.approx((3 * 2 / 4 + 1 * 1 / 2 + 1 * 0) / 5)  # TP + FN first


def test_equals_scikit_learn():
    import sklearn.metrics  # seconds, which other tests need not wait for

    prediction, target = random_labels()
    matrix = ConfusionMatrix(4)
    for p, t in zip(prediction, target, strict=True):
        matrix.update(p[None], t[None])
    valid = (target != 255).numpy()
    p, t = prediction.numpy()[valid], target.numpy()[valid]
    np.testing.assert_array_equal(matrix.matrix, sklearn.metrics.confusion_matrix(t, p))
    scores = matrix.scores()
    assert scores["miou"] == pytest.approx(sklearn.metrics.jaccard_score(t, p, average="macro"))
    assert scores["mpa"] == pytest.approx(sklearn.metrics.recall_score(t, p, average="macro"))
    weighted = sklearn.metrics.jaccard_score(t, p, average="weighted")
    assert scores["fwiou"] == pytest.approx(weighted) != scores["miou"]


def test_order_and_batches_do_not_matter():
    prediction, target = random_labels()
    whole, parts = ConfusionMatrix(4), ConfusionMatrix(4)
    whole.update(prediction, target)
    for i in (2, 0, 1):
        parts.update(prediction[i : i + 1], target[i : i + 1])
    assert torch.equal(whole.matrix, parts.matrix)


def test_absent_class_does_not_count_but_its_false_positives_do():
    scores = scores_of([0, 1, 1], [0, 1, 1], K=5)  # three of five classes are nowhere
    assert scores["miou"] == scores["mpa"] == 1.0
    assert scores["iou"]["2"] is None and scores["accuracy"]["2"] is None
    scores = scores_of([0, 1, 2], [0, 1, 1], K=5)  # class 2 is predicted, never true
    assert scores["iou"]["2"] == 0.0 and scores["accuracy"]["2"] is None
    assert scores["miou"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores["mpa"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["fwiou"] == pytest.approx((1 + 2 * 1 / 2) / 3)


def test_only_the_target_decides_what_is_ignored():
    assert scores_of([0, 1, 1, 0], [0, 255, 1, 255], K=2)["miou"] == 1.0
    assert ConfusionMatrix(2, ignore_index=0).scores()["miou"] is None
    matrix = ConfusionMatrix(3, ignore_index=0)
    matrix.update(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[1, 1, 0]]]))
    assert matrix.matrix.sum() == 2 and matrix.matrix[1].tolist() == [1, 1, 0]


def test_nothing_counted_is_none_not_zero():
    scores = scores_of([0, 1], [255, 255], K=2)
    names = ("miou", "mpa", "pixel_accuracy", "fwiou")
    assert [scores[name] for name in names] == [None] * 4


@pytest.mark.parametrize("prediction, target", [([2], [0]), ([-1], [0]), ([0], [2]), ([0], [-1])])
def test_a_label_outside_the_classes_is_refused(prediction: list[int], target: list[int]):
    with pytest.raises(ValueError, match=r"labels .* the 2 classes are 0\.\.1"):
        scores_of(prediction, target, K=2)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(1, 2, 3), torch.zeros(1, 3, 2), 2)


def test_counts_above_what_float32_can_hold_stay_exact():
    matrix = ConfusionMatrix(2)
    matrix.matrix = torch.tensor([[2**40, 1], [0, 2**40]])
    matrix.update(torch.tensor([[[0]]]), torch.tensor([[[0]]]))
    assert matrix.matrix[0, 0].item() == 2**40 + 1
    scores = matrix.scores()
    assert scores["iou"]["1"] == 2**40 / (2**40 + 1) < 1
    assert scores["pixel_accuracy"] == (2**41 + 1) / (2**41 + 2) < 1


def test_no_pixel_at_all_counts_nothing():
    empty = torch.zeros(2, 0, 3, dtype=torch.int64)
    assert confusion_matrix(empty, empty, 2).tolist() == [[0, 0], [0, 0]]


def test_per_image_scores_are_the_decks():
    # image 1: IoU 1/3 and accuracy 1/2 of class 0, 1/2 and 2/3 of class 1, class 2 absent
    # image 2: 1 and 1 of class 0, the others absent
    matrices = torch.stack(
        [
            confusion_matrix(torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 1]), 3),
            confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 0]), 3),
        ]
    )
    scores = image_scores(matrices)
    assert scores["image_miou"] == pytest.approx(((1 / 3 + 1) / 2 + 1 / 2) / 2)
    assert scores["image_mpa"] == pytest.approx(((1 / 2 + 1) / 2 + 2 / 3) / 2)
    assert [image["miou"] for image in scores["images"]] == pytest.approx(
        [(1 / 3 + 1 / 2) / 2, 1.0]
    )
    assert [image["mpa"] for image in scores["images"]] == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0])
