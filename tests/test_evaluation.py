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

from arcbook import evaluation
from arcbook.datasets import ImageSet
from arcbook.evaluation import (accuracy, alignment, average_scores, class_margin, confusion, crop_predict, embed_all,
                                ensemble, expected_calibration_error, group_accuracy, group_confusion, knn_accuracy,
                                knn_scores, linear_probe, nearest_centroid, neighbour_purity, per_class_accuracy, predict,
                                reliability, share_right, shot_thresholds, some_indices, subclass_purity,
                                subclass_purity_within, uniformity)
from arcbook.sampling import long_tail_counts, shot_groups


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


@pytest.mark.parametrize("classes,largest,imbalance", [(6, 500, 100), (6, 500, 20), (10, 74, 20), (6, 500, 10), (10, 74, 5)])
def test_thresholds_leave_no_group_empty(classes, largest, imbalance):
    counts = long_tail_counts(classes, largest, imbalance)
    assert len(shot_groups(counts, *shot_thresholds(counts)).unique()) == 3


def test_thresholds_by_hand():
    assert shot_thresholds(long_tail_counts(6, 500, 20)) == (150, 82)           # two classes in each
    assert shot_thresholds(torch.tensor([500, 199, 79, 31, 12, 5])) == (100, 20)
    assert shot_thresholds(torch.full((100,), 7)) == (100, 20)                  # from 100 classes on: the usual ones
    ten = torch.arange(10, 0, -1)
    assert shot_groups(ten, *shot_thresholds(ten)).tolist() == [0] * 3 + [1] * 4 + [2] * 3
    assert shot_thresholds(torch.tensor([5])) == (0, 0)


def test_confusion_by_group():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    guess = torch.tensor([0, 0, 0, 1, 0, 0, 1, 2])
    table = group_confusion(F.one_hot(guess, 3).float(), labels, torch.tensor([200, 50, 5]))
    assert_close(table, torch.tensor([[1, 0, 0], [.5, .5, 0], [.5, .25, .25]], dtype=torch.float64))
    assert group_confusion(torch.eye(2), torch.arange(2), [200, 200])[1:].isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_confusion_by_group_equals_loops(seed):
    scores, labels = random_scores(seed=seed)
    counts = torch.tensor([500, 120, 100, 50, 20, 19, 1])
    group, guess = shot_groups(counts), scores.argmax(1)
    loops = torch.zeros(3, 3, dtype=torch.float64)
    for y, p in zip(labels, guess): loops[group[y], group[p]] += 1
    assert_close(group_confusion(scores, labels, counts), loops / loops.sum(1, keepdim=True))


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


def test_embeddings_of_all_images():
    data = ImageSet(images_of(), torch.zeros(23).long(), ["one"])
    layer = torch.nn.Linear(192, 4)
    embed = lambda x: layer(x.flatten(1).float())
    z = embed_all(embed, data, 7)
    assert torch.equal(z, predict(embed, data, 7)) and not z.requires_grad
    assert torch.equal(embed_all(embed, data.images, 7), z)
    assert embed_all(lambda x: embed(x).double(), data).dtype == torch.float32


def test_rows_are_scattered_by_their_index():
    "Interleaved ranks, padding, any order: each image once, or an error."
    rows, order = torch.randn(11, 3), torch.randperm(11, generator=torch.Generator().manual_seed(0))
    scatter = evaluation._scatter_rows
    assert torch.equal(scatter(order, rows[order], 11), rows)
    padded = torch.cat([order, torch.tensor([-1, -1])])
    assert torch.equal(scatter(padded, torch.cat([rows[order], rows[:2] + 9]), 11), rows)
    twice = order.clone()
    twice[0] = (order[0] + 1) % 11
    for wrong in (twice, order[:10], torch.cat([order, order[:1]]), order + 1):
        with pytest.raises(ValueError, match="exactly once"): scatter(wrong, torch.randn(len(wrong), 3), 11)


def numbered(n):
    "Images that carry their number, as a data set"
    images = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(n).long(), ["one"])


def number(images): return images[:, :2, 0, 0].double()


def worker(rank, folder, port, world):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    seen, found = [], []
    def watched(images):
        seen.append(len(images))
        return number(images)
    for n in (12, 11, 2, 1): found += [embed_all(watched, numbered(n), 2), embed_all(number, numbered(n).images)]
    torch.save((found, sum(seen)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2])
def test_processes_share_the_embeddings(tmp_path, world):
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(worker, (str(tmp_path), port, world), nprocs=world)
    for rank in range(world):
        found, seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for z, n in zip(found, (12, 12, 11, 11, 2, 2, 1, 1)):
            assert z.dtype == torch.float32 and torch.equal(z, embed_all(number, numbered(n)))
        assert seen < 26                                                       # a share of the 26 images, not all


def test_some_indices_are_drawn_once_and_for_all():
    assert some_indices(7, 9).tolist() == list(range(7)) and some_indices(0, 3).tolist() == []
    drawn = some_indices(3000, 600)
    assert torch.equal(drawn, some_indices(3000, 600)) and len(drawn.unique()) == 600 and (drawn.diff() > 0).all()
    for period in (2, 3, 6, 10):                                               # no period of a data set is missed
        assert (drawn % period).bincount(minlength=period).min() > 600 / period * 0.6


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


def test_measures_are_blind_to_autocast():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 40, generator=g), torch.arange(60) % 3
    measures = (lambda: knn_scores(x, y, x, 5), lambda: nearest_centroid(x, x[:4]), lambda: class_margin(x, y),
                lambda: neighbour_purity(x, y), lambda: uniformity(x), lambda: alignment(x, x.roll(1, 0)))
    for measure in measures:
        right = measure()
        with torch.autocast("cpu", torch.bfloat16): assert torch.equal(measure(), right)


def test_nearest_centroid_never_picks_an_unseen_class():
    c = torch.eye(3)
    c[1] = 0
    assert nearest_centroid(torch.tensor([[0.1, 5.0, 0.0]]), c).argmax() == 0
    z, c = torch.randn(9, 4), torch.randn(3, 4)
    assert_close(nearest_centroid(z, c), F.cosine_similarity(z[:, None], c, dim=2))


def test_linear_probe_takes_half_precision():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    for dtype in (torch.bfloat16, torch.float16): assert 0 <= linear_probe(x.to(dtype), y, x.to(dtype), y) <= 1


def test_linear_probe_equals_scikit_learn():
    g = np.random.default_rng(0)
    x, y = g.normal(size=(200, 5)) * [1, 10, .1, 1, 1], g.integers(0, 3, 200)
    x[:, 0] += 2 * y
    scale = StandardScaler().fit(x[:120])
    oracle = LogisticRegression(max_iter=1000).fit(scale.transform(x[:120]), y[:120]).score(scale.transform(x[120:]), y[120:])
    assert linear_probe(*(torch.from_numpy(v) for v in (x[:120], y[:120], x[120:], y[120:]))) == pytest.approx(oracle)


# the geometry of an embedding

def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("alpha", [1, 2])
def test_alignment_equals_loops(alpha):
    a, b = noise(9, 4), noise(9, 4, seed=1)
    loops = sum(float((x / x.norm() - y / y.norm()).norm()) ** alpha for x, y in zip(a, b)) / 9
    assert float(alignment(a, b, alpha)) == pytest.approx(loops)
    assert float(alignment(a, 5 * a)) == pytest.approx(0, abs=1e-12) and float(alignment(a, -a)) == pytest.approx(4)


@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 8, 4096])
def test_uniformity_equals_the_definition(t, block):
    z = noise(33, 5)
    definition = torch.pdist(F.normalize(z)).square().mul(-t).exp().mean().log()
    assert_close(uniformity(z, t, block), definition)


def test_uniformity_extremes():
    assert float(uniformity(torch.ones(5, 3))) == pytest.approx(0, abs=1e-5)                 # collapsed: the worst
    assert float(uniformity(torch.tensor([[1., 0.], [-1., 0.]]))) == pytest.approx(-8)       # two opposite points
    square = torch.tensor([[1., 0.], [0., 1.], [-1., 0.], [0., -1.]])
    assert float(uniformity(square)) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))


def test_alignment_and_uniformity_can_be_trained():
    z = noise(8, 3).requires_grad_()
    torch.autograd.gradcheck(lambda z: uniformity(z, block=3), z)
    torch.autograd.gradcheck(lambda z: alignment(z[:4], z[4:]), z)
    assert uniformity(z.half()).dtype == torch.float32


def test_class_margin_equals_loops_for_any_label_values():
    z, labels = noise(20, 4), torch.tensor([7, 100, 3, 3] * 5)
    means = {c: F.normalize(z)[labels == c].mean(0) for c in (3, 7, 100)}
    cos = lambda a, b: float(a @ b / a.norm() / b.norm())
    best = lambda x, y: max(cos(x, m) for c, m in means.items() if c != y)
    loops = sum(cos(x, means[int(y)]) - best(x, y) for x, y in zip(z, labels)) / 20
    assert float(class_margin(z, labels)) == pytest.approx(loops)


@pytest.mark.parametrize("c", [2, 3, 10])
def test_class_margin_of_a_simplex_is_c_over_c_minus_1(c):
    z = (torch.eye(c) - 1 / c).repeat(4, 1)
    assert float(class_margin(z, torch.arange(c).repeat(4))) == pytest.approx(c / (c - 1))


@pytest.mark.parametrize("k,block", [(1, 64), (5, 7), (1000, 1024)])
def test_neighbour_purity_equals_scikit_learn(k, block):
    from sklearn.neighbors import NearestNeighbors
    z, labels = noise(50, 4), torch.arange(50) % 3
    k_used = min(k, 49)
    near = NearestNeighbors(n_neighbors=k_used).fit(F.normalize(z).numpy()).kneighbors(return_distance=False)
    assert float(neighbour_purity(z, labels, k, block)) == pytest.approx(float((labels[near] == labels[:, None]).float().mean()))


def test_subclass_purity_by_hand():
    keys, labels, kinds = torch.eye(4).repeat(2, 1), torch.tensor([0, 0, 1, 1] * 2), torch.tensor([0, 1, 0, 1] * 2)
    purity = lambda **how: subclass_purity(keys, labels, kinds, keys[:4], labels[:4], kinds[:4], **how)
    assert purity(k=2) == 1 and purity(k=4, within=True) == 0.5
    assert purity(k=99, within=True) == 0.5 and purity(k=8) == 0.25


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_subclass_purity_equals_loops(k, within):
    keys, z = noise(30, 5), noise(9, 5, seed=1)
    draw = lambda n, c, seed: torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))
    key_labels, key_kinds, labels, kinds = draw(30, 3, 2), draw(30, 2, 3), draw(9, 4, 4), draw(9, 2, 5)     # one class has no key
    right, found = 0, 0
    for x, y, s in zip(z, labels, kinds):
        pool = [j for j in range(30) if not within or key_labels[j] == y]
        near = sorted(pool, key=lambda j: -float(F.cosine_similarity(x, keys[j], dim=0)))[:k]
        right, found = right + sum(bool(key_labels[j] == y and key_kinds[j] == s) for j in near), found + len(near)
    assert subclass_purity(keys, key_labels, key_kinds, z, labels, kinds, k, within) == pytest.approx(right / found)


def test_subclass_purity_within_equals_loops():
    z, y, s = noise(41, 5), torch.cat([torch.arange(40) % 4, torch.tensor([9])]), torch.arange(41) // 4 % 3
    shares = []
    for i in range(40):                                                        # the last image is alone in its class
        near = sorted((j for j in range(40) if j != i and y[j] == y[i]), key=lambda j: -float(F.cosine_similarity(z[i], z[j], dim=0)))
        shares.append(sum(bool(s[j] == s[i]) for j in near[:6]) / 6)
    assert subclass_purity_within(z, y, s, k=6) == pytest.approx(sum(shares) / 40, abs=1e-6)
    assert math.isnan(subclass_purity_within(z[:3], torch.arange(3), s[:3]))
    chance = noise(300, 8), torch.arange(300) % 2, torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(0))
    assert abs(subclass_purity_within(*chance) - 1 / 3) < 0.05
    assert subclass_purity_within(torch.eye(3)[chance[2]] + 0.01 * noise(300, 3), *chance[1:]) == pytest.approx(1)


def test_share_right_equals_loops():
    g = torch.Generator().manual_seed(0)
    table, counts, kind = torch.randint(40, (40, 6), generator=g), torch.randint(7, (40,), generator=g), torch.arange(40) % 3
    table = table.masked_fill(torch.arange(6) >= counts[:, None], -1)
    shares = [sum(bool(kind[j] == kind[i]) for j in table[i, :n]) / int(n) for i, n in enumerate(counts) if n]
    assert share_right(table, counts, kind) == pytest.approx(sum(shares) / len(shares))
    assert share_right(torch.full((3, 2), -1), torch.zeros(3).long(), kind[:3]) == 0


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
    (lambda: knn_scores(X, LABELS, X, temperature=0), "temperature must be > 0 and finite, got 0"),
    (lambda: knn_scores(X, LABELS, X[:, :2]), r"embeddings must have shape \[N, 4\], got \[10, 2\]"),
    (lambda: knn_scores(X, LABELS - 1, X), "train_labels must be >= 0, got -1"),
    (lambda: knn_scores(X, LABELS.float(), X), "train_labels must be integers, got torch.float32"),
    (lambda: knn_scores(X, LABELS[:3], X), r"train_labels must have shape \[10\], got \[3\]"),
    (lambda: knn_scores(X, LABELS, X[:4], exclude_self=True), r"exclude_self needs embeddings of shape \[10, 4\]"),
    (lambda: knn_scores(X, LABELS, X * math.inf), "embeddings must be finite"),
    (lambda: knn_scores(X, LABELS, X, num_classes=1), "num_classes must be > "),
    (lambda: knn_scores(X[:1], LABELS[:1], X[:1], exclude_self=True), "train_embeddings needs at least 2 rows"),
    (lambda: linear_probe(X, LABELS, X[:, :2], LABELS), "test_x must be 4 wide"),
    (lambda: linear_probe(X, LABELS * 0, X, LABELS), "train_y must hold at least 2 classes"),
    (lambda: embed_all(number, numbered(3).images[:0]), "data must hold at least 1 image"),
    (lambda: alignment(X, X[:5]), r"z1 must have the shape of z0 \[10, 4\], got \[5, 4\]"),
    (lambda: uniformity(X[:1]), "z needs at least 2 rows, got 1"),
    (lambda: uniformity(X * math.nan), "z must be finite"),
    (lambda: class_margin(X, LABELS * 0), "labels must hold at least 2 classes, got 1"),
    (lambda: class_margin(X, LABELS[:4]), r"labels must have shape \[10\], got \[4\]"),
    (lambda: neighbour_purity(X, LABELS, k=0), "k must be >= 1, got 0"),
]


@pytest.mark.parametrize("call,message", BAD, ids=[m[:40] for _, m in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_every_public_function_says_its_types():
    import inspect
    for name in evaluation.__all__:
        function = getattr(evaluation, name)
        if inspect.isclass(function) or name.startswith("draw"): continue
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name
