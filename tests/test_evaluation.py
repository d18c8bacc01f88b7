"Evaluation against torchmetrics, scikit-learn and nested loops, and its behaviour on bad input"
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from arcbook.evaluation import (accuracy, average_scores, confusion, crop_predict, ensemble, expected_calibration_error,
                                group_accuracy, knn_accuracy, knn_scores, linear_probe, per_class_accuracy, predict,
                                reliability)
from arcbook.datasets import ImageSet


def random_scores(n=300, c=7, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=g)
    return torch.randn(n, c, generator=g, dtype=dtype) + 2 * F.one_hot(labels, c), labels


def images_of(n=23, size=8):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def linear(images):
    weight = torch.randn(images[0].numel(), 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return images.flatten(1).double() / 255 @ weight


# accuracy and its relatives

@pytest.mark.parametrize("seed", range(3))
def test_accuracy_equals_torchmetrics(seed):
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix
    scores, labels = random_scores(seed=seed)
    assert accuracy(scores, labels) == pytest.approx(multiclass_accuracy(scores, labels, 7, average="micro").item(), abs=1e-6)
    assert_close(per_class_accuracy(scores, labels), multiclass_accuracy(scores, labels, 7, average="none"))
    assert confusion(scores, labels).equal(multiclass_confusion_matrix(scores, labels, 7))
    assert (confusion(scores, labels).numpy() == confusion_matrix(labels, scores.argmax(1))).all()


def test_first_class_wins_a_tie():
    scores = torch.tensor([[1., 1., 0.], [0., 1., 1.], [5., 5., 5.]])
    assert accuracy(scores, torch.tensor([0, 1, 0])) == 1 and accuracy(scores, torch.tensor([1, 2, 2])) == 0


def test_absent_class_is_nan_not_zero_and_leaves_the_group_mean_alone():
    scores, labels = torch.eye(4), torch.tensor([0, 1, 2, 2])
    assert per_class_accuracy(scores, labels).isnan().tolist() == [False, False, False, True]
    groups = group_accuracy(scores, labels, torch.tensor([500, 50, 3, 2]))
    assert groups == {"many": 1, "medium": 1, "few": 0.5}
    assert math.isnan(group_accuracy(scores, labels, [500, 500, 50, 50])["few"])


def test_groups_are_means_over_classes_not_over_images():
    labels = torch.tensor([0] * 9 + [1])
    scores = torch.tensor([[1., 0.]]).repeat(10, 1)                  # always class 0
    assert group_accuracy(scores, labels, [200, 200])["many"] == pytest.approx(0.5)
    assert accuracy(scores, labels) == pytest.approx(0.9)


def test_group_limits_are_parameters():
    eye = torch.eye(3)
    groups = group_accuracy(eye[[1, 1, 1]], torch.arange(3), [10, 5, 1], many=9, few=2)
    assert groups == {"many": 0, "medium": 1, "few": 0}


# prediction in chunks

@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_result_does_not_depend_on_the_batch_size(batch_size):
    images = images_of()
    halves = lambda x: torch.stack([x[..., :4], x[..., 4:]], 1)
    assert_close(predict(linear, images, batch_size), linear(images))
    half = lambda x: linear(F.pad(x, (0, 4)))
    assert_close(crop_predict(half, images, halves, batch_size=batch_size), crop_predict(half, images, halves))


def test_predict_takes_an_image_set_and_keeps_no_gradient():
    data = ImageSet(images_of(), torch.zeros(23).long(), ["one"])
    layer = torch.nn.Linear(192, 4)
    out = predict(lambda x: layer(x.flatten(1).float()), data, 10)
    assert out.shape == (23, 4) and not out.requires_grad and torch.is_grad_enabled()
    assert_close(out, predict(lambda x: layer(x.flatten(1).float()), data.images), atol=1e-3, rtol=1e-4)


def test_crops_of_each_image_stay_together():
    images = images_of(5)
    shifts = lambda x: torch.stack([x.roll(k, -1) for k in range(3)], 1)
    loops = torch.stack([torch.stack([linear(x.roll(k, -1)[None])[0].softmax(0) for k in range(3)]).mean(0) for x in images])
    assert_close(crop_predict(linear, images, shifts), loops)


def test_ten_crop_average_is_that_of_the_mirror_image():
    from arcbook.views import ten_crop
    images = images_of(6, 10)
    crops = lambda x: ten_crop(x, 8)
    for average in ("prob", "logit"):
        assert_close(crop_predict(linear, images, crops, average), crop_predict(linear, images.flip(-1), crops, average))


# averages and ensembles

def test_worked_values_of_averaging():
    two = torch.tensor([[4., 0., 0.], [0., 3., 0.]], dtype=torch.float64)
    assert average_scores(two).tolist() == pytest.approx([.504970828, .463555710, .031473461], abs=2e-9)
    assert average_scores(two, "logit").tolist() == pytest.approx([.574096993, .348207428, .077695578], abs=2e-9)


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_copies_of_one_model_change_nothing(average, copies):
    p = random_scores(dtype=torch.float64)[0].softmax(1)
    assert_close(ensemble([p] * copies, average=average), p, rtol=1e-12, atol=1e-14)


def test_ensemble_equals_loops_and_scales_weights():
    ps = [random_scores(20, 4, seed)[0].softmax(1) for seed in range(3)]
    loops = torch.stack([sum(w * p[i] for w, p in zip((.5, .3, .2), ps)) for i in range(20)])
    assert_close(ensemble(ps, weights=[5, 3, 2]), loops)
    geometric = (ps[0].log() * .5 + ps[1].log() * .3 + ps[2].log() * .2).softmax(1)
    assert_close(ensemble(ps, weights=[5, 3, 2], average="logit"), geometric)


def test_geometric_mean_survives_a_zero():
    p, q = torch.tensor([[1., 0., 0.]]), torch.tensor([[0.2, 0.4, 0.4]])
    assert ensemble([p, q], average="logit").isfinite().all() and ensemble([p, q], average="logit").argmax() == 0


# embeddings

@pytest.mark.parametrize("k,temperature,block", [(1, .1, 1024), (5, .1, 7), (20, 1., 64)])
def test_knn_equals_scikit_learn(k, temperature, block):
    g = torch.Generator().manual_seed(k)
    x, q = F.normalize(torch.randn(90, 6, generator=g, dtype=torch.float64)), torch.randn(40, 6, generator=g, dtype=torch.float64)
    y = torch.randint(0, 4, (90,), generator=g)
    votes = lambda distance: np.exp((1 - distance ** 2 / 2) / temperature)       # unit vectors: cos = 1 - d^2 / 2
    oracle = KNeighborsClassifier(k, weights=votes).fit(x, y)
    assert_close(knn_scores(x, y, q, k, temperature, block=block), torch.from_numpy(oracle.predict_proba(F.normalize(q))))


def test_exclude_self_equals_leaving_one_out():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=g, dtype=torch.float64), torch.arange(30) % 3
    keep = lambda v, i: torch.cat([v[:i], v[i + 1:]])
    loops = torch.cat([knn_scores(keep(x, i), keep(y, i), x[i:i + 1], 5, .2, 3) for i in range(30)])
    assert_close(knn_scores(x, y, x, 5, .2, 3, exclude_self=True, block=8), loops)


def test_knn_is_blind_to_length_and_to_a_tiny_temperature():
    g = torch.Generator().manual_seed(0)
    x, q, y = torch.randn(50, 8, generator=g), torch.randn(9, 8, generator=g), torch.arange(50) % 5
    assert_close(knn_scores(x, y, q), knn_scores(7 * x, y, q * torch.rand(9, 1) + q))
    assert knn_scores(x, y, q, temperature=1e-6).isfinite().all()
    assert knn_scores(x, y, q, k=10 ** 6).sum(1).allclose(torch.ones(9))
    assert knn_accuracy(x.half(), y, x.half(), y, k=1) == 1


def test_knn_knows_a_test_class_that_training_lacks():
    x = torch.eye(3)
    assert knn_accuracy(x[:2], [0, 1], x, torch.tensor([0, 1, 2]), k=1) == pytest.approx(2 / 3)


def test_linear_probe_equals_scikit_learn():
    g = np.random.default_rng(0)
    x, y = g.normal(size=(200, 5)) * [1, 10, .1, 1, 1], g.integers(0, 3, 200)
    x[:, 0] += 2 * y
    scale = StandardScaler().fit(x[:120])
    oracle = LogisticRegression(max_iter=1000).fit(scale.transform(x[:120]), y[:120]).score(scale.transform(x[120:]), y[120:])
    assert linear_probe(*(torch.from_numpy(v) for v in (x[:120], y[:120], x[120:], y[120:]))) == pytest.approx(oracle)


# calibration

@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics_and_loops(bins):
    from torchmetrics.functional.classification import multiclass_calibration_error
    scores, labels = random_scores(500)
    probs = scores.softmax(1)
    ours = expected_calibration_error(probs, labels, bins)
    assert ours == pytest.approx(multiclass_calibration_error(probs, labels, 7, n_bins=bins, norm="l1").item(), abs=1e-5)
    total, confidence = 0.0, probs.max(1).values.tolist()
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        right = sum(probs[i].argmax() == labels[i] for i in inside)
        total += abs(float(right) - sum(confidence[i] for i in inside)) / 500
    assert ours == pytest.approx(total, abs=1e-6)


def test_reliability_table_by_hand():
    conf = torch.tensor([.9, .8, .7, .6])
    table = reliability(torch.stack([conf, 1 - conf], 1), torch.tensor([0, 1, 0, 1]), bins=4)
    assert table.counts.tolist() == [0, 0, 2, 2] and table.edges.tolist() == [.25, .5, .75, 1]
    assert table.confidence[2:].tolist() == pytest.approx([.65, .85]) and table.accuracy[2:].tolist() == [.5, .5]


def test_confidence_on_an_edge_belongs_below_it():
    table = reliability(torch.tensor([[.5, .5], [1., 0.]]), torch.tensor([0, 0]), bins=2)
    assert table.counts.tolist() == [1, 1]


# bad input: the argument, what it got, what it needs

SCORES, LABELS = random_scores(10, 3)
X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
BAD = [
    (lambda: accuracy(SCORES[0], LABELS), "scores must have shape"),
    (lambda: accuracy(SCORES[:0], LABELS[:0]), "scores needs at least 1 row, got 0"),
    (lambda: accuracy(SCORES, LABELS[:5]), r"labels must have shape \[10\], got \[5\]"),
    (lambda: accuracy(SCORES, LABELS.float()), "labels must be integers, got torch.float32"),
    (lambda: accuracy(SCORES, LABELS + 1), r"labels must lie in 0\.\.2, got 1\.\.3"),
    (lambda: accuracy(SCORES, LABELS - 1), r"labels must lie in 0\.\.2, got -1\.\.1"),
    (lambda: accuracy(SCORES * math.nan, LABELS), "scores must be numbers, got NaN in row 0"),
    (lambda: confusion(SCORES, LABELS, 2), "num_classes must be >= 3"),
    (lambda: group_accuracy(SCORES, LABELS, [5, 5]), r"counts must have shape \[3\], got \[2\]"),
    (lambda: group_accuracy(SCORES, LABELS, [5, 5, 5], many=5, few=9), r"few must be <= many \(5\), got 9"),
    (lambda: predict(linear, images_of()[:0]), "data must hold at least 1 image"),
    (lambda: predict(linear, images_of(), 0), "batch_size must be >= 1, got 0"),
    (lambda: crop_predict(linear, images_of(), lambda x: x), r"crops must give \[B, n, 3, h, w\]"),
    (lambda: average_scores(SCORES, "vote"), "average must be \"prob\" or \"logit\", got 'vote'"),
    (lambda: ensemble([]), "probs must hold at least 1"),
    (lambda: ensemble([SCORES]), r"probs\[0\] must be probabilities"),
    (lambda: ensemble([SCORES.softmax(1), SCORES[:4].softmax(1)]), r"probs\[1\] must have shape \[10, 3\], got \[4, 3\]"),
    (lambda: ensemble([SCORES.softmax(1)], weights=[-1]), "weights must be >= 0"),
    (lambda: ensemble([SCORES.softmax(1)], weights=[1, 2]), r"weights must have shape \[1\], got \[2\]"),
    (lambda: expected_calibration_error(SCORES, LABELS), "probs must be probabilities"),
    (lambda: expected_calibration_error(SCORES.softmax(1), LABELS, 0), "bins must be >= 1, got 0"),
    (lambda: knn_scores(X, LABELS, X, k=0), "k must be >= 1, got 0"),
    (lambda: knn_scores(X, LABELS, X, temperature=0), "temperature must be > 0, got 0"),
    (lambda: knn_scores(X, LABELS, X[:, :2]), "embeddings must be 4 wide"),
    (lambda: knn_scores(X, LABELS[:3], X), r"train_labels must have shape \[10\], got \[3\]"),
    (lambda: knn_scores(X, LABELS, X[:4], exclude_self=True), r"exclude_self needs embeddings of shape \[10, 4\]"),
    (lambda: knn_scores(X, LABELS, X * math.inf), "embeddings must be finite"),
    (lambda: knn_scores(X, LABELS, X, num_classes=1), "num_classes must be > "),
    (lambda: knn_scores(X[:1], LABELS[:1], X[:1], exclude_self=True), "train_embeddings needs at least 2 rows"),
    (lambda: linear_probe(X, LABELS, X[:, :2], LABELS), "test_x must be 4 wide"),
    (lambda: linear_probe(X, LABELS * 0, X, LABELS), "train_y must hold at least 2 classes"),
]


@pytest.mark.parametrize("call,message", BAD, ids=[m[:40] for _, m in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()
