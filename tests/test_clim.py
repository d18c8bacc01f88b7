"Section 10 of the specification of CLIM, every value, and what the notebook does not show."
import copy
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import tensor
from torch.testing import assert_close

from arcbook.contrast import info_nce, normalize
from arcbook.datasets import ImageSet
from arcbook.labs.clim import LAB
from arcbook.papers import clim
from arcbook.papers.clim import (CLIM, CLIMLoss, Readings, draw_positives, mixed_info_nce, mix_views, nearest_neighbours, select_centerwise,
                                 select_positives)
from arcbook.selection import kmeans, whiten
from arcbook.training import Batch, Budget, fit, learning_rate
from arcbook.views import Augment, box_around, rescale_box

f64 = torch.float64
gen = lambda seed=0: torch.Generator().manual_seed(seed)
close = lambda a, b, tol=1e-7: math.isclose(float(a), b, rel_tol=0, abs_tol=tol)


def draw(*shape, seed=0, dtype=f64):
    return torch.randn(*shape, generator=gen(seed), dtype=f64).to(dtype)


# independent references: one number at a time --------------------------------------------------------------------------

def dot(a, b): return sum(x * y for x, y in zip(a, b))

def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def loop_nce(q, key, negatives, tau):
    "Equation 1 for one query, and its gradient with respect to the query, through the normalisation."
    length, u = math.sqrt(dot(q, q)), unit(q)
    keys = [unit(key)] + [unit(n) for n in negatives]
    weights = [math.exp(dot(u, k) / tau) for k in keys]
    p = [w / sum(weights) for w in weights]
    free = [sum(pc * k[d] for pc, k in zip(p, keys)) / tau - keys[0][d] / tau for d in range(len(u))]
    along = dot(free, u)
    return -math.log(p[0]), [(f - along * x) / length for f, x in zip(free, u)]


def loop_mixed(q, a, b, n, lam, tau):
    "Equation 9: losses [B] and gradients [B, D]."
    losses, gradients = [], []
    for i, share in enumerate(lam):
        (one, g1), (two, g2) = (loop_nce(q[i].tolist(), k[i].tolist(), n.tolist(), tau) for k in (a, b))
        losses.append(share * one + (1 - share) * two)
        gradients.append([share * x + (1 - share) * y for x, y in zip(g1, g2)])
    return tensor(losses, dtype=f64), tensor(gradients, dtype=f64)


def batch(B=6, D=5, K=9, dtype=f64, seed=0):
    "Queries, keys of the anchors, keys of the neighbours, queue: of any length."
    return draw(B, D, seed=seed, dtype=dtype), draw(B, D, seed=seed + 1, dtype=dtype), draw(B, D, seed=seed + 2, dtype=dtype), draw(K, D, seed=seed + 3, dtype=dtype)


# 10.1: the loss ----------------------------------------------------------------------------------------------------------

TOY = dict(queries=tensor([[1.0, 0]], dtype=f64), anchor_keys=tensor([[0.8, 0.6]], dtype=f64), neighbour_keys=tensor([[0.6, -0.8]], dtype=f64),
           negatives=tensor([[0.0, 1], [-1, 0], [0, -1]], dtype=f64))
ANCHOR, NEIGHBOUR = math.log(1 + 2 * math.exp(-4) + math.exp(-9)), math.log(1 + 2 * math.exp(-3) + math.exp(-8))


@pytest.mark.parametrize("lam,value", [(1, 0.0360953), (0.75, 0.0508785), (0.5, 0.0656617), (0.25, 0.0804448), (0, 0.0952280)])
def test_10_1_toy(lam, value):
    assert close(ANCHOR, 0.0360953) and close(NEIGHBOUR, 0.0952280)
    for share in (lam, tensor([lam], dtype=f64), tensor(lam, dtype=f64), np.float32(lam), np.float64(lam)):
        assert close(mixed_info_nce(**TOY, lam=share), value)
    assert close(mixed_info_nce(**TOY, lam=lam), lam * ANCHOR + (1 - lam) * NEIGHBOUR, 1e-12)             # affine in lam
    joint = -(lam * 4 + (1 - lam) * 3) + math.log(math.exp(4) + math.exp(3) + 2 + math.exp(-5))           # one softmax for both: another loss
    wrong = {1: 0.3397769, 0.75: 0.5897769, 0.5: 0.8397769}
    if lam in wrong: assert close(joint, wrong[lam])
    assert mixed_info_nce(**TOY, lam=lam) < joint - 0.2


def test_10_1_at_lam_1_it_is_moco():
    assert close(info_nce(TOY["queries"], TOY["anchor_keys"], TOY["negatives"], 0.2), ANCHOR, 1e-12)
    q, a, b, n = batch()
    assert_close(mixed_info_nce(q, a, b, n, 1.0, 0.2, "none"), info_nce(q, a, n, 0.2, "none"))
    assert_close(mixed_info_nce(q, a, b, n, 0.0, 0.2, "none"), info_nce(q, b, n, 0.2, "none"))
    for lam in (0.0, 0.3, 1.0): assert_close(mixed_info_nce(q, a, a, n, lam), info_nce(q, a, n, 0.2))     # k_j = k_i: lam is void


@pytest.mark.parametrize("K,value", [(65536, 11.0903702), (4096, 8.3180103), (3, 1.3862944)])
def test_10_1_equal_similarities(K, value):
    q = tensor([[0.0, 1]], dtype=f64)
    keys = tensor([[1.0, 0]], dtype=f64)
    for lam in (0.0, 0.4, 1.0): assert close(mixed_info_nce(q, keys, -keys, keys.expand(K, 2), lam), value)


def test_10_1_gradient():
    q, keys = TOY["queries"], lambda name: torch.cat([TOY[name], TOY["negatives"]])
    def free(name):
        p = (q @ keys(name).T / 0.2).softmax(1)
        return (p @ keys(name) - TOY[name]) / 0.2
    first, second = free("anchor_keys"), free("neighbour_keys")
    assert_close(first, tensor([[-0.1424019, -0.1063550]], dtype=f64), rtol=0, atol=1e-7)
    assert_close(second, tensor([[-0.2740281, 0.3633375]], dtype=f64), rtol=0, atol=1e-7)
    for lam in (1.0, 0.75, 0.0):
        x = q.clone().requires_grad_()
        got, = torch.autograd.grad(mixed_info_nce(**{**TOY, "queries": x}, lam=lam), x)
        whole = lam * first + (1 - lam) * second
        assert_close(got, whole - (whole * q).sum() * q, rtol=0, atol=1e-12)            # q is normalised inside: the tangent is left


@pytest.mark.parametrize("tau,lam,seed", [(0.2, 0.75, 0), (0.07, 0.0, 1), (0.5, 1.0, 2), (0.1, "each", 3), (1.0, "each", 4), (0.2, "some", 5)])
def test_nested_loops(tau, lam, seed):
    q, a, b, n = batch(seed=10 * seed)
    shares = {"each": torch.rand(6, generator=gen(seed), dtype=f64), "some": tensor([1.0, 0.3, 1, 0.3, 0.3, 0], dtype=f64)}.get(lam, lam)
    expected, gradient = loop_mixed(q, a, b, n, shares.tolist() if isinstance(shares, torch.Tensor) else [shares] * 6, tau)
    q.requires_grad_()
    got = mixed_info_nce(q, a, b, n, shares, tau, "none")
    assert got.shape == (6,)
    assert_close(got, expected, rtol=0, atol=1e-5), assert_close(got, expected, rtol=0, atol=1e-10)
    assert_close(torch.autograd.grad(got.sum(), q)[0], gradient, rtol=0, atol=1e-9)
    assert_close(mixed_info_nce(q, a, b, n, shares, tau), expected.mean())
    assert_close(mixed_info_nce(q, a, b, n, shares, tau, "sum"), expected.sum())
    assert torch.autograd.gradcheck(lambda x: mixed_info_nce(x, a, b, n, shares, tau), q)                 # finite differences
    longer = (3 * q.detach()).requires_grad_()
    assert_close(mixed_info_nce(longer, a / 2, 7 * b, n / 3, shares, tau, "none"), got.detach())          # lengths do not matter
    assert_close(torch.autograd.grad(mixed_info_nce(longer, a, b, n, shares, tau, "sum"), longer)[0], gradient / 3, rtol=0, atol=1e-9)


def test_nothing_flows_into_keys_or_queue():
    q, a, b, n = (x.requires_grad_() for x in batch())
    lam = torch.full((6,), 0.4, dtype=f64)
    mixed_info_nce(q, a, b, n, lam).backward()
    assert q.grad.any() and all(x.grad is None or not x.grad.any() for x in (a, b, n))
    q.grad = None
    q2, a2, b2, n2 = (x.requires_grad_() for x in batch(seed=7))
    CLIMLoss()([q, q2], [a, a2], [b, b2], [n, n2], [0.3, lam]).loss.backward()
    assert q.grad.any() and q2.grad.any() and all(x.grad is None or not x.grad.any() for x in (a, b, n, a2, b2, n2))


def test_two_softmaxes_not_one():
    "A neighbour's key is in no denominator but its own."
    q, a, b, n = batch()
    far = mixed_info_nce(q, a, b, n, 1.0, reduction="none")
    assert torch.equal(mixed_info_nce(q, a, q, n, 1.0, reduction="none"), far)
    each = mixed_info_nce(q, a, b, n, 0.4, reduction="none")
    one = mixed_info_nce(q[2:3], a[2:3], b[2:3], n, 0.4)
    assert_close(one, each[2])                                                          # nor in that of other anchors


@pytest.mark.parametrize("dtype", [torch.float32, f64, torch.bfloat16, torch.float16])
def test_empty_queue_batch_of_one_and_of_none(dtype):
    q, a, b, n = batch(dtype=dtype)
    q.requires_grad_()
    for lam in (1.0, 0.4, torch.full((6,), 0.4)):
        loss = mixed_info_nce(q, a, b, n[:0], lam)
        assert loss == 0 and not torch.autograd.grad(loss, q)[0].any()                  # nothing to be told from
        terms = CLIMLoss()(q, a, b, n[:0], lam)
        assert terms.loss == 0 and terms.loss.requires_grad
    whole = mixed_info_nce(q, a, b, n, 0.4, reduction="none")
    assert_close(mixed_info_nce(q[:1], a[:1], b[:1], n, 0.4), whole[0])
    assert_close(mixed_info_nce(q[:1], a[:1], b[:1], n, tensor([0.4])), whole[0])
    none = mixed_info_nce(q[:0], a[:0], b[:0], n, 0.4)
    assert none == 0 and none.requires_grad
    zero = (q.detach() * 0).requires_grad_()
    loss = mixed_info_nce(zero, a, b, n, 0.4)
    assert loss.isfinite() and torch.autograd.grad(loss, zero)[0].isfinite().all()      # no direction, no NaN


def test_the_kind_of_lam_does_not_change_the_kind_of_loss():
    q, a, b, n = batch(dtype=torch.float32)
    for lam in (torch.full((6,), 0.4, dtype=f64), torch.full((6,), 0.4).half(), tensor(0.4, dtype=f64), 0.4, np.float64(0.4)):
        assert mixed_info_nce(q, a, b, n, lam, reduction="none").dtype == torch.float32
        terms = CLIMLoss()([q, q], [a, a], [b, b], [n, n], [lam, lam])
        assert {t.dtype for t in terms} == {torch.float32}
        assert_close(terms.loss, mixed_info_nce(q, a, b, n, 0.4), rtol=1e-3, atol=1e-3)
    ones = torch.ones(6, dtype=torch.long)
    assert_close(mixed_info_nce(q, a, b, n, ones), info_nce(q, a, n, 0.2))


def test_small_temperatures_stay_finite():
    q, a, b, n = batch(dtype=torch.float32)
    for tau in (1e-2, 1e-3):
        exact = mixed_info_nce(q.double(), a.double(), b.double(), n.double(), 0.4, tau)
        assert_close(mixed_info_nce(q, a, b, n, 0.4, tau).double(), exact, rtol=1e-4, atol=1e-4)


# 10.2: several resolutions --------------------------------------------------------------------------------------------

def loop_all_pairs(queries, anchors, neighbours, negatives, lam, tau, pairs="all_pairs"):
    "Equation 10: negatives of the key's resolution, lam of the query's."
    total, gradients, terms = 0, [torch.zeros_like(q) for q in queries], 0
    for s, q in enumerate(queries):
        for t in range(len(queries)):
            if pairs == "same_res" and s != t: continue
            shares = lam[s].tolist() if isinstance(lam[s], torch.Tensor) else [lam[s]] * len(q)
            losses, gradient = loop_mixed(q, anchors[t], neighbours[t], negatives[t], shares, tau)
            total, terms = total + losses.mean(), terms + 1
            gradients[s] += gradient / len(q)
    return total / terms, [g / terms for g in gradients]


@pytest.mark.parametrize("pairs", ["all_pairs", "same_res"])
@pytest.mark.parametrize("R", [1, 2, 3])
def test_10_2_equation_10_in_loops(R, pairs):
    parts = [batch(B=4, K=5 + r, seed=10 * r) for r in range(R)]                        # queues of different lengths as well
    q, a, b, n = (list(x) for x in zip(*parts))
    lam = [0.75, torch.rand(4, generator=gen(), dtype=f64), 1.0][:R]
    expected, gradients = loop_all_pairs(q, a, b, n, lam, 0.2, pairs)
    for x in q: x.requires_grad_()
    terms = CLIMLoss(0.2, pairs)(q, a, b, n, lam)
    assert_close(terms.loss, expected, rtol=0, atol=1e-10)
    for got, right in zip(torch.autograd.grad(terms.loss, q), gradients): assert_close(got, right, rtol=0, atol=1e-9)


def test_10_2_one_resolution_and_identical_ones():
    q, a, b, n = batch()
    lam = torch.rand(6, generator=gen(), dtype=f64)
    nine = mixed_info_nce(q, a, b, n, lam)
    assert_close(CLIMLoss()(q, a, b, n, lam).loss, nine)
    for R in (1, 2, 3):
        for pairs in ("all_pairs", "same_res"):
            assert_close(CLIMLoss(pairs=pairs)([q] * R, [a] * R, [b] * R, [n] * R, [lam] * R).loss, nine)
    assert_close(CLIMLoss(temperature=0.5)(q, a, b, n, 0.3).loss, mixed_info_nce(q, a, b, n, 0.3, 0.5))


def test_10_2_negatives_of_the_keys_resolution():
    e, f = tensor([[1.0, 0]], dtype=f64), tensor([[0.0, 1]], dtype=f64)
    terms = CLIMLoss(temperature=1.0)([e, f], [e, e], [f, f], [f, -e], [1.0, 1.0])
    parts = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.e)]
    for got, printed in zip(parts, (0.3132617, 0.1269280, 0.6931472, 1.3132617)): assert close(got, printed)
    assert close(terms.loss, 0.6116496) and close(terms.loss, sum(parts) / 4, 1e-12)
    assert not close(terms.loss, 0.5032044, 0.1)                                        # the queues of the query's resolution
    swapped = CLIMLoss(temperature=1.0)([f, e], [e, e], [f, f], [f, -e], [1.0, 1.0])
    assert close(swapped.loss, sum(parts) / 4, 1e-12)                                   # all pairs: the order of the queries is void


def test_terms_of_the_loss():
    q, a, b, n = batch()
    lam = tensor([1.0, 0.3, 1, 0.6, 0, 1], dtype=f64)
    terms = CLIMLoss()(q, a, b, n, lam)
    assert terms._fields[:4] == ("loss", "anchor", "neighbour", "mixed")
    assert all(t.ndim == 0 for t in terms)
    assert_close(terms.loss, mixed_info_nce(q, a, b, n, lam))
    plain = CLIMLoss()(q, a, None, n, 1.0)                                              # no neighbours: MoCo v2
    assert_close(plain.loss, info_nce(q, a, n, 0.2)), assert_close(plain.anchor, plain.loss)
    assert_close(CLIMLoss()([q, -q], [a, b], None, [n, n], [1.0, 1.0]).loss, CLIMLoss()([q, -q], [a, b], [a, a], [n, n], [1.0, 1.0]).loss)


Q, A, B_, N_ = batch()

@pytest.mark.parametrize("call,message", [
    (lambda: mixed_info_nce(Q[0], A, B_, N_, 0.5), "queries must have shape"),
    (lambda: mixed_info_nce(Q.long(), A, B_, N_, 0.5), "queries must be floating"),
    (lambda: mixed_info_nce(Q.tolist(), A, B_, N_, 0.5), "queries must be a tensor"),
    (lambda: mixed_info_nce(Q / 0, A, B_, N_, 0.5), "queries must be finite"),
    (lambda: mixed_info_nce(Q, A[:3], B_, N_, 0.5), "anchor_keys must"),
    (lambda: mixed_info_nce(Q, A / 0, B_, N_, 0.5), "anchor_keys must be finite"),
    (lambda: mixed_info_nce(Q, A[:, :2], B_, N_, 0.5), "anchor_keys must"),
    (lambda: mixed_info_nce(Q, A, B_[:3], N_, 0.5), "neighbour_keys must"),
    (lambda: mixed_info_nce(Q, A, B_.long(), N_, 0.5), "neighbour_keys must"),
    (lambda: mixed_info_nce(Q, A, B_, N_[:, :2], 0.5), "negatives must"),
    (lambda: mixed_info_nce(Q, A, B_, N_[0], 0.5), "negatives must"),
    (lambda: mixed_info_nce(Q, A, B_, N_, 1.5), r"lam must be in \[0, 1\]"),
    (lambda: mixed_info_nce(Q, A, B_, N_, -1e-3), r"lam must be in \[0, 1\]"),
    (lambda: mixed_info_nce(Q, A, B_, N_, math.nan), "lam must be"),
    (lambda: mixed_info_nce(Q, A, B_, N_, torch.full((6,), 1.1)), r"lam must be in \[0, 1\]"),
    (lambda: mixed_info_nce(Q, A, B_, N_, torch.full((6,), math.nan)), "lam must be"),
    (lambda: mixed_info_nce(Q, A, B_, N_, torch.ones(3)), "lam must be"),
    (lambda: mixed_info_nce(Q, A, B_, N_, torch.ones(6, 1)), "lam must be"),
    (lambda: mixed_info_nce(Q, A, B_, N_, [0.5] * 6), "lam must be"),
    (lambda: mixed_info_nce(Q, A, B_, N_, None), "lam must be"),
    (lambda: mixed_info_nce(Q, A, B_, N_, 0.5, 0.0), "temperature must be > 0"),
    (lambda: mixed_info_nce(Q, A, B_, N_, 0.5, reduction="avg"), "reduction must be"),
    (lambda: CLIMLoss(temperature=-1.0), "temperature must be > 0"),
    (lambda: CLIMLoss(pairs="all"), "pairs must be one of all_pairs, same_res"),
    (lambda: CLIMLoss()([Q, Q], [A], [B_, B_], [N_, N_], [1.0, 1.0]), "anchor_keys must"),
    (lambda: CLIMLoss()([Q, Q], [A, A], [B_], [N_, N_], [1.0, 1.0]), "neighbour_keys must"),
    (lambda: CLIMLoss()([Q, Q], [A, A], [B_, B_], [N_], [1.0, 1.0]), "negatives must"),
    (lambda: CLIMLoss()([Q, Q], [A, A], [B_, B_], [N_, N_], [1.0] * 3), "lam must"),
    (lambda: CLIMLoss()([Q, Q], [A, A], [B_, B_], [N_, N_], [1.0, 2.0]), r"lam must be in \[0, 1\]"),
    (lambda: CLIMLoss()(Q, A, B_, [N_, N_], 1.0), "negatives must"),
    (lambda: CLIMLoss()([], [], [], [], []), "queries must"),
    (lambda: CLIMLoss()([Q, Q[:3]], [A, A], [B_, B_], [N_, N_], [1.0, 1.0]), "must have shape"),
])
def test_bad_losses_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


# 10.3: the selection -----------------------------------------------------------------------------------------------------

NAMES = "abcdefghijpr"
POINTS = tensor([[0, .5], [1, 0], [2, 0], [3, 0], [4.05, 0], [4.9, 0], [5.2, 0], [6, 0], [8, 0], [10, 1], [4.9, 5], [5.1, 3]], dtype=f64)
CENTRES = tensor([[0.0, 0], [10, 0]], dtype=f64)
CLUSTER = tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
TABLE = {   # x: d^2 to the centre, N_2, Omega at k = 2, N_4, cluster only at k = 4, Omega at k = 4
    "a": (0.25, "bc", "", "bcde", "bcde", ""), "b": (1, "ca", "a", "cade", "cade", "a"), "c": (4, "bd", "b", "bdea", "bdea", "ab"),
    "d": (9, "ce", "c", "cefb", "cefb", "bc"), "e": (16.4025, "fd", "d", "fdgh", "fd", "d"), "f": (24.01, "ge", "e", "gehd", "ed", "de"),
    "g": (23.04, "fh", "h", "fhed", "h", "h"), "h": (16, "gf", "", "gfei", "gi", "i"), "i": (4, "hj", "j", "hjgf", "hjg", "j"),
    "j": (1, "ih", "", "ihgf", "ihg", ""), "p": (49.01, "rf", "f", "rfge", "fe", "ef"), "r": (33.01, "pg", "g", "pgfh", "gh", "gh")}


def sets(result):
    "A table of positives as sets of numbers; its form is checked on the way."
    table, counts = result
    assert table.dtype == torch.int64 and table.ndim == 2 and counts.shape == (len(table),)
    rows = []
    for row, n in zip(table.tolist(), counts.tolist()):
        assert all(0 <= j < len(table) for j in row[:n]) and set(row[n:]) <= {-1}       # packed to the left, padded with -1
        assert len(set(row[:n])) == n                                                   # nobody twice
        rows.append(set(row[:n]))
    return rows


def named(rows): return ["".join(sorted(NAMES[j] for j in row)) for row in rows]
def column(i): return ["".join(sorted(row[i])) for row in TABLE.values()]


@pytest.mark.parametrize("dtype", [f64, torch.float32])
def test_10_3_the_twelve_points(dtype):
    points, centres = POINTS.to(dtype), CENTRES.to(dtype)
    assert_close((POINTS - CENTRES[CLUSTER]).square().sum(1), tensor([row[0] for row in TABLE.values()], dtype=f64))
    assert torch.equal((points[:, None] - centres).norm(dim=2).argmin(1), CLUSTER)
    apart = (POINTS[:, None] - POINTS).norm(dim=2)
    for k, order in ((2, 1), (4, 3)):
        near = nearest_neighbours(points, k)
        expected = tensor([[NAMES.index(j) for j in row[order]] for row in TABLE.values()])
        assert torch.equal(apart.gather(1, near), apart.gather(1, expected))            # nearest first; b and d are equally far from c: either may lead
        assert named(sets(select_positives("knn", points, CLUSTER, centres, k))) == column(order)
        table = select_centerwise(points, CLUSTER, centres, k)
        assert table[0].shape == (12, k)
        assert named(sets(table)) == column(order + (1 if k == 2 else 2))
        assert all(torch.equal(x, y) for x, y in zip(select_positives("center_wise", points, CLUSTER, centres, k), table))
        assert named(sets(select_centerwise(points, CLUSTER, centres, k, neighbours=near))) == column(order + (1 if k == 2 else 2))
    assert named(sets(select_positives("knn_cluster", points, CLUSTER, centres, 4))) == column(4)


def test_10_3_discriminating_rows():
    at = lambda **options: dict(zip(NAMES, named(sets(select_centerwise(POINTS, CLUSTER, CENTRES, 2, **options)))))
    assert at()["p"] == "f" and at(same_cluster=False)["p"] == "fr"                     # r: another cluster, yet nearer to p's centre
    assert at()["f"] == "e" and at(same_cluster=False)["f"] == "e"                      # g is nearer to its own centre, not to f's
    assert at()["h"] == "" and at(tie="lt") == at()                                     # no exact ties here
    own = [j for j in (6, 4) if (POINTS[j] - CENTRES[CLUSTER[j]]).norm() <= (POINTS[5] - CENTRES[0]).norm()]
    assert own == [6, 4]                                                                # the wrong rule would give g, e


# brute force ---------------------------------------------------------------------------------------------------------------

def brute(points, cluster, centres, k, rule="center_wise", tie="le", same_cluster=True, scope="global"):
    "For each anchor: candidates by distance as (squared distance, number), the k-th distance, and who passes the rule."
    x, c = points.double().tolist(), centres.double().tolist()
    apart = lambda a, b: sum((p - q) ** 2 for p, q in zip(a, b))
    found = []
    for i in range(len(x)):
        pool = [j for j in range(len(x)) if j != i and (scope == "global" or cluster[j] == cluster[i])]
        near = sorted((apart(x[i], x[j]), j) for j in pool)
        mine, home = apart(x[i], c[int(cluster[i])]), c[int(cluster[i])]
        def passes(j):
            if rule == "knn": return True
            if cluster[j] != cluster[i] and (rule == "knn_cluster" or same_cluster): return False
            if rule == "knn_cluster": return True
            return apart(x[j], home) <= mine if tie == "le" else apart(x[j], home) < mine
        found.append((near, near[:k][-1][0] if near[:k] else -1.0, {j for _, j in near if passes(j)}))
    return found


def agrees(rows, found, k):
    "Equal to brute force, whichever of several equally far k-th neighbours was taken."
    for row, (near, edge, passing) in zip(rows, found):
        inside, rim = {j for d, j in near if d < edge}, {j for d, j in near if d == edge}
        slots = min(k, len(near)) - len(inside)
        assert row & inside == inside & passing
        assert row <= (inside | rim) & passing
        on_rim = len(row & rim)
        assert max(0, slots - len(rim - passing)) <= on_rim <= min(slots, len(rim & passing))
    return True


@st.composite
def clouds(draw):
    "Few points on a small grid: duplicates, ties, empty clusters, lone points; and one to four centres."
    dim = draw(st.integers(1, 3))
    row = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    points = draw(st.lists(row, min_size=1, max_size=11))
    centres = tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=f64) / 2
    points = tensor(points, dtype=f64)
    assigned = (points[:, None] - centres).square().sum(2).argmin(1)
    if draw(st.booleans()): assigned = tensor([draw(st.integers(0, len(centres) - 1)) for _ in points])
    return points, assigned, centres, draw(st.integers(1, 13))


@settings(max_examples=60, deadline=None)
@given(clouds(), st.sampled_from(["le", "lt"]), st.booleans(), st.sampled_from(["global", "cluster"]), st.sampled_from([f64, torch.float32]))
def test_selection_equals_brute_force(cloud, tie, same, scope, dtype):
    points, cluster, centres, k = cloud
    result = select_centerwise(points.to(dtype), cluster, centres.to(dtype), k, tie=tie, same_cluster=same, knn_scope=scope)
    rows = sets(result)
    assert result[0].shape == (len(points), k)
    assert agrees(rows, brute(points, cluster, centres, k, tie=tie, same_cluster=same, scope=scope), k)
    assert all(i not in row for i, row in enumerate(rows))                              # never the anchor itself


@settings(max_examples=40, deadline=None)
@given(clouds(), st.sampled_from(["knn", "knn_cluster", "center_wise", "kmeans"]))
def test_every_rule_equals_brute_force(cloud, rule):
    points, cluster, centres, k = cloud
    rows = sets(select_positives(rule, points, cluster, centres, k))
    if rule != "kmeans": assert agrees(rows, brute(points, cluster, centres, k, rule), k)
    for i, row in enumerate(rows):
        assert i not in row
        if rule == "kmeans":
            mates = set((cluster == cluster[i]).nonzero().flatten().tolist()) - {i}
            assert row <= mates and bool(row) == bool(mates)


def scattered(n=70, dim=4, clusters=3, seed=0, dtype=f64):
    "Points without ties, their clusters and centres."
    points = draw(n, dim, seed=seed) + 2 * draw(clusters, dim, seed=seed + 1)[torch.arange(n) % clusters]
    assigned, centres = kmeans(points, clusters, generator=gen(seed))
    return points.to(dtype), assigned, centres.to(dtype)


RULES = ("knn", "knn_cluster", "center_wise")

def test_permutation_leaves_the_sets_unchanged():
    points, cluster, centres = scattered()
    for seed in range(3):
        order = torch.randperm(len(points), generator=gen(seed))
        for rule in RULES:
            before = sets(select_positives(rule, points, cluster, centres, 9))
            after = sets(select_positives(rule, points[order], cluster[order], centres, 9))
            for new, old in enumerate(order.tolist()):
                assert {int(order[j]) for j in after[new]} == before[old], rule
        names = torch.randperm(3, generator=gen(seed))                                  # the numbers of the clusters are names
        assert sets(select_centerwise(points, names[cluster], centres[names.argsort()], 9)) == sets(select_centerwise(points, cluster, centres, 9))
        start = points[:3]
        a, c = kmeans(points, 3, centres=start)
        b, d = kmeans(points[order], 3, centres=start)
        assert torch.equal(b, a[order])
        assert_close(d, c, rtol=1e-9, atol=1e-9)


def test_10_3_invariants():
    points, cluster, centres = scattered(n=60)
    sizes, home = cluster.bincount(minlength=3), (points - centres[cluster]).norm(dim=1)
    near = nearest_neighbours(points, 59)
    previous = [set()] * 60
    for k in (1, 2, 5, 20, 59, 80):
        rows = sets(select_centerwise(points, cluster, centres, k))
        for i, row in enumerate(rows):
            assert row <= set(near[i, :k].tolist()) and i not in row and len(row) <= min(k, int(sizes[cluster[i]]) - 1)     # i
            assert previous[i] <= row                                                                                     # ii
            assert all(home[j] < home[i] and cluster[j] == cluster[i] for j in row)                                       # iii: acyclic
        for c in range(3): assert not rows[min((i for i in range(60) if cluster[i] == c), key=lambda i: home[i])]           # iv
        previous = rows
    assert sum(map(len, rows)) == sum(int(s) * (int(s) - 1) // 2 for s in sizes)                                            # vi
    edges = {i: set(row) for i, row in enumerate(rows)}                                 # iii again: take away what nobody points to
    while edges:
        loose = [i for i in edges if not edges[i] & set(edges)]
        assert loose
        for i in loose: edges.pop(i)


def test_10_3_one_cluster_and_movements():
    points, cluster, centres = scattered()
    lone, at = torch.zeros(70, dtype=torch.long), points.mean(0, keepdim=True)
    assert sets(select_centerwise(points, lone, at, 7)) == sets(select_centerwise(points, lone, at, 7, same_cluster=False))     # v
    assert sets(select_centerwise(points, lone, at, 7)) == sets(select_centerwise(points, lone, at, 7, knn_scope="cluster"))
    expected = sets(select_centerwise(points, cluster, centres, 9))                                                             # viii
    turn, _ = torch.linalg.qr(draw(4, 4, seed=5))
    for move in (lambda x: x @ turn, lambda x: x + 1000, lambda x: 1e-3 * x, lambda x: 1e4 * x, lambda x: 50 * (x @ turn) - 3):
        assert sets(select_centerwise(move(points), cluster, move(centres), 9)) == expected


def test_10_3_expected_size():
    "vii: exchangeable distances, n neighbours in the cluster: n/2 selected and 1/(n+1) empty, roughly."
    points = normalize(draw(400, 200, seed=3))                                          # far from the centre, neighbours are chance
    cluster, centre = torch.zeros(400, dtype=torch.long), normalize(draw(1, 200, seed=4))
    counts = select_centerwise(points, cluster, centre, 10)[1].float()
    assert abs(counts.mean() - 5) < 1.2 and abs((counts == 0).float().mean() - 1 / 11) < 0.08


def test_ties_and_duplicates():
    twins = tensor([[1.0, 0], [1, 0], [0, 1]], dtype=f64)
    zero, centre = torch.zeros(3, dtype=torch.long), tensor([[0.0, 0]], dtype=f64)
    assert nearest_neighbours(twins, 1)[:2].tolist() == [[1], [0]]                      # 10.6
    assert sets(select_centerwise(twins, zero, centre, 1))[:2] == [{1}, {0}]            # iii: exact ties make a cycle of two
    assert sets(select_centerwise(twins, zero, centre, 1, tie="lt")) == [set()] * 3
    same = torch.ones(6, 3, dtype=f64)
    rows = sets(select_centerwise(same, torch.zeros(6, dtype=torch.long), same[:1], 40))
    assert rows == [set(range(6)) - {i} for i in range(6)]
    for dtype in (torch.float32, f64):                                                  # unit rows: twins at distance 0, though q.q is not quite 1
        z = normalize(draw(30, 17, seed=1)).to(dtype)
        z = torch.cat([z, z, z])
        near = nearest_neighbours(z, 2)
        for i, row in enumerate(near.tolist()): assert {j % 30 for j in row} == {i % 30} and i not in row
        home = torch.zeros(90, dtype=torch.long)
        assert all(len(row) == 2 for row in sets(select_centerwise(z, home, draw(1, 17, seed=2, dtype=dtype), 2)))      # equal rows are equally far


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_do_not_change_the_selection(block, monkeypatch):
    points, cluster, centres = scattered()
    near = nearest_neighbours(points, 9, block=block)
    assert torch.equal(near, nearest_neighbours(points, 9))
    assert sets(select_centerwise(points, cluster, centres, 9, neighbours=near)) == sets(select_centerwise(points, cluster, centres, 9))


def test_known_neighbours_may_be_more_or_fewer_than_asked_for():
    points, cluster, centres = scattered()
    near = nearest_neighbours(points, 12)
    for rule in RULES:
        right = sets(select_positives(rule, points, cluster, centres, 4))
        table, counts = select_positives(rule, points, cluster, centres, 4, neighbours=near)
        assert table.shape == (70, 4) and sets((table, counts)) == right                 # the first four are the four nearest
        table, counts = select_positives(rule, points, cluster, centres, 20, neighbours=near)
        assert table.shape == (70, 20) and sets((table, counts)) == sets(select_positives(rule, points, cluster, centres, 12))


def test_autocast_does_not_reach_the_search():
    points, cluster, centres = (x.float() if x.is_floating_point() else x for x in scattered())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_neighbours(points, 9), nearest_neighbours(points.double(), 9))
        found = kmeans(points, 3, centres=points[:3])
        assert sets(select_centerwise(points, cluster, centres, 9)) == sets(select_centerwise(points.double(), cluster, centres.double(), 9))
        assert_close(whiten(points, 3).abs(), whiten(points.double(), 3).abs().float(), rtol=1e-3, atol=1e-3)
    assert torch.equal(found[0], kmeans(points.double(), 3, centres=points[:3].double())[0])


def test_drawing_is_uniform_and_never_empty_handed():
    table, counts = tensor([[4, 2, 7, -1], [-1] * 4, [5, -1, -1, -1], [0, 1, 3, 6]]), tensor([3, 0, 1, 4])
    anchors = tensor([0, 1, 2, 3]).repeat(6000)
    got = draw_positives(table, counts, anchors, gen())
    assert got.dtype == torch.int64 and got.shape == anchors.shape
    assert (got[1::4] == -1).all() and (got[2::4] == 5).all()
    for row, n in ((0, 3), (3, 4)):
        drawn = got[row::4].bincount(minlength=8)
        assert set(drawn.nonzero().flatten().tolist()) == set(table[row, :n].tolist())
        assert ((drawn[table[row, :n]] / 6000 - 1 / n).abs() < 0.02).all()
    assert torch.equal(got, draw_positives(table, counts, anchors, gen())) and not torch.equal(got, draw_positives(table, counts, anchors, gen(1)))
    assert draw_positives(table, counts, anchors[:0], gen()).shape == (0,)


def test_cluster_rule_reaches_the_whole_cluster():
    "The k-means baseline draws from the whole cluster, however far, and without regard to the order of the file list."
    points, cluster, centres = scattered(n=90)
    seen = [set() for _ in range(90)]
    for seed in range(60):
        torch.manual_seed(seed)
        try: table, counts = select_positives("kmeans", points, cluster, centres, 8, generator=gen(seed))
        except TypeError: table, counts = select_positives("kmeans", points, cluster, centres, 8)
        for i, row in enumerate(sets((table, counts))): seen[i] |= row
    for i in range(90): assert seen[i] == set((cluster == cluster[i]).nonzero().flatten().tolist()) - {i}


P3, C3, Z3 = POINTS, CLUSTER, CENTRES

@pytest.mark.parametrize("call,message", [
    (lambda: select_centerwise(P3[0], C3, Z3), "features must have shape"),
    (lambda: select_centerwise(P3.long(), C3, Z3), "features must be floating"),
    (lambda: select_centerwise(P3 / 0, C3, Z3), "features must be finite"),
    (lambda: select_centerwise(P3.tolist(), C3, Z3), "features must be a tensor"),
    (lambda: select_centerwise(P3, C3[:4], Z3), "assignments must have shape"),
    (lambda: select_centerwise(P3, C3.double(), Z3), "assignments must be integers"),
    (lambda: select_centerwise(P3, C3 + 1, Z3), r"assignments must lie in 0\.\.1"),
    (lambda: select_centerwise(P3, C3 - 1, Z3), r"assignments must lie in 0\.\.1"),
    (lambda: select_centerwise(P3, C3, Z3[:, :1]), "centres must have shape"),
    (lambda: select_centerwise(P3, C3, Z3 / 0), "centres must be finite"),
    (lambda: select_centerwise(P3, C3, Z3, 0), "num_neighbours must be"),
    (lambda: select_centerwise(P3, C3, Z3, 2.5), "num_neighbours must be"),
    (lambda: select_centerwise(P3, C3, Z3, True), "num_neighbours must be"),
    (lambda: select_centerwise(P3, C3, Z3, 2, tie="<="), "tie must be one of le, lt"),
    (lambda: select_centerwise(P3, C3, Z3, 2, knn_scope="local"), "knn_scope must be one of global, cluster"),
    (lambda: select_centerwise(P3, C3, Z3, 2, neighbours=C3), "neighbours must"),
    (lambda: select_centerwise(P3, C3, Z3, 2, neighbours=P3), "neighbours must"),
    (lambda: select_centerwise(P3, C3, Z3, 2, neighbours=C3.tolist()), "neighbours must"),
    (lambda: select_centerwise(P3, C3, Z3, 2, neighbours=C3[:5, None]), "neighbours must"),
    (lambda: select_centerwise(P3, C3, Z3, 2, neighbours=torch.full((12, 2), 12)), "neighbours must"),
    (lambda: select_positives("nearest", P3, C3, Z3), "rule must be one of knn, kmeans, knn_cluster, center_wise"),
    (lambda: select_positives("knn", P3, C3, Z3, 0), "num_neighbours must be"),
    (lambda: draw_positives(tensor([[1], [0]]), tensor([1, 1]), tensor([2]), gen()), "anchors must lie in"),
    (lambda: draw_positives(tensor([[1], [0]]), tensor([1, 1]), tensor([-1]), gen()), "anchors must lie in"),
    (lambda: draw_positives(tensor([[1], [0]]), tensor([1, 1]), tensor([0.5]), gen()), "anchors must be integers"),
    (lambda: draw_positives(tensor([[1], [0]]), tensor([1]), tensor([0]), gen()), "counts must have shape"),
])
def test_bad_selections_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


# 10.7: k-means, whitening --------------------------------------------------------------------------------------------------

def test_10_7_four_points_and_the_tie_rule():
    points = tensor([[0.0, 0], [0, 1], [10, 0], [10, 1]], dtype=f64)
    assigned, centres = kmeans(points, 2, centres=points[[0, 2]])
    assert assigned.tolist() == [0, 0, 1, 1] and assigned.dtype == torch.int64
    assert_close(centres, tensor([[0, 0.5], [10, 0.5]], dtype=f64))
    assert sets(select_centerwise(points, assigned, centres, 1)) == [{1}, {0}, {3}, {2}]
    assert sets(select_centerwise(points, assigned, centres, 1, tie="lt")) == [set()] * 4


# 10.4: CutMix ------------------------------------------------------------------------------------------------------------

BOXES = [(0.75, (112, 112), (56, 168, 56, 168), 3 / 4), (0.75, (0, 0), (0, 56, 0, 56), 15 / 16), (0.75, (223, 223), (167, 224, 167, 224), 46927 / 50176),
         (0.75, (30, 200), (0, 86, 144, 224), 1353 / 1568), (0.5, (112, 112), (33, 191, 33, 191), 6303 / 12544),
         (0.9, (112, 112), (77, 147, 77, 147), 231 / 256), (0, (112, 112), (0, 224, 0, 224), 0), (0, (0, 0), (0, 112, 0, 112), 3 / 4)]


@pytest.mark.parametrize("lam,centre,box,value", BOXES)
def test_10_4_boxes(lam, centre, box, value):
    got = box_around(224, 224, lam, *centre)
    assert (got.top, got.bottom, got.left, got.right) == box and close(got.lam, value, 1e-12)
    y0, y1, x0, x1 = box
    there = rescale_box(got, (224, 224), (160, 160))
    assert all(abs(edge / 160 - of / 224) <= 0.5 / 160 for edge, of in zip(there[:4], got[:4]))
    for size, where in ((224, got), (160, there)):                                     # constant images: the mean is the share
        mixed, one = torch.ones(1, 1, size, size, dtype=f64), torch.zeros(1, 1, size, size, dtype=f64)
        mixed[..., where.top:where.bottom, where.left:where.right] = one[..., where.top:where.bottom, where.left:where.right]
        assert close(mixed.mean(), where.lam, 1e-12)


def test_10_4_no_box_at_lam_1_and_the_mean_share():
    for row in (0, 112, 223): assert box_around(224, 224, 1, row, 5).lam == 1
    for size in (224, 160, 32):                                                        # over all centres: 207/256, whatever the side
        widths = [b.bottom - b.top for b in (box_around(size, size, 0.75, row, size // 2) for row in range(size))]
        assert close(1 - (sum(widths) / size / size) ** 2, 207 / 256, 1e-12)
    inner = rescale_box(box_around(224, 224, 0.75, 112, 112), (224, 224), (160, 160))
    assert inner[:4] == (40, 40, 120, 120) and inner.lam == 0.75
    assert close(1 - (160 - 56) ** 2 / 160**2, 0.5775, 1e-12)                          # what the un-scaled box would give


@pytest.mark.parametrize("sizes", [(32, 24), (16, 12), (21, 13, 8), (9,)])
def test_10_4_true_lam_of_constant_images_at_each_resolution(sizes):
    lams = []
    for seed in range(40):
        wanted = (seed + 0.5) / 40
        anchors, others = ([torch.full((3, 3, s, s), value, dtype=f64) for s in sizes] for value in (1.0, 0.0))
        mixed, lam = mix_views(anchors, others, wanted, gen(seed))
        assert len(mixed) == len(lam) == len(sizes)
        holes = []
        for x, share, size in zip(mixed, lam, sizes):
            assert_close(x.mean((1, 2, 3)), torch.full((3,), float(share), dtype=f64), rtol=0, atol=1e-9)
            assert 0 <= share <= 1 and set(x.unique().tolist()) <= {0.0, 1.0}
            rows, columns = ((x[0, 0] == 0).any(d).nonzero().flatten().tolist() for d in (1, 0))
            holes.append([(edge[0] / size, (edge[-1] + 1) / size) for edge in (rows, columns) if edge])
        assert all((a == 1).all() for a in anchors) and not any(b.any() for b in others)       # not written over
        assert lam[0] >= wanted - 1e-12                                                # rounding and clipping only shrink the box
        lams.append([float(v) for v in lam])
        for hole, size in zip(holes[1:], sizes[1:]):                                   # one relative box
            if hole and holes[0]: assert all(abs(p - q) <= 0.51 / size for e, f in zip(hole, holes[0]) for p, q in zip(e, f))
    if len(sizes) > 1: assert any(len(set(row)) > 1 for row in lams)                   # its share is not the same everywhere


def test_one_tensor_means_one_resolution_and_rows_of_one_batch_may_meet():
    x = torch.rand(6, 3, 16, 16, generator=gen())
    kept, order = x.clone(), torch.randperm(6, generator=gen())
    mixed, lam = mix_views(x, x[order], 0.4, gen())
    assert torch.equal(x, kept) and mixed[0].shape == x.shape
    inside = (mixed[0] != x).any(1).any(0)
    assert torch.equal(mixed[0][:, :, inside], x[order][:, :, inside]) and torch.equal(mixed[0][:, :, ~inside], x[:, :, ~inside])
    assert torch.equal(mix_views(x, x[order], 0.4, gen())[0][0], mixed[0])
    same, share = mix_views([x], [x[order]], 1.0, gen())
    assert torch.equal(same[0], x) and share[0] == 1


def test_other_mixtures():
    a, b = ([torch.full((1, 1, s, s), value, dtype=f64) for s in (224, 160)] for value in (1.0, 0.0))
    mixed, lam = mix_views(a, b, 0.3, gen(), mixer="mixup")
    assert all(torch.equal(x, torch.full_like(x, 0.3)) for x in mixed) and [float(v) for v in lam] == [0.3, 0.3]
    apart = []
    for seed in range(20):                                                             # pitfall 6: the author's box, in pixels of 224 everywhere
        mixed, lam = mix_views(a, b, 0.75, gen(seed), box="pixels")
        assert lam[0] == lam[1] and close(mixed[0].mean(), lam[0], 1e-9)
        apart.append(abs(float(mixed[1].mean()) - lam[1]))
    assert max(apart) > 0.1


V = [torch.rand(2, 3, 8, 8)]

@pytest.mark.parametrize("call,message", [
    (lambda: mix_views(V, V, 1.5), r"lam must be in \[0, 1\]"), (lambda: mix_views(V, V, math.nan), "lam must be"),
    (lambda: mix_views(V, V + V, 0.5), "images_b must"), (lambda: mix_views(V, [torch.rand(3, 3, 8, 8)], 0.5), "images_b must"),
    (lambda: mix_views([], [], 0.5), "images_a must"), (lambda: mix_views([V[0][0]], [V[0][0]], 0.5), "images_a must|images must"),
    (lambda: mix_views(V, V, 0.5, mixer="paste"), "mixer must be one of"), (lambda: mix_views(V, V, 0.5, box="224"), "box must be one of"),
])
def test_bad_views_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


# the method --------------------------------------------------------------------------------------------------------------

TINY = Readings(backbone="resnet8", dim=8, resolutions=(16, 12), queue_size=24, num_neighbours=5, num_clusters=3, refresh=2, pca=8, momentum=0.9)
ONE = replace(TINY, resolutions=(16,))
MOCO = replace(ONE, rule="none")


def small_set(n=27, size=16, classes=3, seed=0):
    "Noisy versions of a few images: neighbours mean something, no two are equal."
    g = gen(seed)
    kinds = torch.randint(0, 256, (classes, 3, size, size), generator=g).float()
    labels = torch.arange(n) % classes
    images = (0.6 * kinds[labels] + 0.4 * torch.randint(0, 256, (n, 3, size, size), generator=g)).to(torch.uint8)
    return ImageSet(images, labels, [str(c) for c in range(classes)], "digits")


def fresh(readings=TINY, n=27, seed=0):
    torch.manual_seed(seed)
    return CLIM(3, "digits", readings, n)


def batch_of(data, indices): return Batch(*data.batch(indices), indices)


def drift(method, seed=3):
    "As if the student had moved since the last step."
    with torch.no_grad():
        for p in method.network.parameters(): p.add_(0.03 * torch.randn(p.shape, generator=gen(seed)))


class Watch:
    "What the encoders and the loss of a method are given, and what the key encoder weighs at that time."
    def __init__(self, method):
        self.clear()
        key, copy_ = method.teacher.module, lambda x: x.detach().clone()
        method.network.register_forward_pre_hook(lambda m, x: self.query.append(copy_(x[0])))
        def keyed(m, x, out):
            self.key.append(copy_(x[0])), self.keys.append(copy_(out)), self.weights.append([copy_(p) for p in m.parameters()])
        key.register_forward_hook(keyed)
        method.loss.register_forward_pre_hook(lambda m, x: self.loss.append(x))

    def clear(self): self.query, self.key, self.keys, self.weights, self.loss = [], [], [], [], []


def shares_of(lam, n, R):
    lam = [lam] * R if not isinstance(lam, (list, tuple)) else list(lam) * (R if len(lam) == 1 else 1)
    return [torch.as_tensor(x, dtype=f64).expand(n) for x in lam]


FORMS_OF_STEPS = {"both": replace(TINY, prob=1.0), "cutmix": replace(ONE, prob=1.0), "multi-res": replace(TINY, prob=1.0, mixer="none"),
                  "second positive": replace(ONE, prob=1.0, mixer="none"), "same res": replace(TINY, prob=1.0, pairs="same_res"),
                  "moco": MOCO, "moco multi-res": replace(TINY, rule="none"), "prob 0": replace(ONE, prob=0.0),
                  "own view": replace(ONE, rule="self", prob=1.0), "per image": replace(TINY, prob=1.0, per="image")}

@pytest.mark.parametrize("name", FORMS_OF_STEPS)
def test_a_step_equals_equation_10_written_out(name):
    "EMA before the keys, once; keys of anchors and neighbours; loss and gradients; only the anchors' keys enqueued."
    r, data = FORMS_OF_STEPS[name], small_set()
    method, R = fresh(r), len(r.resolutions)
    method.before_epoch(data, 0)
    method.train(), drift(method)
    query, key = copy.deepcopy(method.network), copy.deepcopy(method.teacher.module)
    with torch.no_grad():
        for old, new in zip(key.parameters(), query.parameters()): old.mul_(0.9).add_(0.1 * new)
    queues = [q["keys"].clone() for q in method.queues]
    watch, rows = Watch(method), method.epoch_indices(data.labels, 8, gen(1))[0]
    terms = method(batch_of(data, rows), 1, gen(2))
    got = torch.autograd.grad(terms.loss, list(method.network.parameters()), allow_unused=True)
    mixing = r.rule != "none" and r.prob > 0 and (rows[0] != rows[1]).any().item() or r.rule == "self"
    assert int(method.teacher.updates) == 1                                            # once, whatever the number of passes
    assert len(watch.query) == R and len(watch.key) == R * (2 if mixing else 1)
    for weights in watch.weights:
        for a, b in zip(weights, key.parameters()): assert_close(a, b.detach())        # one and the same key encoder for all of them
    query.train(), key.train()
    with torch.no_grad(): keys = [normalize(key(x)) for x in watch.key]
    k, j, n = keys[:R], keys[R:] or keys[:R], 8
    lam = shares_of(watch.loss[0][4] if mixing else 1.0, n, R)
    if r.rule in clim.RULES and mixing:
        alone = rows[0] == rows[1]
        for share in lam: assert (share[alone] == 1).all()                             # no positive: un-mixed
    total, pairs = 0, [(s, t) for s in range(R) for t in range(R) if r.pairs == "all_pairs" or s == t]
    q = [normalize(query(x)) for x in watch.query]
    for s, t in pairs:
        for i in range(n):
            rest = torch.exp(queues[t] @ q[s][i] / r.temperature).sum()
            each = [-torch.log((e := torch.exp(q[s][i] @ v[t][i] / r.temperature)) / (e + rest)) for v in (k, j)]
            total = total + (lam[s][i] * each[0] + (1 - lam[s][i]) * each[1]) / n
    expected = total / len(pairs)
    assert_close(terms.loss.double(), expected.double(), rtol=1e-5, atol=1e-5)
    right = torch.autograd.grad(expected, list(query.parameters()), allow_unused=True)
    for a, b in zip(got, right): assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in method.teacher.parameters()) and not any(p.requires_grad for p in method.teacher.parameters())
    for q_, before in zip(method.queues, queues): assert torch.equal(q_["keys"], before)     # the loss of a step sees the queue before
    pointers = [int(q_.pointer) for q_ in method.queues]
    method.after_step(1)
    for queue, before, anchors, at in zip(method.queues, queues, k, pointers):
        slots = (at + torch.arange(8)) % 24
        assert_close(queue.stored_keys[slots], anchors)
        others = torch.ones(24, dtype=torch.bool).index_fill_(0, slots, False)
        assert torch.equal(queue.stored_keys[others], before[others])                  # neighbours' keys are nowhere
        assert_close(queue["keys"].norm(dim=1), torch.ones(24))
    assert int(method.teacher.updates) == 1


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("sizes", [(16,), (16, 12), (16, 11, 7)])
def test_lam_of_the_method_is_the_area_of_the_box(sizes, per):
    "White anchors, black neighbours, no augmentation: the mean of each mixture is the share that its loss is given."
    data = small_set(12)
    data.images[::2], data.images[1::2] = 255, 0
    method = fresh(replace(TINY, resolutions=sizes, prob=1.0, per=per), 12)
    method.views = [lambda x, g, size=s: F.interpolate(x.float() / 255, size=size) for s in sizes]
    watch, rows, seen = Watch(method.eval()), torch.stack([torch.arange(0, 12, 2), torch.arange(1, 12, 2)]), []
    rows[1, 3] = rows[0, 3]                                                            # an anchor without positives
    for step in range(1, 9):
        watch.clear()
        with torch.no_grad(): terms = method(batch_of(data, rows), step, gen(step))
        lam = shares_of(watch.loss[0][4], 6, len(sizes))
        for x, share in zip(watch.query, lam):
            assert_close(x.double().mean((1, 2, 3)), share, rtol=0, atol=1e-5)
            assert share[3] == 1
        assert close(terms.mixed, float(torch.stack([1 - s for s in lam]).mean()), 1e-6)
        seen.append([round(float(v), 6) for v in lam[0]])
    assert len({row[0] for row in seen}) > 4                                           # drawn anew at every step
    assert all((len(set(row) - {1.0}) <= 1) == (per == "batch") for row in seen)


def test_crops_of_every_view_and_resolution_are_independent():
    "Of an oblique ramp, the mean tells where a crop was taken."
    data, method = small_set(24, 32), fresh(replace(TINY, rule="none"), 24).eval()
    data.images[:] = (torch.arange(32)[:, None] * 5 + torch.arange(32) * 2).to(torch.uint8)
    method.views = [Augment(crop=("resized", (0.2, 1.0)), size=s) for s in (16, 12)]
    watch = Watch(method)
    with torch.no_grad(): method(batch_of(data, torch.arange(24)), 1, gen())
    means = [x.mean((1, 2, 3)) for x in watch.query + watch.key]
    for i in range(4):
        for j in range(i): assert ((means[i] - means[j]).abs() > 2e-3).float().mean() > 0.8
    assert len(means[0].round(decimals=3).unique()) > 12                               # nor do the images of a batch share one


def test_share_of_mixed_steps():
    data = small_set(12)
    for r, low, high in ((dict(prob=0.8), 0.68, 0.92), (dict(prob=0.0), 0, 0), (dict(prob=1.0), 1, 1), (dict(rule="none"), 0, 0)):
        method = fresh(replace(ONE, mixer="none", **r), 12).eval()
        method.network, method.teacher.module = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()), torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
        method.teacher.update, method.queues = lambda *a: None, torch.nn.ModuleList([clim._make_queue(3, 12)])
        rows = torch.arange(4) if "rule" in r else torch.stack([torch.arange(4), torch.arange(4, 8)])
        steps = 90 if low < high else 8
        with torch.no_grad(): terms = [method(batch_of(data, rows), 1, gen(s)) for s in range(steps)]
        share = sum(bool(t.mixed > 0) for t in terms) / steps
        assert low <= share <= high


def test_10_5_queue_order_pointer_and_what_a_loss_sees():
    data, method = small_set(12), fresh(replace(TINY, queue_size=4, rule="none"), 12).train()
    watch, enqueued = Watch(method), []
    for step in range(1, 4):
        before = [q["keys"].clone() for q in method.queues]
        watch.clear()
        method(batch_of(data, torch.arange(2) + 2 * step), step, gen(step))
        for given_, there in zip(watch.loss[0][3], before): assert torch.equal(given_, there)
        enqueued.append([normalize(k) for k in watch.keys])
        method.after_step(step)
    for r, queue in enumerate(method.queues):
        A, C, E = (keys[r] for keys in enqueued)
        assert_close(queue.stored_keys, torch.cat([E, C])) and queue.pointer == 2      # E, F, C, D; one pointer for all queues
    assert {int(q.pointer) for q in method.queues} == {2}


def test_10_5_momentum_and_schedule():
    student = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(student.weight)
    from arcbook.teachers import EMATeacher
    teacher = EMATeacher(student.double(), Readings().momentum)
    torch.nn.init.ones_(student.weight)
    for _ in range(1000): teacher.update()
    assert close(teacher.module.weight, 0.6323046) and close(math.log(0.5) / math.log(0.999), 692.8, 0.05) and close(math.log(0.5) / math.log(0.99), 69.0, 0.05)
    for momentum in (0.0, 1.0):
        method, data = fresh(replace(MOCO, momentum=momentum)), small_set()
        start = copy.deepcopy(list(method.network.parameters()))
        drift(method), method.train()(batch_of(data, torch.arange(4)), 1, gen())
        for a, b in zip(method.teacher.module.parameters(), method.network.parameters() if momentum == 0 else start): assert_close(a, b)
    budget = LAB.planned("CLIM", "imagenet", "gpu").budget
    for epoch, rate in ((0, 0.03), (50, 0.0256066), (100, 0.015), (150, 0.0043934), (199, 1.8505e-6)):
        assert close(learning_rate(budget, epoch * 5004, 5004), rate, 1e-7)
    assert 1281167 // budget.batch_size == 5004


# Omega while training ------------------------------------------------------------------------------------------------------

def test_partners_are_drawn_from_the_table():
    data, method = small_set(), fresh(replace(ONE, num_neighbours=9))
    method.before_epoch(data, 0)
    table, counts = method.neighbours.table, method.neighbours.counts
    drawn = [set() for _ in range(27)]
    for seed in range(80):
        rows = method.epoch_indices(data.labels, 8, gen(seed))
        assert rows.shape == (3, 2, 8) and rows.dtype == torch.int64
        plain = fresh(MOCO).epoch_indices(data.labels, 8, gen(seed))
        assert torch.equal(rows[:, 0], plain)                                          # the same anchors as plain MoCo
        for i, j in zip(rows[:, 0].flatten().tolist(), rows[:, 1].flatten().tolist()):
            assert (j == i) == (counts[i] == 0) and (j == i or j in table[i, :counts[i]].tolist())
            if j != i: drawn[i].add(j)
    assert all(drawn[i] == set(table[i, :counts[i]].tolist()) for i in range(27)) and (counts == 0).any()


@pytest.mark.parametrize("warmup,refreshed", [(0, [0, 0, 2, 2, 4, 4]), (1, [-1, 1, 1, 3, 3, 5]), (9, [-1] * 6)])
def test_when_the_table_is_made_anew(warmup, refreshed):
    data, method = small_set(), fresh(replace(ONE, warmup_epochs=warmup))
    seen = []
    for epoch in range(6):
        old = method.neighbours.table.clone()
        method.before_epoch(data, epoch)
        drift(method, epoch)
        assert torch.equal(old, method.neighbours.table) or refreshed[epoch] == epoch  # never half of it
        seen.append(int(method.neighbours.epoch))
        if epoch < warmup: assert method.epoch_indices(data.labels, 8, gen()).ndim == 2          # plain MoCo until then
    assert seen == refreshed


def test_the_parts_of_a_refresh_belong_together():
    data = small_set()
    for r in (ONE, replace(ONE, rule="knn"), replace(ONE, rule="knn_cluster"), replace(ONE, pca=None), replace(ONE, encoder="key"), replace(ONE, spherical=True)):
        method = fresh(r)
        method.train(), drift(method)
        method.before_epoch(data, 4)
        n = method.neighbours
        assert int(n.epoch) == 4 and torch.equal(n.assignments, torch.cdist(n.features, n.centres).argmin(1))
        assert_close(n.features.norm(dim=1), torch.ones(27))
        table, counts = select_positives(r.rule, n.features, n.assignments, n.centres, 5)
        assert torch.equal(n.table, table) and torch.equal(n.counts, counts)
        network = copy.deepcopy(method.teacher.module if r.encoder == "key" else method.network).eval()
        with torch.no_grad(): Z = network.backbone(method.views[0].plain(data.images))
        Z = normalize(whiten(Z, 8) if r.pca else Z)
        assert_close((Z @ Z.T), n.features @ n.features.T, rtol=0, atol=1e-3)          # of un-augmented images, statistics fixed
    with pytest.raises(ValueError, match="data must have 27 images, got 9"): fresh(ONE).before_epoch(small_set(9), 0)


def test_10_8_unchanged_weights_give_the_same_features_and_neighbours():
    data, method = small_set(), fresh(replace(ONE, rule="knn"))
    method.before_epoch(data, 0)
    first = copy.deepcopy(method.neighbours)
    method.before_epoch(data, 2)
    assert method.neighbours.epoch == 2 and torch.equal(first.features, method.neighbours.features) and torch.equal(first.table, method.neighbours.table)


@pytest.mark.parametrize("rule", ["knn", "knn_cluster", "center_wise"])
def test_10_8_permuted_files_give_the_same_sets(rule, monkeypatch):
    "Through features, k-means and selection of the method; only the first centres must be the same images."
    data, order, real = small_set(60), torch.randperm(60, generator=gen(5)), kmeans
    first = tensor([3, 17, 40])
    results = []
    for images, start in ((data, first), (data.subset(order), order.argsort()[first])):
        monkeypatch.setattr(clim, "kmeans", lambda Z, m, *a, start=start, **k: real(Z, m, centres=Z[start]))
        method = fresh(replace(ONE, rule=rule, pca=6), 60)
        method.before_epoch(images, 0)
        results.append(sets((method.neighbours.table, method.neighbours.counts)))
    before, after = results
    assert sum(map(len, before)) > 60 // 2
    for new, old in enumerate(order.tolist()): assert {int(order[j]) for j in after[new]} == before[old]


@pytest.mark.parametrize("size", [1, 7, 26, 500])
def test_batches_of_extraction_of_any_size(size, monkeypatch):
    data, method = small_set(), fresh(ONE)
    expected, real = method.extract(data), clim.embed_all
    monkeypatch.setattr(clim, "embed_all", lambda f, d: real(f, d, batch_size=size))
    Z = fresh(ONE).extract(data)
    assert_close(Z @ Z.T, expected @ expected.T, rtol=0, atol=1e-4)
    if size == 1: assert_close(method.embed(data.images[4:5]), method.embed(data.images)[4:5], rtol=1e-5, atol=1e-6)


def test_extraction_leaves_no_trace():
    data, method = small_set(), fresh()
    for mode in (True, False):
        method.train(mode)
        before = {k: v.clone() for k, v in method.state_dict().items()}
        method.extract(data), method.predict(data.images), method.embed(data.images)
        method.train(mode)
        assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
        state = torch.get_rng_state()
        method.extract(data)
        assert torch.equal(state, torch.get_rng_state())                               # nor does it touch the stream of chance
        assert all(m.training == mode for name, m in method.named_modules() if name)


@pytest.mark.parametrize("size,sides", [(16, (16, 12)), (64, (32, 24)), (40, (24, 16)), (24, (32, 24))])
def test_extraction_sees_images_at_the_size_of_training(size, sides):
    "Reading 8: the crop that features come from is as large as the first resolution."
    data, method, seen = small_set(9, size), fresh(replace(TINY, resolutions=sides), 9), []
    method.network.backbone.register_forward_pre_hook(lambda m, x: seen.append(x[0].shape))
    method.extract(data), method.embed(data.images), method.predict(data.images)
    assert {shape[-2:] for shape in seen} == {(sides[0], sides[0])}


def test_10_8_prob_0_and_empty_sets_are_moco_v2():
    "Bit for bit: terms, weights, statistics of both encoders, queue. With as many clusters as images every set is empty."
    data, budget = small_set(), Budget("smoke", 2, 8, lr=0.05)
    runs = {}
    for name, r in dict(moco=MOCO, never=replace(ONE, prob=0.0), empty=replace(ONE, prob=1.0, num_clusters=27), late=replace(ONE, warmup_epochs=2)).items():
        method = fresh(r)
        runs[name] = fit(method, data, budget).values, {k: v for k, v in method.state_dict().items() if not k.startswith("neighbours")}
        if name == "empty": assert not method.neighbours.counts.any() and method.neighbours.epoch == 0
    for name in ("never", "empty", "late"):
        assert runs[name][0] == runs["moco"][0], name
        assert all(torch.equal(v, runs["moco"][1][k]) for k, v in runs[name][1].items()), name


def test_items_without_positives_cost_what_moco_v2_charges():
    "In one batch with others: their views, keys and lam = 1. (Statistics fixed: the rest of the batch is not the same.)"
    data = small_set()
    anchors, others = torch.arange(6), tensor([9, 1, 12, 3, 15, 5])                     # 1, 3 and 5 have none
    a, b = fresh(replace(ONE, prob=1.0)).eval(), fresh(MOCO).eval()
    watch, plain = Watch(a), Watch(b)
    with torch.no_grad(): a(batch_of(data, torch.stack([anchors, others])), 1, gen(4)), b(batch_of(data, anchors), 1, gen(4))
    alone = anchors == others
    lam = shares_of(watch.loss[0][4], 6, 1)[0]
    assert (lam[alone] == 1).all() and (lam[~alone] < 1).all()
    assert torch.equal(watch.query[0][alone], plain.query[0][alone]) and torch.equal(watch.key[0], plain.key[0])
    assert not torch.equal(watch.query[0][~alone], plain.query[0][~alone])
    n = a.queues[0]["keys"]
    losses = [mixed_info_nce(q, *(normalize(k) for k in keys), n, share, 0.2, "none") for q, keys, share in
              ((a.network(watch.query[0]), (watch.keys[0], watch.keys[1]), lam), (b.network(plain.query[0]), (plain.keys[0], plain.keys[0]), 1.0))]
    assert_close(losses[0][alone].float(), losses[1][alone])


BUDGET = Budget("smoke", 4, 8, lr=0.05, checkpoint_seconds=0)
MORE = replace(TINY, resolutions=(10, 8), symmetric=True, encoder="key", per="image", bn_groups=2, warmup_epochs=1, empty="self", unmixed_neighbours=True, rule="kmeans")
whole_runs = {}

class Unlabelled(ImageSet):
    "Nobody knows: all labels are -1."
    def __post_init__(self): pass


def test_labels_are_not_used():
    data, budget, runs = small_set(), Budget("smoke", 2, 8, lr=0.05), []
    shuffled = data.labels[torch.randperm(27, generator=gen(8))]
    for images in (data, replace(data, labels=shuffled), replace(data, labels=torch.zeros(27, dtype=torch.long), classes=["only"]),
                   Unlabelled(data.images, torch.full((27,), -1), ["?"], "digits")):
        method = fresh(ONE)
        runs.append((fit(method, images, budget).values, method.state_dict()))
    for values, state in runs[1:]:
        assert values == runs[0][0] and all(torch.equal(v, runs[0][1][k]) for k, v in state.items())


def test_half_precision_training_is_finite():
    data, method = small_set(), fresh()
    history = fit(method, data, Budget("smoke", 1, 8, lr=0.05, precision="bf16"))
    assert np.isfinite(history.values).all() and history.names[:4] == ["loss", "anchor", "neighbour", "mixed"]
    assert history["loss"][0] < math.log(1 + 24) + 1                                    # near log(1 + K) at first


def test_split_batchnorm_keeps_the_order_of_a_batch():
    x = torch.rand(11, 3, 4, 4, generator=gen())
    for groups in (1, 2, 3, 11):
        for g in (None, gen(4)): assert torch.equal(clim._in_groups(lambda part: part.mean((2, 3)), x, groups, g), x.mean((2, 3)))
    sizes = []
    clim._in_groups(lambda part: sizes.append(len(part)) or part.mean((2, 3)), x[:8], 4, gen(4))
    assert sizes == [2, 2, 2, 2]


EVERY = [dict(rule="knn"), dict(rule="kmeans"), dict(rule="knn_cluster"), dict(rule="self"), dict(rule="none"), dict(tie="lt"), dict(same_cluster=False),
         dict(knn_scope="cluster"), dict(empty="self"), dict(encoder="key"), dict(mixer="mixup"), dict(mixer="none"), dict(pairs="same_res"), dict(box="pixels"),
         dict(per="image"), dict(spherical=True), dict(unmixed_neighbours=True), dict(symmetric=True), dict(queue_start="empty"), dict(head="linear"),
         dict(shrink=2), dict(bn_groups=4), dict(warmup_epochs=3), dict(pca=None), dict(num_clusters=None), dict(num_clusters=500), dict(num_neighbours=500), dict(pca=999),
         dict(resolutions=(12, 16, 8)), dict(temperature=0.07), dict(alpha=0.2), dict(queue_size=3)]

@pytest.mark.parametrize("changes,message", [
    (dict(rule="closest"), "rule must be one of"), (dict(tie="<"), "tie must be one of"), (dict(knn_scope="own"), "knn_scope must be one of"),
    (dict(empty="drop"), "empty must be one of unmixed, self"), (dict(encoder="both"), "encoder must be one of query, key"),
    (dict(mixer="cut"), "mixer must be one of"), (dict(pairs="all"), "pairs must be one of"), (dict(box="pixels_224x"), "box must be one of"),
    (dict(per="pixel"), "per must be one of batch, image"), (dict(num_neighbours=0), "num_neighbours must be"), (dict(num_neighbours=4.5), "num_neighbours must be"),
    (dict(num_clusters=0), "num_clusters must be"), (dict(refresh=0), "refresh must be"), (dict(kmeans_iters=0), "kmeans_iters must be"), (dict(pca=0), "pca must be"),
    (dict(alpha=0.0), "alpha must be finite and > 0"), (dict(alpha=math.nan), "alpha must be"), (dict(prob=1.2), r"prob must be in \[0, 1\]"), (dict(prob=math.nan), "prob must be"),
    (dict(resolutions=()), "resolutions must"), (dict(resolutions=(16, 0)), "resolutions must"), (dict(resolutions=16), "resolutions must"),
    (dict(queue_size=0), "queue_size must be"), (dict(dim=0), "dim must be"), (dict(temperature=0.0), "temperature must be finite and > 0"),
    (dict(momentum=1.5), "momentum must be"), (dict(warmup_epochs=-1), "warmup_epochs must be"), (dict(warmup_epochs=0.5), "warmup_epochs must be"),
    (dict(bn_groups=0), "bn_groups must be"), (dict(head="cnn"), "head must be one of"),
])
def test_bad_readings_name_the_argument(changes, message):
    with pytest.raises(ValueError, match=message): replace(TINY, **changes)


def test_a_rule_needs_the_number_of_images():
    with pytest.raises(ValueError, match="num_images must be"): CLIM(3, "digits", TINY)


# two processes -------------------------------------------------------------------------------------------------------------

def distributed(rank=None):
    "The table of a refresh on 27 images (an odd share for somebody); then weights and queues after a short `fit`."
    data, found = small_set(), {}
    for name, r in dict(both=TINY, knn=replace(ONE, rule="knn")).items():
        method = fresh(r)
        method.train(), drift(method)
        if rank == 1:                                                                   # its own statistics, as in training
            for name_, buffer in method.network.named_buffers():
                if "running" in name_: buffer.add_(0.05)
        method.before_epoch(data, 0)
        found[name] = dict(method.neighbours.named_buffers())
    trained = fresh(replace(TINY, prob=0.8))
    fit(trained, data, Budget("smoke", 3, 8, lr=0.05))
    found["trained"] = {k: v for k, v in trained.state_dict().items() if "running" not in k and "num_batches" not in k}
    return found


def worker(rank, folder, port):
    import os
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.save(distributed(rank), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    "The table of one process on both, whatever statistics the second has; one queue, equal weights after training."
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(worker, (str(tmp_path), port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    alone = distributed()
    for name in ("both", "knn"):
        for key, value in first[name].items(): assert torch.equal(value, second[name][key]), key
        assert sets((first[name]["table"], first[name]["counts"])) == sets((alone[name]["table"], alone[name]["counts"]))
        assert torch.equal(first[name]["assignments"], alone[name]["assignments"])
        assert_close(first[name]["features"].abs(), alone[name]["features"].abs(), rtol=0, atol=1e-4)
    for key, value in first["trained"].items(): assert torch.equal(value, second["trained"][key]), key
    assert first["trained"].keys() == alone["trained"].keys()
    assert int(first["trained"]["queues.0.pointer"]) == int(alone["trained"]["queues.0.pointer"]) == 3 * 3 * 8 % 24      # the rows of both


# a process of its own --------------------------------------------------------------------------------------------------------

ALONE = """
import sys, time, resource
import arcbook.papers.clim as clim
from arcbook.selection import kmeans
heavy = sorted({m.split(".")[0] for m in sys.modules} & {"torchvision", "sklearn", "matplotlib", "accelerate", "scipy", "PIL", "faiss", "umap"})
import torch
torch.set_num_threads(1)
N, D, M, k = 12000, 64, 12, 20
features = torch.nn.functional.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(0)))
clim.select_centerwise(features[:500], torch.zeros(500, dtype=torch.long), features[:1], k)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before, start = peak(), time.process_time()
assignments, centres = kmeans(features, M, 10, torch.Generator().manual_seed(0))
table, counts = clim.select_centerwise(features, assignments, centres, k)
used = time.process_time() - start
import json
print(json.dumps(dict(heavy=heavy, bytes=peak() - before, seconds=used, rows=list(table.shape), some=float((counts > 0).float().mean()))))
"""

def test_imports_time_and_memory_of_the_selection():
    "At a quarter of the size: far less than the 576 MB of all distances. benchmarks/clim.py measures the whole."
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(done)
    assert found["heavy"] == []
    assert found["rows"] == [12000, 20] and found["some"] > 0.5
    assert found["bytes"] < 200e6, found
    assert found["seconds"] < 10, found                                                 # CPU seconds; loose: the machine may be busy
