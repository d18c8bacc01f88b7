"Section 10 of the specification of ICCL, every value, and what the notebook does not show."
import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from arcbook.contrast import normalize
from arcbook.datasets import ImageSet
from arcbook.memory import ClassCentroids, ema_centroids, mean_centroids
from arcbook.method import step_seed
from arcbook.models import Network
from arcbook.evaluation import embed_all, nearest_centroid, shot_thresholds
from arcbook.experiments import Plan, Trained
from arcbook.labs.iccl import LAB, VARIANTS
from arcbook.papers import iccl
from arcbook.papers.iccl import (CentroidContrastLoss, ICCL, ICCLLoss, Readings, centroid_contrast, draw_shares, mixed_target, protocol_views,
                                 redraw_pairs, second_stage)
from arcbook.sampling import ClassAwareSampler, class_probabilities, long_tail_counts, shot_groups, two_stream_indices
from arcbook.training import Batch, Budget, fit, learning_rate
from arcbook.views import mixup

TINY = Readings(backbone="resnet8", dim=16, centroid_momentum=0.9)
close = lambda a, b, tol=1e-6: math.isclose(float(a.detach() if isinstance(a, torch.Tensor) else a), b, rel_tol=0, abs_tol=tol)
gen = lambda seed=0: torch.Generator().manual_seed(seed)
one = lambda k: torch.tensor([k])


def inputs(B=7, C=5, D=6, dtype=torch.float64, seed=0):
    "Embeddings and centroids of any length, labels, shares."
    g = gen(seed)
    z, c = (torch.randn(n, D, generator=g, dtype=torch.float64) for n in (B, C))
    a, b = (torch.randint(0, C, (B,), generator=g) for _ in range(2))
    return z.to(dtype), c.to(dtype), a, b, torch.rand(B, generator=g, dtype=torch.float64)


def loops(z, c, a, b, lam, tau):
    "The definition in nested loops, float64: losses [B], and their gradients with respect to z [B, D]."
    length = lambda v: math.sqrt(sum(x * x for x in v))
    losses, gradients = [], []
    for i, row in enumerate(z.tolist()):
        n = length(row)
        u = [x / n for x in row]
        units = [[x / length(k) for x in k] if length(k) else None for k in c.tolist()]
        cos = [None if k is None else sum(p * q for p, q in zip(u, k)) for k in units]
        total = sum(math.exp(s / tau) for s in cos if s is not None)
        sigma = [0.0 if s is None else math.exp(s / tau) / total for s in cos]
        shares = [(int(a[i]), float(lam[i])), (int(b[i]), 1 - float(lam[i]))]
        shares = [(k, w) for k, w in shares if cos[k] is not None]
        losses.append(-sum(w * math.log(sigma[k]) for k, w in shares))
        mass, g = sum(w for _, w in shares), [0.0] * len(u)
        for k, unit in enumerate(units):
            weight = sigma[k] * mass - sum(w for j, w in shares if j == k)
            if unit: g = [x + weight * y / tau for x, y in zip(g, unit)]
        along = sum(x * y for x, y in zip(g, u))
        gradients.append([(x - along * y) / n for x, y in zip(g, u)])           # through the normalisation
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)


# values -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tau,unseen,seed", [(0.07, (), 0), (0.1, (1,), 1), (0.5, (0, 3), 2), (0.1, (0, 3), 3), (0.5, (), 4)])
def test_nested_loops(tau, unseen, seed):
    z, c, a, b, lam = inputs(seed=seed)
    c[list(unseen)] = 0
    z.requires_grad_()
    expected, gradient = loops(z, c, a, b, lam, tau)
    got = centroid_contrast(z, c, a, b, lam, tau, "none")
    assert_close(got, expected, rtol=0, atol=1e-5)
    assert_close(torch.autograd.grad(got.sum(), z)[0], gradient, rtol=0, atol=1e-4)
    assert_close(centroid_contrast(z, c, a, b, lam, tau), expected.mean())
    assert_close(centroid_contrast(z, c, a, b, lam, tau, "sum"), expected.sum())
    assert torch.autograd.gradcheck(lambda x: centroid_contrast(x, c, a, b, lam, tau), z)


def test_8_gradient_and_constant_centroids():
    z, c, a, b, lam = inputs(B=4)
    z, c = normalize(z).requires_grad_(), normalize(c).requires_grad_()
    centroid_contrast(z, c, a, b, lam, 0.2, "sum").backward()
    sigma = (z @ c.T / 0.2).softmax(1)
    free = (sigma @ c - lam[:, None] * c[a] - (1 - lam)[:, None] * c[b]) / 0.2
    tangent = free - (free * z).sum(1, keepdim=True) * z                        # z is normalised inside
    assert_close(z.grad, tangent.detach())
    assert c.grad is None


def test_3_reductions_and_symmetries():
    z, c, a, b, lam = inputs()
    loss = lambda a, b, lam: centroid_contrast(z, c, a, b, lam, 0.2, "none")
    plain = lambda y: F.cross_entropy(normalize(z) @ normalize(c).T / 0.2, y, reduction="none")
    assert_close(loss(a, b, 1.0), plain(a))
    assert_close(loss(a, b, 0.0), plain(b))
    assert_close(loss(a, b, 1.0), loss(a, b.flip(0), 1.0))
    assert_close(loss(a, a, lam), plain(a))                                     # equal labels: lam does not matter
    assert_close(loss(a, b, lam), loss(b, a, 1 - lam))
    assert_close(loss(a, b, lam), lam * plain(a) + (1 - lam) * plain(b))        # affine in lam
    T = torch.zeros(7, 5, dtype=torch.float64)
    for i in range(7):
        T[i, a[i]] += lam[i]
        T[i, b[i]] += 1 - lam[i]
    assert_close(mixed_target(a, b, lam, 5, torch.float64), T)
    assert_close(loss(a, b, lam), F.cross_entropy(normalize(z) @ normalize(c).T / 0.2, T, reduction="none"))
    for scale in (1e-3, 50.0): assert_close(centroid_contrast(scale * z, c / scale, a, b, lam, 0.2, "none"), loss(a, b, lam))


ONE_CENTROID = {(10, 0.1): .000409, (10, 0.3): .278439, (100, 0.1): .004485, (100, 0.3): 1.511103, (1000, 0.1): .044356, (1000, 0.3): 3.601095,
                (8142, 0.1): .314519, (8142, 0.3): 5.674772}

@pytest.mark.parametrize("C,tau", ONE_CENTROID)
def test_4_orthonormal_on_its_centroid(C, tau):
    if C <= 1000: centroids = torch.eye(C, dtype=torch.float64)
    else: centroids = torch.eye(2, dtype=torch.float64)[[0] + [1] * (C - 1)]            # only angles to the embedding count; C^2 numbers are 530 MB
    value = centroid_contrast(centroids[:1], centroids, one(0), one(1), 1.0, tau)
    assert close(value, ONE_CENTROID[C, tau], 1e-6)
    assert close(value, math.log1p((C - 1) * math.exp(-1 / tau)), 1e-9)


@pytest.mark.parametrize("C,tau,value", [(10, 0.1, 3.000409), (100, 0.3, 2.511103)])
def test_4_orthonormal_general_lam(C, tau, value):
    eye = torch.eye(C, dtype=torch.float64)
    assert close(centroid_contrast(eye[:1], eye, one(0), one(1), 0.7, tau), value)


@pytest.mark.parametrize("C,tau,value", [(10, 0.1, .696539), (10, 0.3, 1.014366), (100, 0.1, .733921), (100, 0.3, 2.423100)])
def test_4_orthonormal_half_way(C, tau, value):
    eye = torch.eye(C, dtype=torch.float64)
    assert close(centroid_contrast(eye[:1] + eye[1:2], eye, one(0), one(1), 0.5, tau), value)


@pytest.mark.parametrize("tau,value", [(0.1, 1.581710), (0.3, .961747)])
def test_4_orthonormal_on_the_blend(tau, value):
    eye = torch.eye(10, dtype=torch.float64)
    for lam in (0.7, 0.3):
        z = lam * eye[:1] + (1 - lam) * eye[1:2]
        assert close(centroid_contrast(z, eye, one(0), one(1), lam, tau), value)


def test_4_elsewhere():
    for C in (10, 100):
        eye = torch.eye(C, C + 1, dtype=torch.float64)
        away = torch.zeros(2, C + 1, dtype=torch.float64)
        away[1, C] = 1                                                          # orthogonal to all centroids
        for lam in (0.0, 0.3, 1.0):
            if C == 10: assert close(centroid_contrast(eye[5:6], eye, one(0), one(1), lam, 0.1), 10.000409)
            assert_close(centroid_contrast(away, eye, torch.zeros(2).long(), torch.ones(2).long(), lam, 0.1, "none"),
                         torch.full((2,), math.log(C), dtype=torch.float64))


@pytest.mark.parametrize("C,tau,value", [(10, 0.1, .000134), (10, 0.3, .200234), (100, 0.1, .004055), (100, 0.3, 1.484961)])
def test_5_simplex(C, tau, value):
    c = normalize(torch.eye(C, dtype=torch.float64) - 1 / C)
    assert close((c[0] * c[1]).sum(), -1 / (C - 1), 1e-12)
    assert close(centroid_contrast(c[:1], c, one(0), one(1), 1.0, tau), value)


entropy = lambda lam: -lam * math.log(lam) - (1 - lam) * math.log(1 - lam)

@pytest.mark.parametrize("tau,lam,degrees,value", [(0.1, 0.9, 36.062, .325083), (0.3, 0.7, 34.645, .610864), (0.1, 0.5, 45.0, math.log(2))])
def test_6_lower_bound_is_reached(tau, lam, degrees, value):
    eye = torch.eye(2, dtype=torch.float64)
    at = lambda t: centroid_contrast(torch.tensor([[math.cos(t), math.sin(t)]], dtype=torch.float64), eye, one(0), one(1), lam, tau)
    best = math.radians(45) - math.asin(tau * math.log(lam / (1 - lam)) / math.sqrt(2))
    assert close(math.degrees(best), degrees, 1e-3) and close(at(best), value) and close(at(best), entropy(lam), 1e-9)
    grid = [float(at(t)) for t in np.linspace(0, math.pi / 2, 1000)]
    assert min(grid) >= entropy(lam) - 1e-12


def test_6_hundred_classes():
    eye, angles = torch.eye(100, dtype=torch.float64), torch.linspace(0, math.pi / 2, 20001, dtype=torch.float64)
    z = angles.cos()[:, None] * eye[0] + angles.sin()[:, None] * eye[1]
    losses = centroid_contrast(z, eye, torch.zeros(len(z)).long(), torch.ones(len(z)).long(), 0.9, 0.1, "none")
    assert close(losses.min(), .3515, 1e-4) and close(math.degrees(angles[losses.argmin()]), 35.66, 0.01)


def test_6_bound_holds_everywhere():
    z, c, a, b, lam = inputs(B=400, C=4, D=3)
    lam = lam.clamp(1e-6, 1 - 1e-6)
    losses = centroid_contrast(z, c, a, b, lam, 0.1, "none")
    floor = torch.tensor([entropy(float(x)) for x in lam], dtype=torch.float64)
    assert (losses >= torch.where(a != b, floor, 0)).all()


@pytest.mark.parametrize("alpha,value", [(1, 0.5), (0.5, .386294), (2, .583333), (8, .662872)])
def test_7_mean_floor(alpha, value):
    digamma = lambda x: float(torch.special.digamma(torch.tensor(x, dtype=torch.float64)))
    assert close(digamma(2 * alpha + 1.0) - digamma(alpha + 1.0), value)
    lam = draw_shares(200_000, alpha, "sample", generator=gen()).double().clamp(1e-9, 1 - 1e-9)
    assert close((-lam * lam.log() - (1 - lam) * (1 - lam).log()).mean(), value, 2e-3)
    assert close(lam.mean(), 0.5, 3e-3) and close(lam.var(), 1 / (4 * (2 * alpha + 1)), 2e-3)


# samplers, counts -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("gamma,expected", [(-1, (.900901, .090090, .009009)), (0, (1 / 3,) * 3), (0.5, (.070610, .223289, .706101)), (1, (.009009, .090090, .900901))])
def test_1_sampler_frequencies(gamma, expected):
    assert_close(class_probabilities([100, 10, 1], gamma), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 10, 1]))
    order = torch.cat([two_stream_indices(labels, 37, gamma, gen(seed)) for seed in range(2000)])
    share = labels[order[:, 1]].flatten().bincount(minlength=3) / order[:, 1].numel()
    assert_close(share, torch.tensor(expected), rtol=0, atol=5e-3)


def test_1_cifar_and_draws():
    counts = long_tail_counts(100, 500, 100)
    for gamma, head, tail in ((-1, .0461, .00046), (0, .01, .01), (1, .00044, .04382)):
        p = class_probabilities(counts, gamma)
        assert close(p[0], head, 5e-5) and close(p[-1], tail, 5e-6)
    draws = lambda gamma: class_probabilities(counts, gamma) * counts.sum() / counts
    assert close(draws(0)[0], 0.217, 5e-4) and close(draws(0)[-1], 21.69, 5e-3)
    assert close(draws(1)[0], 0.0095, 5e-5) and close(draws(1)[-1], 95.06, 5e-3)
    exact = torch.tensor([64, 16, 4, 1])
    assert_close(class_probabilities(exact, 1), class_probabilities(exact, -1).flip(0))


@pytest.mark.parametrize("C,largest,IF,value,inverse", [(100, 500, 100, .002020, 4.564103), (100, 500, 50, .003057, 2.594104), (100, 500, 10, .006474, .789149),
                                                        (10, 5000, 100, .016217, .049706), (10, 5000, 50, .025486, .028035), (10, 5000, 10, .059860, .008177)])
def test_2_collisions(C, largest, IF, value, inverse):
    n = long_tail_counts(C, largest, IF).double()
    meet = lambda gamma: (n / n.sum() * class_probabilities(n.long(), gamma)).sum()
    assert close(meet(0), 1 / C, 1e-12) and close(meet(1), value) and close((1 / n).sum(), inverse)


@pytest.mark.parametrize("C,largest,IF,total", [(10, 5000, 10, 20431), (10, 5000, 50, 13996), (10, 5000, 100, 12406), (100, 500, 10, 19573), (100, 500, 50, 12608), (100, 500, 100, 10847)])
def test_11_counts(C, largest, IF, total):
    n = long_tail_counts(C, largest, IF)
    assert n.sum() == total
    groups = {(100, 100): [35, 35, 30], (100, 50): [41, 41, 18], (100, 10): [69, 31, 0]}.get((C, IF))
    if groups: assert shot_groups(n).bincount(minlength=3).tolist() == groups and shot_thresholds(n) == (100, 20)


# centroids ---------------------------------------------------------------------------------------------------------------

def test_9_running_mean():
    e = torch.eye(2, dtype=torch.float64)
    c = ema_centroids(e[:1], e[1:], one(0), 0.99)
    assert_close(c[0], torch.tensor([.999949, .010101], dtype=torch.float64), rtol=0, atol=1e-6)
    assert close(math.degrees(math.acos(float(c[0, 0]))), .5787, 1e-4)
    assert_close(ema_centroids(e[:1], e[:1], one(0), 0.99)[0], e[0])            # a fixed point
    m, z = 0.9, normalize(torch.tensor([[0.6, 0.8], [-1.0, 0.3]], dtype=torch.float64))
    both = ema_centroids(e[:1], z, torch.zeros(2).long(), m)
    assert_close(both, normalize(m**2 * e[:1] + m * (1 - m) * z[:1] + (1 - m) * z[1:]))
    assert not torch.allclose(both, normalize(m * e[:1] + (1 - m) * z.mean(0, keepdim=True)), atol=1e-3)
    memory = ClassCentroids(3, 2, momentum=0.99)
    memory.update(z[:1], one(1))
    assert_close(memory.centroids[1].double(), z[0])                            # from zero: the first sample itself
    before = memory.centroids.clone()
    memory.update(z[1:], one(2))
    assert torch.equal(memory.centroids[:2], before[:2])                        # absent from the batch: unchanged


def test_10_epoch_mean_is_blind_to_counts():
    z, y = torch.randn(60, 4, generator=gen(), dtype=torch.float64), torch.arange(60) % 3
    c = mean_centroids(z, y, 3)
    more = torch.cat([torch.arange(60), *[torch.arange(0, 60, 3)] * 20])
    for rows in (torch.randperm(60, generator=gen()), torch.arange(60).repeat(2), more):
        assert_close(mean_centroids(z[rows], y[rows], 3), c, rtol=0, atol=1e-14)


def test_12_interpolation():
    a, b = torch.randn(2, 4, 3, 8, 8, generator=gen())
    assert torch.equal(mixup(a, b, torch.ones(4)), a) and torch.equal(mixup(a, b, torch.zeros(4)), b)
    assert torch.equal(mixup(a, b, 0.5), mixup(b, a, 0.5))
    lam = torch.rand(4, generator=gen())
    means = lambda x: x.mean((2, 3))
    assert_close(means(mixup(a, b, lam)), lam[:, None] * means(a) + (1 - lam)[:, None] * means(b))
    views, raw = protocol_views("cifar100", "plain"), torch.randint(0, 256, (2, 4, 3, 8, 8), generator=gen(), dtype=torch.uint8)
    x = [views.plain(r) for r in raw]
    mean, std = (torch.tensor(v)[:, None, None] for v in (views.mean, views.std))
    pixels = mixup(raw[0] / 255, raw[1] / 255, lam)
    assert_close(mixup(*x, lam), (pixels - mean) / std)                         # normalising commutes: shares sum to 1


def test_shares():
    assert (draw_shares(9, generator=gen()) == draw_shares(9, generator=gen())[0]).all()                 # one per batch
    per = draw_shares(9, 1, "sample", generator=gen())
    assert len(per.unique()) == 9 and per.min() >= 0 and per.max() <= 1
    assert torch.equal(draw_shares(3, kind="none"), torch.ones(3))
    coin = draw_shares(1000, per="sample", kind="coin", generator=gen())
    assert set(coin.tolist()) == {0.0, 1.0} and 400 < coin.sum() < 600


# degenerate cases --------------------------------------------------------------------------------------------------------

def test_class_unseen_so_far():
    z, c, a, b, lam = inputs(B=4)
    c[2] = 0
    a, b = torch.tensor([0, 2, 1, 2]), torch.tensor([1, 0, 2, 2])
    z.requires_grad_()
    losses = centroid_contrast(z, c, a, b, lam, 0.1, "none")
    others = c[[0, 1, 3, 4]]
    log_p = (normalize(z) @ normalize(others).T / 0.1).log_softmax(1)           # the softmax of the classes seen
    expected = -torch.stack([lam[0] * log_p[0, 0] + (1 - lam[0]) * log_p[0, 1], (1 - lam[1]) * log_p[1, 0], lam[2] * log_p[2, 1], 0 * log_p[3, 0]])
    assert_close(losses, expected)
    gradient, = torch.autograd.grad(losses.sum(), z)
    assert not gradient[3].any() and gradient[:3].any(1).all()
    nothing = centroid_contrast(z, torch.zeros_like(c), a, b, lam)              # no class seen: 0, with a gradient path
    assert nothing == 0 and not torch.autograd.grad(nothing, z)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_single_class_batch_of_one_and_empty(dtype):
    z = torch.randn(3, 4, generator=gen()).to(dtype).requires_grad_()
    zeros = torch.zeros(3).long()
    alone = centroid_contrast(z, torch.randn(1, 4, generator=gen()).to(dtype), zeros, zeros, 0.3)
    assert alone == 0 and not torch.autograd.grad(alone, z)[0].any()
    c = torch.randn(5, 4, generator=gen()).to(dtype)
    whole = centroid_contrast(z, c, zeros, zeros + 1, 0.3, reduction="none")
    assert_close(centroid_contrast(z[:1], c, zeros[:1], zeros[:1] + 1, 0.3), whole[0])
    none = centroid_contrast(z[:0], c, zeros[:0], zeros[:0], 0.3)
    assert none == 0 and none.requires_grad
    assert centroid_contrast(z * 0, c, zeros, zeros, 0.3).isfinite()


def test_kinds_of_shares_and_labels():
    z, c, a, b, lam = inputs()
    expected = centroid_contrast(z, c, a, b, 1.0)
    for share in (1, True, np.float32(1), torch.tensor(1), torch.ones(7).half(), torch.ones(7, dtype=torch.bool)):
        assert_close(centroid_contrast(z, c, a, b, share), expected)
    for dtype in (torch.int32, torch.uint8): assert_close(centroid_contrast(z, c, a.to(dtype), b, lam), centroid_contrast(z, c, a, b, lam))


def test_batch_of_one_class():
    z, c, _, _, lam = inputs()
    y = torch.full((7,), 3)
    assert_close(centroid_contrast(z, c, y, y, lam), F.cross_entropy(normalize(z) @ normalize(c).T / 0.1, y))


@pytest.mark.parametrize("call,message", [
    (lambda z, c, a, b: centroid_contrast(z[0], c, a, b, 0.5), "embeddings must have shape"),
    (lambda z, c, a, b: centroid_contrast(z, c[:, :3], a, b, 0.5), "must have shape"),
    (lambda z, c, a, b: centroid_contrast(z, c, a[:3], b, 0.5), "labels_a must have shape"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b + 5, 0.5), r"labels_b must lie in 0\.\.4"),
    (lambda z, c, a, b: centroid_contrast(z, c, a - 9, b, 0.5), "labels_a must lie in"),
    (lambda z, c, a, b: centroid_contrast(z, c, a.double(), b, 0.5), "labels_a must be integers"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, 1.5), r"lam must be in \[0, 1\], got 1.5"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, torch.full((7,), -0.1)), r"lam must be in \[0, 1\]"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, math.nan), "lam must be"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, torch.ones(3)), "lam must be a number or"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, [0.5] * 7), r"lam must be a number or a tensor \[7\], got list"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, None), "lam must be a number or a tensor"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, torch.tensor([.1, .2, math.nan, 3, .5, .6, .7])), r"lam must be in \[0, 1\], got nan$"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, 0.5, 0.0), "temperature must be > 0"),
    (lambda z, c, a, b: centroid_contrast(z, c, a, b, 0.5, reduction="avg"), "reduction must be"),
    (lambda z, c, a, b: centroid_contrast(z / 0, c, a, b, 0.5), "must be finite"),
    (lambda z, c, a, b: CentroidContrastLoss(-1.0), "temperature must be > 0"),
    (lambda z, c, a, b: ICCLLoss(w_cc=-1.0), "w_cc must be finite and >= 0"),
    (lambda z, c, a, b: ICCL(5, "digits", replace(TINY, centroids="mean")), "centroids must be one of ema, epoch"),
    (lambda z, c, a, b: ICCL(5, "digits", replace(TINY, mix_alpha=0.0)), "mix_alpha must be finite and > 0"),
    (lambda z, c, a, b: ICCL(5, "digits", replace(TINY, gamma=math.nan)), "gamma must be finite, got nan"),
    (lambda z, c, a, b: ICCL(5, "digits", replace(TINY, cc_start_epochs=0.5)), "cc_start_epochs must be a whole number >= 0, got 0.5"),
    (lambda z, c, a, b: ICCL(5, "digits", replace(TINY, dim=0)), "dim must be a whole number >= 1, got 0"),
    (lambda z, c, a, b: ICCL(5, "digits", replace(TINY, streams="aware")), "w_it and w_cc must be 0 with one stream"),
    (lambda z, c, a, b: centroid_contrast(z, None, a, b, 0.5), "centroids must be a tensor"),
    (lambda z, c, a, b: centroid_contrast(z, c, a[:3], b[:3], 0.5), r"labels_a must have shape \[7\]"),
    (lambda z, c, a, b: ICCLLoss()(a, b, 0.5, mixed_embeddings=z), "centroids must be a tensor"),
    (lambda z, c, a, b: ICCLLoss()(a, b, 0.5, logits=c[a], ramp=math.nan), r"ramp must be in \[0, 1\]"),
    (lambda z, c, a, b: Readings(data_seed=1), "data_seed must be 0: `resample` draws other images"),
])
def test_bad_input_names_the_argument(call, message):
    z, c, a, b, _ = inputs()
    with pytest.raises(ValueError, match=message): call(z, c, a, b)


# precision, compilation --------------------------------------------------------------------------------------------------

def loss_inputs(dtype=torch.float32, B=6, C=5, D=8):
    g = gen(3)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype)
    a, b = (torch.randint(0, C, (B,), generator=g) for _ in range(2))
    return dict(labels_a=a, labels_b=b, lam=torch.rand(B, generator=g), logits=r(B, C), mixed_logits=r(B, C), mixed_embeddings=r(B, D),
                centroids=normalize(r(C, D)), embeddings=r(B, D))


def test_modules_equal_functions_and_wiring():
    x = loss_inputs(torch.float64)
    a, b, lam, c, z = x["labels_a"], x["labels_b"], x["lam"].double(), x["centroids"], x["mixed_embeddings"]
    assert_close(CentroidContrastLoss(0.3, "none")(z, c, a, b, lam), centroid_contrast(z, c, a, b, lam, 0.3, "none"))
    terms = ICCLLoss(2.0, 3.0, 5.0, 0.2)(**{**x, "embeddings": None}, ramp=0.5)
    ce = lambda logits, y: F.cross_entropy(logits, y, reduction="none")
    mixed = (lam * ce(x["mixed_logits"], a) + (1 - lam) * ce(x["mixed_logits"], b)).mean()
    assert_close(terms.ce, ce(x["logits"], a).mean())
    assert_close(terms.mixed_ce, mixed)
    assert_close(terms.centroid, centroid_contrast(z, c, a, b, lam, 0.2))
    assert_close(terms.loss, 2 * terms.ce + 3 * terms.mixed_ce + 2.5 * terms.centroid)
    also = ICCLLoss(temperature=0.2)(**x)
    assert_close(also.centroid - terms.centroid, centroid_contrast(x["embeddings"], c, a, a, 1.0, 0.2))
    assert ICCLLoss()(a, logits=x["logits"]).centroid == 0


# the method --------------------------------------------------------------------------------------------------------------

def small_set(counts=(14, 9, 5), size=16):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.randint(0, 256, (len(labels), 3, size, size), dtype=torch.uint8, generator=gen())
    return ImageSet(images, labels, [str(i) for i in range(len(counts))], "digits")


def batch_of(data, indices): return Batch(*data.batch(indices), indices)


def embeddings_of(method, data): return embed_all(lambda images: method.output(images).embeddings, data)


def fresh(readings=TINY, seed=0, classes=3, stage=1):
    torch.manual_seed(seed)
    return ICCL(classes, "digits", readings, stage)


def test_7_orientation_of_lam():
    "lam goes with the class-agnostic image and with its label: both or neither (a symmetric Beta would hide a swap)."
    data, method = small_set(), fresh()
    batch = batch_of(data, two_stream_indices(data.labels, 8, 0.0, gen(1))[0])
    method.before_epoch(data, 1)
    method.eval()
    for share, row in ((1.0, 0), (0.0, 1)):
        iccl_shares, iccl.draw_shares = iccl.draw_shares, lambda n, *a, **k: torch.full((n,), share)
        try: terms = method(batch, 1, gen(5))
        finally: iccl.draw_shares = iccl_shares
        g = gen(5)
        views = [method.view(batch.images[i], g) for i in (0, 1)]
        out = method.network(views[row])
        assert_close(terms.mixed_ce, F.cross_entropy(out.logits, batch.labels[row]))
        y = batch.labels[row]
        assert_close(terms.centroid, centroid_contrast(out.embeddings, method.centroids.centroids, y, y, 1.0))


@pytest.mark.parametrize("name,mixed", [("plain CE", False), ("mixup + CE", True)])
def test_14_reduces_to_a_reference_loop(name, mixed):
    """w_cc = 0 and gamma = -1 is mixup + CE; with w_it = 0 it is CE: the same losses step by step. In double precision:
    in single, one ReLU that rounding turns over (two threads are enough) parts two equal runs by 1e-3 in a few steps."""
    double = lambda net: net.double().register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    readings = replace(TINY, gamma=-1.0, w_cc=0.0, w_it=float(mixed), stage2="none", streams="both")
    data, method = small_set((20, 10, 6)), fresh(readings)
    double(method.network)
    history = fit(method, data, Budget("cpu", 3, 9, lr=0.05, momentum=0.9, weight_decay=5e-4), seed=4)
    torch.manual_seed(0)
    net, views = Network("resnet8", 3, "none").to(memory_format=torch.channels_last), protocol_views("digits")
    double(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9, nesterov=True, weight_decay=5e-4)
    losses, step, budget = [], 0, Budget("cpu", 3, 9, lr=0.05)
    for epoch in range(3):
        for a, w in two_stream_indices(data.labels, 9, -1.0, gen(step_seed(4, epoch))):
            g = gen(step_seed(4, step, 0, 1))
            for group in optimizer.param_groups: group["lr"] = learning_rate(budget, step, 4)
            net.train()
            x, y = views(data.images[a], g), data.labels[a]
            x2, y2 = views(data.images[w], g), data.labels[w]
            lam = torch.rand(1, generator=g)
            loss = F.cross_entropy(net(x).logits, y)
            if mixed:
                z = net(lam * x + (1 - lam) * x2).logits
                loss = loss + lam * F.cross_entropy(z, y) + (1 - lam) * F.cross_entropy(z, y2)
            loss = loss.squeeze()
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses.append(loss.item())
            step += 1
    assert_close(torch.tensor(history["loss"]), torch.tensor(losses, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_warm_up_then_a_full_pass_then_the_running_mean():
    data, method = small_set(), fresh(replace(TINY, cc_start_epochs=1))
    batch = batch_of(data, two_stream_indices(data.labels, 8, 0.0, gen())[0])
    method.before_epoch(data, 0)
    terms = method.train()(batch, 1, gen())
    method.after_step(1)
    assert terms.centroid == 0 and not method.centroids.seen.any()              # warm-up: nothing yet, but a gradient path
    assert_close(terms.loss, terms.ce + terms.mixed_ce)
    terms.loss.backward()
    assert all(p.grad is not None for p in method.parameters())                 # DistributedDataParallel asks for that
    method.before_epoch(data, 1)
    exact = mean_centroids(embeddings_of(method, data), data.labels, 3)
    assert_close(method.centroids.centroids, exact)
    before = method.centroids.centroids.clone()
    terms = method.train()(batch, 2, gen())
    assert torch.equal(method.centroids.centroids, before)                      # a batch is judged before it moves them
    z, y = method.latest
    assert torch.equal(y, batch.labels[0]) and not z.requires_grad
    method.after_step(2)
    assert_close(method.centroids.centroids, ema_centroids(before, z, y, 0.9))


def test_epoch_mean_is_taken_once_per_epoch():
    data, method = small_set(), fresh(replace(TINY, centroids="epoch", cc_start_epochs=0))
    method.before_epoch(data, 0)
    kept = method.centroids.centroids.clone()
    with torch.no_grad():
        for p in method.network.parameters(): p.add_(0.05 * torch.randn(p.shape, generator=gen()))
    method.before_epoch(data, 0)                                                # resumed in the middle of epoch 0
    assert torch.equal(method.centroids.centroids, kept)
    method.before_epoch(data, 1)
    assert not torch.equal(method.centroids.centroids, kept)
    assert_close(method.centroids.centroids, mean_centroids(embeddings_of(method, data), data.labels, 3))


READINGS = [TINY, replace(TINY, centroids="epoch"),                             # readings that do not meet share a run
            replace(TINY, centroid_start="empty", cc_start_epochs=0, head="linear", aug="plain"),
            replace(TINY, use_aware=True, forward="concat", mix_per="sample", mix_alpha=0.4),
            replace(TINY, cc_clean=True, cc_ramp_epochs=2, aug="strong", head="none", same_class_pairs="redraw", gamma=1.0),
            replace(TINY, interpolation="coin", mix_per="sample")]

def changed(readings): return "-".join(f"{k}" for k, v in vars(readings).items() if v != getattr(TINY, k)) or "default"

BUDGET = Budget("smoke", 3, 8, lr=0.05, checkpoint_seconds=0)

def stage2_of(readings, data):
    first = fresh(readings)
    fit(first, data, replace(BUDGET, epochs=2))
    def make(seed):
        torch.manual_seed(seed)
        return second_stage(first)
    return first, make


def check_resume(folder, make, data, stop_at):
    "A run killed after `stop_at` steps and resumed with other initial weights equals one that was not, bit for bit."
    def stop(step, method):
        if step == stop_at: raise KeyboardInterrupt
    whole, cut, resumed = make(0), make(0), make(9)
    history = fit(whole, data, BUDGET)
    with pytest.raises(KeyboardInterrupt): fit(cut, data, BUDGET, out=folder, callback=stop)
    again = fit(resumed, data, BUDGET, out=folder)
    assert again.values == history.values
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_13_stage_two_touches_nothing_but_the_classifier():
    data = small_set()
    first, make = stage2_of(TINY, data)
    second = make(1)
    before = copy.deepcopy(second.state_dict())
    assert not any(k.startswith(("network.head", "centroids")) for k in before)
    for k, v in first.network.backbone.state_dict().items(): assert torch.equal(before[f"network.backbone.{k}"], v)
    assert not torch.equal(before["network.classifier.weight"], first.network.classifier.weight)        # re-initialised
    fit(second, data, BUDGET)
    for k, v in second.state_dict().items():
        if k != "prepared": assert torch.equal(v, before[k]) == ("classifier" not in k), k              # BatchNorm's buffers too
    order = second.epoch_indices(data.labels, 8, gen())
    assert order.shape == (3, 1, 8)


@pytest.mark.parametrize("stage2", ["crt", "lws", "tau_norm"])
def test_forms_of_stage_two(stage2):
    data = small_set()
    first, make = stage2_of(replace(TINY, stage2=stage2), data)
    second = make(1)
    features, w, b = first.output(data.images).features, first.network.classifier.weight, first.network.classifier.bias
    if stage2 == "tau_norm": assert_close(second.predict(data.images), features @ F.normalize(w, dim=1).T)
    if stage2 == "lws":
        assert_close(second.predict(data.images), first.predict(data.images))   # scales start at 1
        fit(second, data, BUDGET)
        assert second.scales.shape == (3,) and not (second.scales == 1).any()
        assert_close(second.predict(data.images), (features @ w.T + b) * second.scales)
        assert torch.equal(second.network.classifier.weight, w)


def test_best_epoch_is_reported_beside_the_last(tmp_path):
    data = small_set()
    accuracies, make = [], lambda: fresh(replace(TINY, report="best"))
    method = make()
    method.watched = data
    def note(step, m):
        if step and step % 3 == 0: accuracies.append(float((m.predict(data.images).argmax(1) == data.labels).float().mean()))
    fit(method, data, BUDGET, callback=note)
    method.watch()
    assert close(method.best, max(accuracies))
    plan = Plan((BUDGET,), method.readings)
    metrics, _ = LAB.evaluate(Trained(LAB, plan, data, method.profile, 0, [method]), data)
    assert close(metrics["top1_best"], max(accuracies)) and close(metrics["top1"], accuracies[-1])
    def stop(step, m):
        if step == 7: raise KeyboardInterrupt
    cut, resumed = make(), make()
    cut.watched = resumed.watched = data
    with pytest.raises(KeyboardInterrupt): fit(cut, data, BUDGET, out=tmp_path, callback=stop)
    fit(resumed, data, BUDGET, out=tmp_path)
    resumed.watch()
    assert torch.equal(resumed.best, method.best)


def test_tau_is_a_power():
    layer = nn.Linear(4, 3)
    lengths = layer.weight.norm(dim=1).detach().clone()
    iccl.normalize_classifier(layer, 0.5)
    assert_close(layer.weight.norm(dim=1), lengths.sqrt())
    assert not layer.bias.any()


def test_streams():
    data = small_set()
    both = two_stream_indices(data.labels, 8, 0.0, gen())
    plain = replace(TINY, w_it=0.0, w_cc=0.0)
    for streams, rows in (("agnostic", both[:, :1]), ("aware", both[:, 1:]), ("both", both)):
        assert torch.equal(fresh(replace(plain, streams=streams)).epoch_indices(data.labels, 8, gen()), rows)


def test_redrawn_pairs_differ_and_follow_the_conditional_law():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 12, 6]))
    pairs = torch.cat([redraw_pairs(two_stream_indices(labels, 48, 0.0, g := gen(s)), labels, 0.0, g) for s in range(400)])
    a, b = labels[pairs[:, 0]].flatten(), labels[pairs[:, 1]].flatten()
    assert (a != b).all()
    assert close((b[a == 0] == 1).float().mean(), 0.5, 0.02)                    # of the two other classes, equally
    alone = torch.zeros(5).long()
    order = two_stream_indices(alone, 4, 0.0, gen())
    assert torch.equal(redraw_pairs(order, alone, 0.0, gen()), order)


def test_same_start_for_every_variant():
    "Backbone and classifier start alike whatever the head, so that variants differ in what is asked of them only."
    states = []
    for changes in VARIANTS.values():
        torch.manual_seed(0)
        states.append(ICCL(3, "digits", replace(TINY, **changes)).network.state_dict())
    for state in states[1:]:
        assert all(torch.equal(v, state[k]) for k, v in states[0].items() if not k.startswith("head"))


def test_projection_head_is_dropped_without_harm():
    method, data = fresh(), small_set()
    before = method.predict(data.images)
    method.network.head = nn.Identity()
    assert torch.equal(before, method.predict(data.images))


# two processes (-> conformance, but for what the walk compares) -----------------------------------------------------------------------------------------------------------

def distributed_walk(rank=None):
    """Three steps of stage 1 and three of stage 2 on both halves of each batch, or on one process's half: gradients,
    centroids and weights. BatchNorm is in evaluation mode, so that images do not mix within a batch."""
    data, kept = small_set((30, 16, 10)), []
    half = slice(None) if rank is None else slice(rank, None, 2)
    method = fresh(replace(TINY, aug="plain", cc_start_epochs=0, centroid_momentum=0.8))
    for stage in (1, 2):
        if stage == 2:
            torch.manual_seed(3)
            method = second_stage(method)
        method.before_epoch(data, 0)
        params = [p for p in method.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, 0.05, 0.9)
        for step, indices in enumerate(method.epoch_indices(data.labels, 14, gen())[:3], 1):
            terms = method.eval()(batch_of(data, indices[:, half]), step, gen(step))
            optimizer.zero_grad(), terms.loss.backward()
            if rank is not None:
                for p in params: dist.all_reduce(p.grad), p.grad.div_(2)
            kept.append([p.grad.clone() for p in params])
            optimizer.step(), method.after_step(step)
            if stage == 1: kept.append([method.centroids.centroids.clone(), method.centroids.counts.clone()])
    return kept


def distributed_fit(rank, folder):
    "Both stages by `fit`, on two processes: what each of them ends with."
    data, first = small_set((30, 16, 10)), fresh()
    fit(first, data, Budget("smoke", 3, 14, lr=0.05), out=f"{folder}/fit{rank}")
    torch.manual_seed(1)
    second = second_stage(first)
    fit(second, data, Budget("smoke", 1, 14, lr=0.05))
    kept = lambda m: {k: v for k, v in m.state_dict().items() if "running" not in k and "num_batches" not in k}   # those are each process's own
    return [kept(first), kept(second)]


def worker(rank, folder, port):
    import os
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save([distributed_walk(rank), distributed_fit(rank, folder)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    "Started once: what both processes saw in the walk, and what both ended with after `fit`."
    import socket
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(worker, (str(folder), port), nprocs=2)
    return list(zip(*(torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2))))


def test_two_processes_equal_one(two_processes):
    (first, second), alone = two_processes[0], distributed_walk()
    assert len(first) == len(second) == len(alone)
    for a, b, c in zip(first, second, alone):
        for x, y, z in zip(a, b, c):
            assert torch.equal(x, y)                                            # centroids and gradients, on both processes
            assert_close(x, z, rtol=1e-4, atol=1e-6)                            # as one process with both halves


def test_two_processes_train_one_method(two_processes):
    a, b = two_processes[1]
    for one_, two in zip(a, b):
        assert one_.keys() == two.keys()
        for k, v in one_.items():
            if "backbone" in k or "classifier" in k or "head" in k or "centroids" in k: assert torch.equal(v, two[k]), k
    assert a[0]["centroids.counts"].sum() == 56 + 2 * 4 * 14                    # one full pass, then two epochs of four steps


# T15 ---------------------------------------------------------------------------------------------------------------------

def gaussians(counts, seed):
    g = gen(seed)
    y = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    means = torch.tensor([[0.0, 0.0], [1.6, 0.0], [0.8, 1.4]])
    return means[y] + 0.55 * torch.randn(len(y), 2, generator=g), y


def toy(seed, kind, steps=150, B=32):
    "Tiny MLP on 3 Gaussians, n = (200, 20, 5): accuracy on the smallest class, and the centroids."
    x, y = gaussians((200, 20, 5), seed)
    tx, ty = gaussians((200, 200, 200), 100 + seed)
    torch.manual_seed(seed)
    body, classify, head, memory = nn.Sequential(nn.Linear(2, 32), nn.ReLU()), nn.Linear(32, 3), nn.Linear(32, 8), ClassCentroids(3, 8, 0.9)
    optimizer = torch.optim.Adam([*body.parameters(), *classify.parameters(), *head.parameters()], 0.01)
    memory.from_dataset(head(body(x)), y)
    sampler, g = ClassAwareSampler(y, 0.0), gen(seed)
    for _ in range(steps):
        a, w, lam = torch.randint(0, len(y), (B,), generator=g), sampler.draw(B, g), torch.rand(B, generator=g)
        v = body(x[a])
        loss = F.cross_entropy(classify(v), y[a])
        if kind == "ICCL":
            z = head(body(lam[:, None] * x[a] + (1 - lam[:, None]) * x[w]))
            loss = loss + centroid_contrast(z, memory.centroids, y[a], y[w], lam)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        if kind == "ICCL": memory.update(head(v), y[a])
    with torch.no_grad():
        v = body(tx)
        memory.from_dataset(head(body(x)), y)
        guess = (classify(v) if kind == "CE" else nearest_centroid(head(v), memory.centroids)).argmax(1)
    return (guess == ty)[ty == 2].float().mean().item(), memory.centroids


def test_15_toy():
    runs = {kind: [toy(seed, kind) for seed in range(5)] for kind in ("CE", "ICCL")}
    few = {kind: float(np.mean([r[0] for r in r_])) for kind, r_ in runs.items()}
    assert few["ICCL"] > few["CE"] + 0.1, few
    cosines = torch.stack([(c @ c.T)[~torch.eye(3, dtype=torch.bool)].mean() for _, c in runs["ICCL"]])
    assert cosines.max() < 0.9 and cosines.mean() < 0.85, cosines              # overlapping classes: not orthogonal, but apart
