"Section 10 of the specification of AD-Net, every value, and what the chapter does not show."
import math
import os
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn, tensor
from torch.testing import assert_close

from arcbook.datasets import ImageSet, data_root
from arcbook.models import backbone
from arcbook.labs.ad_net import LAB
from arcbook.papers import ad_net
from arcbook.papers.ad_net import (ADNet, ADNetLoss, ADNetTerms, FeatureDistillationLoss, Readings, ThreeViews, auto_augment,
                                   feature_distillation, head_lr_ratio, side_box, trim_box)
from arcbook.photographs import read_list
from arcbook.training import Batch, Budget, NonFiniteLoss, fit
from arcbook.views import border_trim, scaled_boxes

f64, inf, nan = torch.float64, math.inf, math.nan
gen = lambda seed=0: torch.Generator().manual_seed(seed)
near = lambda a, b, tol=1e-9: abs(float(a) - b) < tol


def draw(*shape, seed=0, dtype=f64): return torch.randn(*shape, generator=gen(seed), dtype=f64).to(dtype)


# independent reference: one number at a time ---------------------------------------------------------------------

def softmax(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


def loops(source, target, tau=1.0):
    "Section 3 in nested loops: losses [B], and their gradients with respect to source and target [B, D]."
    losses, d_source, d_target = [], [], []
    for s, t in zip(source.tolist(), target.tolist()):
        s, t = [x / tau for x in s], [x / tau for x in t]
        p_s, p_t, log_s, log_t = softmax(s), softmax(t), log_softmax(s), log_softmax(t)
        kl = math.fsum(p * (a - b) for p, a, b in zip(p_t, log_t, log_s))
        losses.append(kl)
        d_source.append([(a - b) / tau for a, b in zip(p_s, p_t)])
        d_target.append([p * (a - b - kl) / tau for p, a, b in zip(p_t, log_t, log_s)])
    return tuple(tensor(x, dtype=f64) for x in (losses, d_source, d_target))


def graded(function, *inputs):
    "The value (summed where it is a vector), and the gradients of all inputs."
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*inputs)
    return value.detach(), *torch.autograd.grad(value.sum(), inputs)


SHAPES = [(5, 7, 1.0, 0), (1, 3, 1.0, 1), (4, 64, 3.0, 2), (3, 2, 10.0, 3), (2, 1, 1.0, 4)]


@pytest.mark.parametrize("B,D,spread,seed", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.07, 2.5])
def test_values_and_gradients_equal_nested_loops(B, D, spread, seed, temperature):
    source, target = spread * draw(B, D, seed=seed), spread * draw(B, D, seed=seed + 100)
    values, d_source, d_target = loops(source, target, temperature)
    got, *gradients = graded(lambda s, t: feature_distillation(s, t, temperature, reduction="none"), source, target)
    assert got.shape == (B,)
    assert_close(got, values, atol=1e-9, rtol=1e-9)                                # asked: 1e-5 and 1e-4
    assert_close(gradients[0], d_source, atol=1e-9, rtol=1e-7)
    assert_close(gradients[1], d_target, atol=1e-9, rtol=1e-7)
    for reduction, total in (("sum", values.sum()), ("mean", values.sum() / B)):
        assert_close(feature_distillation(source, target, temperature, reduction=reduction), total)
    whole = graded(lambda s, t: feature_distillation(s, t, temperature), source, target)
    for a, b in zip(whole, (values.mean(), d_source / B, d_target / B)): assert_close(a, b, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("detach", [False, True])
def test_finite_differences(detach):
    source, target = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    other = target.detach() if detach else target
    assert torch.autograd.gradcheck(lambda s, t: feature_distillation(s, t, 0.8), (source, other) if not detach else (source, other))
    assert torch.autograd.gradcheck(lambda s: feature_distillation(s, other.detach(), 0.8, detach_target=detach), source)
    assert torch.autograd.gradgradcheck(lambda s, t: feature_distillation(s, t), (source, draw(3, 5, seed=1).requires_grad_()))


def test_equals_the_authors_call():
    "kl_div takes log-probabilities of the source first; its batchmean is our mean (pitfall B12)."
    source, target = draw(6, 9), draw(6, 9, seed=1)
    theirs = F.kl_div(source.log_softmax(1), target.softmax(1), reduction="batchmean")
    assert_close(feature_distillation(source, target), theirs)
    lse = lambda x: x.logsumexp(1)                                                 # the identity above T1
    assert_close(feature_distillation(source, target, reduction="none"), lse(source) - lse(target) + (target.softmax(1) * (target - source)).sum(1))
    assert not near(feature_distillation(target, source), float(theirs), 1e-3)


# T1 to T7 --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, f64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_t1_equal_features_cost_exactly_nothing(dtype, scale):
    f = (scale * draw(6, 33)).to(dtype)
    value, *gradients = graded(lambda s, t: feature_distillation(s, t, reduction="none"), f, f)
    assert torch.equal(value, torch.zeros_like(value))
    for g in gradients: assert g.abs().max() < (1e-15 if dtype == f64 else 1e-7)   # to rounding of the softmax
    logits, labels = draw(6, 4, dtype=torch.float32), tensor([0, 1, 2, 3, 0, 1])
    terms = ADNetLoss(0.1)(logits, labels, f, f)
    assert terms.dist == 0 and terms.loss == terms.main == F.cross_entropy(logits, labels)


def test_t2_shifts_change_nothing():
    source, target = draw(5, 8), draw(5, 8, seed=1)
    value, *gradients = graded(lambda s, t: feature_distillation(s, t, reduction="none"), source, target)
    moved = graded(lambda s, t: feature_distillation(s, t, reduction="none"), source + 7 * draw(5, 1, seed=2), target - 30 * draw(5, 1, seed=3))
    for a, b in zip((value, *gradients), moved): assert_close(a, b, atol=1e-12, rtol=1e-10)
    for g in gradients: assert_close(g.sum(1), torch.zeros(5, dtype=f64), atol=1e-14, rtol=0)
    assert (value > 0).all()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from([torch.float32, f64, torch.float16, torch.bfloat16]), st.floats(1e-4, 1e4))
def test_t2_is_never_negative(data, dtype, scale):
    rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    number = st.floats(-1, 1, allow_nan=False)
    source, target = (scale * tensor(data.draw(st.lists(number, min_size=rows * width, max_size=rows * width))).view(rows, width) for _ in range(2))
    values = feature_distillation(source.to(dtype), target.to(dtype), reduction="none")
    assert values.isfinite().all()
    assert (values >= -1e-6 * max(1, scale * 1e-2)).all(), values


S3, T3 = tensor([[0.0, 0]], dtype=f64), tensor([[math.log(3), 0]], dtype=f64)


def test_t3_two_channels():
    assert near(feature_distillation(S3, T3), 0.1308120359, 1e-10) and near(feature_distillation(S3, T3), 0.75 * math.log(3) - math.log(2), 1e-14)
    assert near(feature_distillation(T3, S3), 0.1438410362, 1e-10)                 # the wrong order
    value, d_source, d_target = graded(lambda s, t: feature_distillation(s, t), S3, T3)
    assert_close(d_source, tensor([[-0.25, 0.25]], dtype=f64))
    assert_close(d_target, 3 / 16 * math.log(3) * tensor([[1.0, -1]], dtype=f64))
    assert near(d_target[0, 0], 0.2059898041, 1e-10)


def test_t3_detached_target():
    source, target = S3.clone().requires_grad_(), T3.clone().requires_grad_()
    for loss in (feature_distillation(source, target, detach_target=True), FeatureDistillationLoss(detach_target=True)(source, target),
                 ADNetLoss(1.0, detach_target=True)(torch.zeros(1, 4, dtype=f64), tensor([0]), source, target).loss):
        source.grad = target.grad = None
        loss.backward()
        assert target.grad is None or not target.grad.any()
        assert_close(source.grad, tensor([[-0.25, 0.25]], dtype=f64))


def test_t4_reductions_and_aggregate():
    source, target = torch.cat([S3, S3]), torch.cat([T3, S3])
    for reduction, value in (("mean", 0.0654060180), ("sum", 0.1308120359)):
        assert near(feature_distillation(source, target, reduction=reduction), value, 1e-10)
    assert near(feature_distillation(source, target).item() / 2, 0.0327030090, 1e-10)   # kl_div's "mean", which we do not offer
    logits, labels = torch.zeros(2, 4, dtype=f64), tensor([0, 3])
    terms = ADNetLoss(0.1)(logits, labels, source, target)
    assert isinstance(terms, ADNetTerms) and terms._fields == ("loss", "main", "dist")
    for name, value in dict(loss=1.3928349629, main=1.3862943611, dist=0.0654060180).items(): assert near(getattr(terms, name), value, 1e-10), name
    halved = ADNetLoss(0.1, halve_loss=True)(logits, labels, source, target)
    assert near(halved.loss, 0.6964174815, 1e-10) and halved.main == terms.main and halved.dist == terms.dist
    _, d_source = graded(lambda s: ADNetLoss(0.1)(logits, labels, s, target).loss, source)
    assert_close(d_source, tensor([[-0.0125, 0.0125], [0, 0]], dtype=f64))
    assert ADNetLoss().alpha == 0.1 and near(ADNetLoss()(logits, labels, source, target).loss, 1.3928349629, 1e-10)


def test_t5_three_channels():
    value = feature_distillation(torch.zeros(1, 3, dtype=f64), tensor([[math.log(2), 0, 0]], dtype=f64))
    assert near(value, 0.0588915178, 1e-10) and near(value, math.log(3) - 1.5 * math.log(2), 1e-14)


@pytest.mark.parametrize("dtype,tol", [(f64, 1e-11), (torch.float32, 2e-6)])
def test_t6_a_wide_network(dtype, tol):
    one = torch.zeros(1, 2048, dtype=dtype)
    one[0, 0] = 1
    value = feature_distillation(torch.zeros(1, 2048, dtype=dtype), one)
    exact = math.log(2048) - math.log(math.e + 2047) + math.e / (math.e + 2047)
    assert near(exact, 4.8752035e-4, 1e-11) and near(value, exact, tol)
    near_uniform, zero = 1e-3 * draw(1, 2048), torch.zeros(1, 2048, dtype=f64)
    assert_close(feature_distillation(zero, near_uniform), near_uniform.var(correction=0) / 2, rtol=1e-2, atol=0)


def test_t7_temperature():
    at = lambda tau: float(feature_distillation(S3, T3, tau))
    assert near(at(2.0), 0.0363407829, 1e-10) and near(4 * at(2.0), 0.1453631315, 1e-9)
    assert near(at(1.0), 0.1308120359, 1e-10) and near(float(feature_distillation(S3, T3)), at(1.0), 1e-16)
    assert near(1e8 * at(1e4), 0.1508686201, 1e-4) and near(math.log(3) ** 2 / 8, 0.1508686201, 1e-10)
    assert near(FeatureDistillationLoss(temperature=2.0)(S3, T3), at(2.0), 1e-16)
    assert near(at(1), at(1.0), 1e-16)                                             # whole numbers are numbers


# precisions, layout, extremes, compilation ----------------------------------------------------------------------------

def test_features_and_logits_of_different_precisions():
    source, target, logits, labels = draw(6, 40), draw(6, 40, seed=1), draw(6, 4, seed=2), torch.arange(6) % 4
    exact = ADNetLoss()(logits, labels, source, target).loss
    for a, b, c in ((torch.float16, torch.float32, torch.float32), (torch.float32, torch.bfloat16, torch.float16)):
        assert_close(ADNetLoss()(logits.to(c), labels, source.to(a), target.to(b)).loss.double(), exact, atol=1e-2, rtol=1e-2)


def test_half_precision_loses_no_small_divergence():
    "Two nearly equal features: in half precision the softmax of 2048 channels would be 0 or all alike."
    source = draw(4, 2048)
    target = source + 0.05 * draw(4, 2048, seed=1)
    for dtype in (torch.float16, torch.bfloat16):
        s, t = source.to(dtype), target.to(dtype)
        assert_close(feature_distillation(s, t).double(), feature_distillation(s.double(), t.double()), rtol=2e-3, atol=0)


def test_layout_does_not_matter():
    source, target = draw(6, 10, seed=1), draw(6, 10, seed=2)
    expected = graded(lambda s, t: feature_distillation(s, t, reduction="none"), source, target)
    for way in (lambda x: x.T.contiguous().T, lambda x: x.repeat_interleave(2, 1)[:, ::2], lambda x: torch.cat([x, x])[:6]):
        assert_close(graded(lambda s, t: feature_distillation(way(s), way(t), reduction="none"), source, target), expected)
    row = draw(1, 10)
    spread = feature_distillation(row.expand(6, 10), target, reduction="none")
    assert_close(spread, feature_distillation(row.repeat(6, 1), target, reduction="none"))
    before = source.clone(), target.clone()
    feature_distillation(source, target)
    assert torch.equal(source, before[0]) and torch.equal(target, before[1])       # nothing in place


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, f64])
def test_degenerate_batches(dtype):
    source, target = draw(3, 5).to(dtype), draw(3, 5, seed=1).to(dtype)
    each = feature_distillation(source, target, reduction="none")
    assert_close(feature_distillation(source[:1], target[:1]), each[0])            # batch of one
    for B in (1, 4):                                                               # one channel: the only distribution there is
        narrow = graded(lambda s, t: feature_distillation(s, t), draw(B, 1).to(dtype), draw(B, 1, seed=1).to(dtype))
        for x in narrow: assert torch.equal(x, torch.zeros_like(x))
    empty = source[:0].clone().requires_grad_()
    for reduction in ("mean", "sum"):
        loss = feature_distillation(empty, target[:0], reduction=reduction)
        assert loss == 0
        loss.backward()
    assert feature_distillation(empty, target[:0], reduction="none").shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, f64])
@pytest.mark.parametrize("scale", [1e4, 6e4])
def test_extreme_features(dtype, scale):
    source, target = (scale * tensor([[1.0, -1, 0.5], [-1, 1, 1], [0, 0, 0]], dtype=f64)).to(dtype), (scale * tensor([[-1.0, 1, 0.5], [1, -1, -1], [1, -1, 0]], dtype=f64)).to(dtype)
    values, d_source, d_target = loops(source, target)
    got = graded(lambda s, t: feature_distillation(s, t, reduction="none"), source, target)
    assert_close(got[0].double(), values, rtol=1e-6, atol=1e-6)
    assert_close(got[1].double(), d_source, rtol=1e-3, atol=1e-3)
    assert got[2].isfinite().all() and torch.equal(got[2], torch.zeros_like(got[2])) == (not d_target.any())


def test_no_finite_input_gives_nan():
    "A sum beyond float32 is infinite, as arithmetic has it; it is not 0 times infinity."
    big = 3e38
    for source, target in (((big, -big), (big, big)), ((-big, big), (big, -big)), ((0, big), (big, 0)), ((big, big), (-big, -big))):
        source, target = tensor([source], dtype=torch.float32), tensor([target], dtype=torch.float32)
        exact = float(loops(source, target)[0])
        value = float(feature_distillation(source, target))
        assert not math.isnan(value)
        if exact < 3e38: assert_close(value, exact, rtol=1e-6, atol=0)


# T17 -------------------------------------------------------------------------------------------------------------

FAR_S, FAR_T = tensor([[3e38, -3e38]]), tensor([[3e38, 3e38]])                     # finite features, infinitely far apart in float32
LOGITS, LABELS = tensor([[1.0, 0.3, -0.2]]), tensor([1])


@pytest.mark.parametrize("alpha", [0.1, 0.0, 5.0])
def test_t17_an_infinite_distillation_is_left_out(alpha):
    assert feature_distillation(FAR_S, FAR_T) == inf
    z, s, t = (x.clone().requires_grad_() for x in (LOGITS, FAR_S, FAR_T))
    terms = ADNetLoss(alpha)(z, LABELS, s, t)
    main = F.cross_entropy(LOGITS, LABELS)
    assert terms.loss == terms.main == main
    d_z, d_s, d_t = torch.autograd.grad(terms.loss, (z, s, t), allow_unused=True)
    assert_close(d_z, graded(lambda z: F.cross_entropy(z, LABELS), LOGITS)[1])
    for g in (d_s, d_t): assert g is None or not g.any(), g                        # and pushes nothing: no 0 * inf in the gradient


def test_t17_halved_form():
    terms, main = ADNetLoss(0.1, halve_loss=True)(LOGITS, LABELS, FAR_S, FAR_T), F.cross_entropy(LOGITS, LABELS)
    assert terms.main == main and terms.loss in (main, main / 2)                   # the specification leaves open which


def test_nan_is_not_hidden():
    "Pitfall B6: the code guards against infinity only. NaN must come out, or be refused by name."
    for source, target in ((tensor([[nan, 0.0]]), tensor([[0.0, 1.0]])), (tensor([[0.0, 1.0]]), tensor([[nan, 0.0]])), (tensor([[inf, inf]]), tensor([[0.0, 1.0]]))):
        with pytest.raises(ValueError, match="source|target"): ADNetLoss()(LOGITS[:, :2], LABELS, source, target)
        with pytest.raises(ValueError, match="(source|target) must be finite, got NaN or inf"): feature_distillation(source, target)


Z, Y, S, T = draw(4, 3), tensor([0, 1, 2, 0]), draw(4, 6, seed=1), draw(4, 6, seed=2)


@pytest.mark.parametrize("call,message", [
    (lambda: feature_distillation(S[0], T), "source must"),
    (lambda: feature_distillation(S, T[0]), "target must"),
    (lambda: feature_distillation(S[None], T[None]), "source must"),
    (lambda: feature_distillation(S.tolist(), T), "source must be a tensor"),
    (lambda: feature_distillation(S, None), "target must be a tensor"),
    (lambda: feature_distillation(S.long(), T), "source must be floating"),
    (lambda: feature_distillation(S, T.long()), "target must be floating"),
    (lambda: feature_distillation(S.to(torch.complex64), T), "source must be floating"),
    (lambda: feature_distillation(S, T[:3]), r"target must have shape \[4, 6\], got \[3, 6\]"),
    (lambda: feature_distillation(S, T[:, :5]), r"target must have shape \[4, 6\], got \[4, 5\]"),
    (lambda: feature_distillation(S, T[:1]), "target must have shape"),                    # no silent broadcasting
    (lambda: feature_distillation(S, T[:, :1]), "target must have shape"),
    (lambda: feature_distillation(S / 0, T), "source must be finite"),
    (lambda: feature_distillation(S, T * nan), "target must be finite"),
    (lambda: feature_distillation(S, T, 0.0), "temperature must be > 0"),
    (lambda: feature_distillation(S, T, -1), "temperature must be > 0"),
    (lambda: feature_distillation(S, T, nan), "temperature must be > 0"),
    (lambda: feature_distillation(S, T, inf), "temperature must be > 0"),
    (lambda: feature_distillation(S, T, "1"), "temperature must be > 0"),
    (lambda: feature_distillation(S, T, reduction="batchmean"), "reduction must be"),
    (lambda: FeatureDistillationLoss(temperature=0), "temperature must be > 0"),
    (lambda: FeatureDistillationLoss(reduction="avg"), "reduction must be"),
    (lambda: ADNetLoss(-0.1), "alpha must be"),
    (lambda: ADNetLoss(nan), "alpha must be"),
    (lambda: ADNetLoss(inf), "alpha must be"),
    (lambda: ADNetLoss("0.1"), "alpha must be"),
    (lambda: ADNetLoss()(Z[0], Y, S, T), "logits must"),
    (lambda: ADNetLoss()(Z, Y[:2], S, T), "labels must have shape"),
    (lambda: ADNetLoss()(Z, Y.double(), S, T), "labels must be integers"),
    (lambda: ADNetLoss()(Z, Y + 1, S, T), r"labels must lie in 0\.\.2"),
    (lambda: ADNetLoss()(Z, Y - 1, S, T), r"labels must lie in 0\.\.2"),
    (lambda: ADNetLoss()(Z / 0, Y, S, T), "logits must be finite"),
    (lambda: ADNetLoss()(Z, Y, S, T[:2]), "target must have shape"),
    (lambda: ADNetLoss()(Z, Y, S * inf, T), "source must be finite"),
])
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_modules_hold_their_settings():
    loss = FeatureDistillationLoss(0.5, True, "sum")
    assert (loss.temperature, loss.detach_target, loss.reduction) == (0.5, True, "sum")
    assert_close(loss(S, T), feature_distillation(S, T, 0.5, True, "sum"))
    terms = ADNetLoss(0.7)(Z, Y, S, T)
    assert_close(terms.main, F.cross_entropy(Z, Y)), assert_close(terms.dist, feature_distillation(S, T))
    assert_close(terms.loss, terms.main + 0.7 * terms.dist)
    assert not list(ADNetLoss().parameters()) and not ADNetLoss().state_dict()


# T9: clipping ----------------------------------------------------------------------------------------------------

def clipped(gradient, share):
    p = nn.Parameter(torch.zeros_like(gradient))
    p.grad = share * gradient
    torch.nn.utils.clip_grad_norm_([p], 1.0)                                       # what a Budget's clip_norm=1 does
    return p.grad


@pytest.mark.parametrize("norm", [0.01, 0.7, 1.0, 1.2, 1.9, 2.0, 3.0, 500.0])
def test_t9_clipping_at_one(norm):
    g = draw(9)
    g = g * (norm / g.norm())
    full, halved = clipped(g, 1.0), clipped(g, 0.5)
    if norm >= 2: assert_close(full, halved, rtol=2e-6, atol=0)
    elif norm <= 1: assert_close(halved, full / 2, rtol=2e-6, atol=0)
    else: assert_close(halved, full * norm / 2, rtol=2e-6, atol=0)


# T11: head learning rate -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("split,ratio", {1: 100, 2: 50, 3: 33.5, 4: 25, 5: 20, 10: 10, 15: 6.5, 30: 3.5, 50: 2, 100: 1, "1i": 10, "10": 10, "15": 6.5, "100": 1.0}.items())
def test_t11_head_rate(split, ratio):
    assert head_lr_ratio(split) == ratio and isinstance(head_lr_ratio(split), float)


@pytest.mark.parametrize("split", [0, -10, 101, nan, inf, "few", "", None, [10], "1p", True])
def test_t11_what_is_no_split(split):
    with pytest.raises(ValueError, match="split must"): head_lr_ratio(split)


# T13, T14: geometry ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fraction", [0.05, 0.0, 0.1, 0.25])
def test_t13_border_is_exact_for_every_length(fraction):
    share = Fraction(str(fraction))
    for n in range(2, 3000):
        low, high = n * share // 1, n * (1 - share) // 1                           # whole numbers: no rounding of 0.95
        kept = border_trim(torch.empty(1, 1, 1, 1).expand(1, 1, n, n), fraction)
        assert kept.shape[2] == kept.shape[3] == high - low, n


def test_t13_the_worked_example():
    image = (torch.arange(375)[:, None] * 1000 + torch.arange(500)).float()[None, None]
    inside = border_trim(image, 0.05)
    assert inside.shape == (1, 1, 338, 450)
    assert inside[0, 0, 0, 0] == 18 * 1000 + 25 and inside[0, 0, -1, -1] == 355 * 1000 + 474


def crops(height, width, scale, n, unit="side", seed=0):
    "Boxes [n, 4] of `scale` in images of this size; no pixel is looked at."
    return scaled_boxes(torch.empty(1, 1, 1, 1).expand(n, 1, height, width), scale, unit, gen(seed))


@pytest.mark.parametrize("u,width,height", [(0.1, 45, 33), (0.8, 360, 270), (0.85, 382, 287), (0.9, 405, 304)])
def test_t13_sizes_and_offsets(u, width, height):
    boxes = crops(338, 450, (u, u), 20_000)
    assert (boxes[:, 2] == height).all() and (boxes[:, 3] == width).all()
    for start, room in ((boxes[:, 0], 338 - height), (boxes[:, 1], 450 - width)):
        assert start.min() == 0 and start.max() == room                            # both ends are reached (pitfall B14)
        if room < 100: assert start.bincount(minlength=room + 1).min() > 0.6 * len(start) / (room + 1)
    if u == 0.85: assert (338 - height, 450 - width) == (51, 68)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 10**6))
def test_t14_crops_of_any_image(height, width, seed):
    source, target = crops(height, width, (0.1, 0.8), 32, seed=seed), crops(height, width, (0.8, 0.9), 32, seed=seed + 1)
    for boxes in (source, target):
        top, left, high, wide = boxes.unbind(1)
        assert (top >= 0).all() and (left >= 0).all() and (high >= 1).all() and (wide >= 1).all()
        assert (top + high <= height).all() and (left + wide <= width).all()
    assert (target[:, 2] >= source[:, 2]).all() and (target[:, 3] >= source[:, 3]).all()       # the ranges meet at 0.8
    both = (source[:, 2] + target[:, 2] > height) & (source[:, 3] + target[:, 3] > width)
    for start, length in ((0, 2), (1, 3)):
        first, last = torch.maximum(source[:, start], target[:, start]), torch.minimum(source[:, start] + source[:, length], target[:, start] + target[:, length])
        assert (last > first)[both].all()


def test_sides_are_uniform_not_areas():
    n = 40_000
    for unit, scale, mean_area in (("side", (0.1, 0.8), 0.2433), ("side", (0.8, 0.9), 0.7233), ("area", (0.01, 0.65), 0.33)):
        boxes = crops(4000, 4000, scale, n, unit).double()
        assert near((boxes[:, 2] * boxes[:, 3] / 4000**2).mean(), mean_area, 3e-3), unit


# T15: lists ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [199, 98, 99, 0])
def test_t15_the_last_line_keeps_its_label(tmp_path, newline, end, last):
    "Pitfall B1: the code cuts the last character, so that 199 becomes 19 where no newline ends the file."
    lines = ["001.Black_footed_Albatross/a b 1.jpg 0", "002.Laysan_Albatross/x.jpg 10", f"200.Common_Yellowthroat/y.jpg {last}"]
    path = tmp_path / "train_10.txt"
    path.write_bytes((newline.join(lines) + end).encode())
    paths, labels = read_list(path, 200)
    assert labels.tolist() == [0, 10, last]
    assert paths == [line.rpartition(" ")[0] for line in lines]                    # cut at the LAST space


COUNTS = {"CUB_200_2011": (200, dict(train_1i=200, train_10=600, train_15=1000, train_30=1800, train_50=3000, train_100=5994, test=5794)),
          "Stanford Cars": (196, dict(train_1i=196, train_10=920, train_15=1310, train_30=2531, train_50=4123, train_100=8144, test=8041)),
          "FGVC-Aircraft-2013": (100, dict(train_1i=100, train_10=767, train_15=1067, train_30=2067, train_50=3367, train_100=6667, test=3333))}
LAST = {"CUB_200_2011": (199, ("train_1i", "train_10", "train_30", "train_50", "train_100")), "FGVC-Aircraft-2013": (99, ("train_1i", "train_10", "test")),
        "Stanford Cars": (98, ("train_10", "train_15", "train_30", "train_50", "test"))}
OFFICIAL = data_root() / "lists" / "datasets"


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the authors' lists are not in ARCBOOK_DATA")
@pytest.mark.parametrize("folder", COUNTS)
def test_t15_the_official_lists(folder):
    classes, counts = COUNTS[folder]
    lists = {name: read_list(OFFICIAL / folder / "low_data" / f"{name}.txt", classes) for name in counts}
    for name, (paths, labels) in lists.items():
        assert len(paths) == len(set(paths)) == counts[name] and len(labels.unique()) == classes, name
        if name in LAST[folder][1]: assert labels[-1] == LAST[folder][0], name     # one sample each that the code mislabels
    at = {name: set(zip(paths, labels.tolist())) for name, (paths, labels) in lists.items()}
    chain = ["train_1i", "train_10", "train_15", "train_30", "train_50", "train_100"]
    if folder.startswith("FGVC"):
        assert len(at["train_10"] - at["train_30"]) == 536
        chain = ["train_1i", "train_10", "train_15", "train_100"]
    for small, large in zip(chain, chain[1:]): assert at[small] < at[large]
    assert not set(lists["train_100"][0]) & set(lists["test"][0])
    for percent in (15, 30, 50):
        n, some = (lists[f"train_{p}"][1].bincount() for p in (100, percent))
        assert some.tolist() == [-(-percent * int(k) // 100) for k in n]


CUB50 = data_root() / "cub50"


@pytest.mark.skipif(not (CUB50 / "train_10.txt").exists(), reason="cub50 is not in ARCBOOK_DATA")
def test_t15_fifty_birds():
    ten, one, test = (read_list(CUB50 / f"{name}.txt", 50) for name in ("train_10", "train_1i", "test"))
    assert ten[1].bincount().tolist() == [3] * 50 and one[1].tolist() == list(range(50)) and len(test[0]) == 1389
    assert set(one[0]) < set(ten[0]) and not set(ten[0]) & set(test[0])


# the three views -------------------------------------------------------------------------------------------------

PLAIN_VIEWS = dict(colour="none", flip=False, mean=(0.0,) * 3, std=(1.0,) * 3)      # nothing but geometry
noise = lambda n=4, height=24, width=24, seed=0: torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=gen(seed))


@pytest.mark.parametrize("height,width,box", [(375, 500, (18, 25, 356, 475)), (100, 20, (5, 1, 95, 19)), (20, 20, (1, 1, 19, 19)), (9, 5, (0, 0, 8, 4)), (2, 2, (0, 0, 1, 1))])
def test_t13_trim_box(height, width, box):
    assert tuple(trim_box(height, width)) == box
    assert tuple(trim_box(height, width, 0)) == (0, 0, height, width)
    image = torch.arange(height * width).float().view(1, 1, height, width)
    top, left, bottom, right = box
    assert torch.equal(border_trim(image, 0.05), image[..., top:bottom, left:right])


@pytest.mark.parametrize("u,width,height", [(0.1, 45, 33), (0.8, 360, 270), (0.85, 382, 287), (0.9, 405, 304)])
def test_t13_side_box(u, width, height):
    assert tuple(side_box(338, 450, u)) == (height, width)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 700), st.integers(1, 700), st.floats(0.01, 1.0), st.sampled_from(["side", "area"]))
def test_t13_side_box_of_any_image(height, width, u, unit):
    high, wide = side_box(height, width, u, unit)
    assert isinstance(high, int) and isinstance(wide, int) and 1 <= high <= height and 1 <= wide <= width
    share = u if unit == "side" else math.sqrt(u)
    assert (high, wide) == (max(1, math.floor(share * height)), max(1, math.floor(share * width)))
    assert side_box(height, width, 1.0, unit) == (height, width)


@pytest.mark.parametrize("call,message", [
    (lambda: trim_box(10, 10, 0.5), r"fraction must be in \[0, 0.5\), got 0.5"), (lambda: trim_box(10, 10, -0.1), "fraction must"), (lambda: trim_box(10, 10, nan), "fraction must"),
    (lambda: side_box(10, 10, 0.0), "u must"), (lambda: side_box(10, 10, 1.5), "u must"), (lambda: side_box(10, 10, nan), "u must"), (lambda: side_box(10, 10, 0.5, "sides"), "unit must"),
    (lambda: side_box(0, 10, 0.5), "height must"), (lambda: trim_box(0, 10), "height must"),
    (lambda: ThreeViews(8)(noise()[0]), "images must"), (lambda: ThreeViews(8)(noise().int()), "images must"), (lambda: ThreeViews(8, crops="five")(noise()), "crops must"),
    (lambda: ThreeViews(8, source=(0.0, 0.8))(noise()), "source|scale"), (lambda: ThreeViews(8, unit="px")(noise()), "unit must"), (lambda: ThreeViews(0)(noise()), "size must"),
    (lambda: ThreeViews(8, colour="red")(noise()), "colour|policy"), (lambda: ThreeViews(8, border_trim=0.6)(noise()), "border_trim|fraction"),
])
def test_bad_geometry_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize("height,width", [(1, 1), (1, 30), (2, 3), (5, 9), (9, 9), (10, 10), (40, 13), (24, 24)])
@pytest.mark.parametrize("crops,n", [("double_crop", 3), ("single_crop", 2), ("vanilla", 1)])
def test_views_of_any_image(height, width, crops, n):
    images = noise(3, height, width)
    before = images.clone()
    for B in (3, 1):
        views = ThreeViews(16, crops)(images[:B], gen(1))
        assert len(views) == n
        for view in views: assert view.shape == (B, 3, 16, 16) and view.dtype == torch.float32 and view.isfinite().all()
    plain = ThreeViews(16, crops).plain(images)
    assert plain.shape == (3, 3, 16, 16) and plain.isfinite().all()
    assert torch.equal(images, before)


def test_views_draw_from_their_generator_only():
    views, images = ThreeViews(16), noise()
    torch.manual_seed(1)
    first = views(images, gen(5))
    torch.manual_seed(2)
    for a, b in zip(first, views(images, gen(5))): assert torch.equal(a, b)
    for a, b in zip(first, views(images, gen(6))): assert not torch.equal(a, b)


def test_main_view_is_a_window_of_the_whole_squared_region():
    "Border off, square at 8/7 of the final size without keeping the aspect, a random window."
    images, size = noise(40, 60, 90), 28
    top, left, bottom, right = trim_box(60, 90)
    squared = F.interpolate(images[..., top:bottom, left:right].float() / 255, (32, 32), mode="bilinear", antialias=True)
    main = ThreeViews(size, "vanilla", **PLAIN_VIEWS)(images, gen())[0]
    corners = set()
    for i in range(40):
        gaps = {(a, b): float((squared[i, :, a:a + size, b:b + size] - main[i]).abs().max()) for a in range(5) for b in range(5)}
        assert min(gaps.values()) < 1e-5
        corners.add(min(gaps, key=gaps.get))
    assert {a for a, _ in corners} == {b for _, b in corners} == set(range(5))     # the last offset too


def test_view_for_testing_is_resize_256_centre_224():
    images = noise(2, 70, 101)
    top, left, bottom, right = trim_box(70, 101)
    squared = F.interpolate(images[..., top:bottom, left:right].float() / 255, (256, 256), mode="bilinear", antialias=True)
    mean, std = (tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert_close(ThreeViews().plain(images), (squared[..., 16:240, 16:240] - mean) / std, atol=1e-4, rtol=0)


def extent(view, channel):
    "Range of a coordinate that a view shows, corrected for the half pixels at both ends."
    return (view[:, channel].amax((1, 2)) - view[:, channel].amin((1, 2))) * view.shape[-1] / (view.shape[-1] - 1)


@pytest.mark.parametrize("unit,source,target", [("side", (0.1, 0.8), (0.8, 0.9)), ("area", (0.01, 0.65), (0.65, 0.85)), ("side", (0.5, 0.5), (0.9, 0.9))])
def test_scales_of_the_crops(unit, source, target):
    "Seen on an image whose channels are its own coordinates."
    H, W, n = 300, 400, 150
    image = torch.stack([torch.arange(H)[:, None].expand(H, W) / H, torch.arange(W).expand(H, W) / W, torch.zeros(H, W)]).expand(n, 3, H, W)
    _, small, large = ThreeViews(12, source=source, target=target, unit=unit, **PLAIN_VIEWS)(image, gen())
    for view, scale in ((small, source), (large, target)):
        sides = tuple(x if unit == "side" else math.sqrt(x) for x in scale)
        rows, cols = extent(view, 0) / 0.9, extent(view, 1) / 0.9                  # shares of the region, which is 0.9 of the image
        assert (rows > sides[0] - 0.02).all() and (rows < sides[1] + 0.02).all()
        assert_close(rows, cols, atol=0.02, rtol=0)                                # one u for both sides
        if sides[0] < sides[1]: assert rows.min() < sides[0] + 0.03 and rows.max() > sides[1] - 0.03
        centre = view[:, 0].mean((1, 2))
        assert view[:, 0].min() > 0.03 and view[:, 0].max() < 0.97                 # never the border
        assert centre.std() > 0.1 * (1 - sides[1])                                # anywhere in the region
    assert abs(torch.corrcoef(torch.stack([small[:, 0].mean((1, 2)), large[:, 0].mean((1, 2))]))[0, 1]) < 0.2   # each at its own place


def test_colour_and_mirror_are_drawn_for_each_view():
    n = 200
    ramp = torch.arange(64).expand(n, 3, 64, 64).to(torch.uint8) * 4
    views = ThreeViews(16, colour="none", mean=(0.0,) * 3, std=(1.0,) * 3)(ramp, gen())
    mirrored = torch.stack([(v[..., -1] < v[..., 0]).all((1, 2)) for v in views])
    assert ((mirrored.float().mean(1) - 0.5).abs() < 0.12).all()
    assert len({tuple(column) for column in mirrored.T.tolist()}) == 8             # all combinations
    flat = torch.full((n, 3, 32, 32), 128, dtype=torch.uint8)
    bright = torch.stack([v.mean((1, 2, 3)) for v in ThreeViews(16, mean=(0.0,) * 3, std=(1.0,) * 3)(flat, gen())])
    assert (bright.std(1) > 0.05).all() and torch.corrcoef(bright).fill_diagonal_(0).abs().max() < 0.2
    assert bright.min() > 0.5 * 0.6 * 0.6 - 0.01 and bright.max() < 0.5 * 1.4 * 1.4 + 0.01      # factors 0.6 to 1.4
    assert ((bright - 128 / 255).abs() > 1e-6).all()                               # always jittered
    red = tensor([200, 60, 60], dtype=torch.uint8)[None, :, None, None].expand(40, 3, 32, 32)
    for view in ThreeViews(16, mean=(0.0,) * 3, std=(1.0,) * 3)(red, gen()):
        assert (view[:, 1] - view[:, 2]).abs().max() < 1e-5 and (view[:, 0] - view[:, 1]).flatten(1).mean(1).std() > 0.02   # saturation, but no hue
    grey = noise(20, 32, 32)[:, :1].expand(-1, 3, -1, -1)
    for view in ThreeViews(16, mean=(0.0,) * 3, std=(1.0,) * 3)(grey, gen()): assert (view.amax(1) - view.amin(1)).max() < 1e-5


@pytest.mark.parametrize("policy", ["official24", "torchvision"])
def test_auto_augment(policy):
    images = noise(60, 16, 16).float() / 255
    out = auto_augment(images, policy, gen())
    assert out.shape == images.shape and out.min() >= 0 and out.max() <= 1 and out.dtype == torch.float32
    assert torch.equal(out, auto_augment(images, policy, gen())) and 0.5 < (out != images).flatten(1).any(1).float().mean() <= 1
    assert torch.equal(auto_augment(images[:7], policy, gen(3))[:1], auto_augment(images[:7], policy, gen(3))[:1])
    views = ThreeViews(16, colour=policy)(noise(6, 32, 32), gen())
    assert all(v.isfinite().all() and v.shape == (6, 3, 16, 16) for v in views)


def test_rotations_of_the_official_policy_have_one_sign(monkeypatch):
    seen = []
    monkeypatch.setattr(ad_net, "_policy_step", lambda image, name, level, sign: seen.append((name, level, sign)) or image)
    images = noise(1500, 4, 4).float() / 255
    auto_augment(images, "official24", gen())
    assert {sign for name, _, sign in seen if name == "Rotate"} == {1.0} and {sign for name, _, sign in seen if name == "ShearX"} == {1.0, -1.0}
    seen.clear()
    auto_augment(images, "torchvision", gen())
    assert {sign for name, _, sign in seen if name == "Rotate"} == {1.0, -1.0}


def test_the_official_policy_lacks_the_last_pair(monkeypatch):
    "U11: 24 of the 25 pairs; counted by how often Equalize is drawn, which the last pair is made of."
    from torchvision.transforms import AutoAugment
    table, seen, n = AutoAugment().policies, [], 4000
    assert table[24] == (("Equalize", 0.8, None), ("Equalize", 0.6, None)) or "Equalize" not in str(table[24])
    name = table[24][0][0]
    monkeypatch.setattr(ad_net, "_policy_step", lambda image, step, level, sign: seen.append(step) or image)
    for policy, length in (("official24", 24), ("torchvision", 25)):
        seen.clear()
        auto_augment(torch.zeros(n, 3, 1, 1), policy, gen())
        rate = {k: sum(p for pair in table[:k] for step, p, _ in pair if step == name) / k for k in (24, 25)}
        counted = seen.count(name) / n
        assert abs(counted - rate[length]) < abs(counted - rate[49 - length]), (counted, rate)


# the method ------------------------------------------------------------------------------------------------------

class Probe(nn.Module):
    "A small convolution with BatchNorm that keeps what went in and what came out."
    def __init__(self, width=6):
        super().__init__()
        self.num_features, self.seen, self.out = width, [], []
        self.conv, self.bn = nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width)

    def forward(self, x):
        x = x.detach().requires_grad_(torch.is_grad_enabled())
        y = self.bn(self.conv(x)).relu().mean((2, 3))
        self.seen.append(x), self.out.append(y)
        return y


SMALL = dict(weights="none", size=16, backbone="resnet8")


def probed(classes=4, seed=0, **changes):
    torch.manual_seed(seed)
    return ADNet(classes, "shapes-fine", Readings(**{**SMALL, **changes}), backbone=Probe())


def fresh(classes=3, seed=0, data="shapes-fine", **changes):
    torch.manual_seed(seed)
    return ADNet(classes, data, Readings(**{**SMALL, **changes}))


def some(n=6, classes=4, seed=0, size=24):
    return Batch(noise(n, size, size, seed), torch.randint(0, classes, (n,), generator=gen(seed)), torch.arange(n))


def step_of(method, batch=None, seed=0):
    return method.train()(batch or some(), 1, gen(seed))


PASSES = {"plain": 1, "plain+trim": 1, "plain+trim+head lr": 1, "three views CE": 3, "alpha 0": 3, "AD-Net": 3, "detach target": 3, "single crop": 2, "own head rate off": 3}


@pytest.mark.parametrize("variant,passes", PASSES.items())
def test_passes_of_each_rung(variant, passes):
    method = probed(**LAB.variants[variant])
    terms = step_of(method)
    probe = method.network.backbone
    assert len(probe.seen) == passes == int(probe.bn.num_batches_tracked) and {len(x) for x in probe.seen} == {6}
    assert terms.loss.isfinite() and terms._fields == ("loss", "main", "dist")
    if passes == 1 or variant == "three views CE": assert terms.dist == 0 and terms.loss == terms.main
    else: assert terms.dist > 0
    before = len(probe.seen)
    method.predict(some().images)
    assert len(probe.seen) == before + 1                                           # one pass at test time
    assert int(probe.bn.num_batches_tracked) == passes


def test_order_is_main_source_target():
    method = probed()
    views = method.views(some().images, gen(3))
    terms = step_of(method, seed=3)
    for seen, view in zip(method.network.backbone.seen, views, strict=True): assert torch.equal(seen, view)
    f_m, f_s, f_t = method.network.backbone.out
    assert_close(terms.dist, feature_distillation(f_s, f_t)), assert_close(terms.main, F.cross_entropy(method.network.classifier(f_m), some().labels))
    assert_close(terms.loss, terms.main + 0.1 * terms.dist)


def test_single_crop_takes_the_main_view_as_target():
    method = probed(crops="single_crop")
    terms = step_of(method)
    f_m, f_s = method.network.backbone.out
    assert_close(terms.dist, feature_distillation(f_s, f_m))
    assert all(g.any() for g in torch.autograd.grad(terms.dist, method.network.backbone.seen))     # both are trained


def test_three_views_with_labels_on_all():
    method = probed(labels_on="all")
    terms = step_of(method)
    losses = [F.cross_entropy(method.network.classifier(f), some().labels) for f in method.network.backbone.out]
    assert_close(terms.loss, sum(losses) / 3)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 50.0])
@pytest.mark.parametrize("detach", [False, True])
def test_t8_gradient_routing(alpha, detach):
    method = probed(alpha=alpha, detach_target=detach)
    terms = step_of(method)
    head, probe = method.network.classifier, method.network.backbone
    terms.loss.backward()
    f_m = probe.out[0].detach()
    p = (f_m @ head.weight.T + head.bias).detach().softmax(1) - F.one_hot(some().labels, 4)
    assert_close(head.weight.grad, p.T @ f_m / 6, atol=1e-6, rtol=1e-5)            # cross entropy of the main view, whatever alpha
    assert_close(head.bias.grad, p.mean(0), atol=1e-6, rtol=1e-5)
    reached = [x.grad is not None and bool(x.grad.any()) for x in probe.seen]
    assert reached == [True, alpha > 0, alpha > 0 and not detach]


def test_t8_alpha_0_moves_only_statistics():
    one, three, full = probed(crops="vanilla"), probed(alpha=0.0), probed()
    batch = some()
    methods = (one, three, full)
    fixed = one.views(batch.images, gen()) + probed().views(batch.images, gen())[1:]
    for method in methods: method.views = lambda images, generator, n=3 if method is not one else 1: fixed[:n]
    for method in methods: step_of(method, batch).loss.backward()
    gradients = [[p.grad for p in m.parameters()] for m in methods]
    for a, b in zip(*gradients[:2]): assert_close(a, b)
    assert not all(torch.allclose(a, b) for a, b in zip(gradients[0], gradients[2]))
    assert not torch.allclose(one.network.backbone.bn.running_mean, three.network.backbone.bn.running_mean)


def test_t10_batch_norm_sees_one_view_at_a_time():
    method = probed()
    alone = Probe().train()
    alone.load_state_dict(method.network.backbone.state_dict())
    step_of(method)
    probe = method.network.backbone
    for x, f in zip(probe.seen, probe.out): assert torch.equal(alone(x), f)        # m, s, t one after the other: the same features ...
    for name, value in probe.state_dict().items(): assert torch.equal(value, alone.state_dict()[name]), name   # ... and the same running statistics
    assert probe.bn.num_batches_tracked == 3


def test_t10_other_crops_leave_the_main_view_alone():
    out = []
    for scale in ((0.1, 0.2), (0.6, 0.8)):
        method = probed(crop_source=scale, crop_target=(scale[1], 0.9))
        step_of(method)
        out.append(method.network.backbone.out)
    assert torch.equal(out[0][0], out[1][0]) and not torch.allclose(out[0][1], out[1][1])


def test_b11_weights_of_the_views_in_the_running_statistics():
    bn, values = nn.BatchNorm1d(1, momentum=0.1), tensor([1.0, 10.0, 100.0])
    for _ in range(400):
        for v in values: bn(torch.full((2, 1), float(v)))
    share = tensor([0.2989, 0.3321, 0.3690])
    assert_close(bn.running_mean[0], (share * values).sum(), rtol=1e-3, atol=0)


def test_joint_pass_mixes_the_views():
    method = probed(passes="joint")
    step_of(method)
    probe = method.network.backbone
    assert len(probe.seen) == 1 and len(probe.seen[0]) == 18 and probe.bn.num_batches_tracked == 1
    separate = probed()
    step_of(separate)
    for i, (x, f) in enumerate(zip(separate.network.backbone.seen, separate.network.backbone.out)):
        assert torch.equal(probe.seen[0][6 * i:6 * i + 6], x)
        assert not torch.allclose(probe.out[0][6 * i:6 * i + 6], f, atol=1e-4)


def test_labels_do_not_touch_the_distillation():
    batch = some()
    terms = [step_of(probed(), batch._replace(labels=y)) for y in (batch.labels, batch.labels.flip(0), torch.zeros_like(batch.labels))]
    assert len({t.dist.item() for t in terms}) == 1 and len({t.main.item() for t in terms}) > 1


@pytest.mark.parametrize("trim", [0.05, 0.0])
def test_border_is_off_in_training_and_testing_alike(trim):
    method, images = probed(border_trim=trim, crop_target=(1.0, 1.0), crop_source=(1.0, 1.0)), noise(4, 40, 40)
    other = images.clone()
    other[..., :2, :], other[..., 38:, :], other[..., :, :2], other[..., :, 38:] = 0, 255, 255, 0
    assert torch.equal(images[..., 2:38, 2:38], other[..., 2:38, 2:38])
    same = [torch.equal(a, b) for a, b in zip(method.views(images, gen()), method.views(other, gen()))]
    same += [torch.equal(method.predict(images), method.predict(other)), torch.equal(method.embed(images), method.embed(other))]
    assert same == [trim > 0] * 5


def test_t16_inference_is_the_plain_network():
    method = fresh(seed=1)
    for p in method.parameters(): p.data.add_(0.05 * draw(*p.shape, dtype=torch.float32))
    images, view = noise(5), method.views.plain(noise(5))
    torch.manual_seed(0)
    body = backbone("resnet8")
    body.load_state_dict(method.network.backbone.state_dict())
    features = body.eval()(view)
    head = method.network.classifier
    method.train()
    assert_close(method.predict(images), features @ head.weight.T + head.bias), assert_close(method.embed(images), features)
    output = method.output(images)
    assert not output.logits.requires_grad and torch.equal(output.logits, method.predict(images)) and torch.equal(output.features, method.embed(images))
    assert sum(p.numel() for p in method.parameters()) == sum(p.numel() for p in body.parameters()) + 3 * 64 + 3
    expected = method.predict(images)
    for changes in (*LAB.variants.values(), dict(crop_source=(0.5, 0.6), crop_unit="area", alpha=7.0, halve_loss=True, colour="none")):
        other = fresh(seed=2, **{**changes, "border_trim": 0.05})
        other.load_state_dict(method.state_dict())
        assert torch.equal(other.predict(images), expected)
    assert torch.equal(method.predict(images[2:3]), method.predict(images)[2:3]) or torch.allclose(method.predict(images[2:3]), expected[2:3], atol=1e-6)


def test_predicting_changes_nothing():
    method = fresh()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    state = torch.get_rng_state()
    method.predict(noise()), method.embed(noise())
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_start_of_the_classifier():
    torch.manual_seed(0)
    head = ADNet(200, "cub200-10", Readings(**SMALL)).network.classifier
    assert not head.bias.any() and abs(float(head.weight.detach().mean())) < 1e-3 and abs(float(head.weight.detach().std()) - 0.01) < 5e-4


# architectures: the head's learning rate reaches every one of them (pitfall B9) --------------------------------------

def bodies():
    from torchvision.models import DenseNet, VisionTransformer
    from torchvision.models.resnet import BasicBlock, ResNet
    from arcbook.models import remove_classifier
    yield "resnet", remove_classifier(ResNet(BasicBlock, [1, 1, 1, 1]))
    yield "vit", remove_classifier(VisionTransformer(32, 16, 1, 2, 16, 32))
    yield "densenet", remove_classifier(DenseNet(4, (1, 1), 8))
    yield "ours", backbone("resnet8")


@pytest.mark.parametrize("kind", ["resnet", "vit", "densenet", "ours"])
def test_t11_head_rate_on_every_architecture(kind):
    data, moved = small_set(size=32), {}
    for ratio in (1.0, 6.5):
        torch.manual_seed(0)
        method = ADNet(3, "shapes-fine", Readings(weights="none", size=32, head_lr=ratio), backbone=dict(bodies())[kind])
        groups = method.parameter_groups()
        owned = [p for g in groups for p in g["params"]]
        assert len(owned) == len({id(p) for p in owned}) == len(list(method.parameters()))
        assert [g["params"] for g in groups if g.get("lr_scale", 1.0) == ratio][-1:] == [list(method.network.classifier.parameters())]
        before = {k: v.clone() for k, v in method.named_parameters()}
        fit(method, data, Budget("smoke", 1, 28, lr=1e-3, momentum=0.0, weight_decay=0.0, schedule="constant"))
        moved[ratio] = {k: v.detach() - before[k] for k, v in method.named_parameters()}
        images = noise(2, 32, 32)
        assert method.predict(images).shape == (2, 3) and method.embed(images).shape[1] == method.network.backbone.num_features
    for k, delta in moved[1.0].items():
        assert_close(moved[6.5][k], (6.5 if "classifier" in k else 1.0) * delta, rtol=1e-3, atol=1e-8)
    assert any(v.any() for k, v in moved[1.0].items() if "classifier" not in k)


@pytest.mark.parametrize("name,width,parameters", [("resnet50", 2048, 23_508_032), ("densenet169", 1664, 12_484_480), ("vit_b_16", 768, 85_798_656), ("resnet18", 512, 11_176_512)])
def test_backbones_by_name(name, width, parameters):
    with torch.device("meta"): method = ADNet(200, "cub200-10", Readings(weights="none", backbone=name))
    assert method.network.backbone.num_features == width
    assert sum(p.numel() for p in method.parameters()) == parameters + 200 * (width + 1)
    head = [g for g in method.parameter_groups() if g.get("lr_scale", 1.0) == 10.0]
    assert len(head) == 1 and [list(p.shape) for p in head[0]["params"]] == [[200, width], [200]]


# epochs ----------------------------------------------------------------------------------------------------

def test_incomplete_batches_are_kept():
    "No image is dropped: the official loader keeps the last batch, and each epoch has as many steps as its."
    method, labels = fresh(), torch.zeros(1000, dtype=torch.long)
    order = method.epoch_indices(labels, 24, gen())
    assert order.shape == (42, 24) and set(order.flatten().tolist()) == set(range(1000))
    assert order[:41].unique().numel() == 41 * 24
    assert torch.equal(order, method.epoch_indices(labels, 24, gen())) and not torch.equal(order, method.epoch_indices(labels, 24, gen(1)))
    assert method.epoch_indices(labels[:7], 24, gen()).sort().values.tolist() == [list(range(7))]
    assert method.epoch_indices(labels[:24], 24, gen()).shape == (1, 24)
    assert method.epoch_indices(labels[:1], 24, gen()).tolist() == [[0]]


# readings ---------------------------------------------------------------------------------------------------------

BAD = [dict(alpha=-1.0), dict(alpha=nan), dict(alpha=inf), dict(alpha="0.1"), dict(temperature=0.0), dict(temperature=-1), dict(crops="triple"), dict(crops=None), dict(labels_on="none"),
       dict(crop_source=(0.0, 0.8)), dict(crop_source=(0.8, 0.1)), dict(crop_source=0.5), dict(crop_source=(0.1, 0.2, 0.3)), dict(crop_source=("a", "b")), dict(crop_target=(0.8, 1.1)), dict(crop_target=(nan, 0.9)),
       dict(crop_unit="pixel"), dict(border_trim=-0.01), dict(border_trim=0.5), dict(border_trim=nan), dict(border_trim="5%"), dict(head_lr=0.0), dict(head_lr=-1), dict(head_lr=nan), dict(head_lr=inf), dict(head_lr="10"),
       dict(passes="both"), dict(aircraft_eval="ten_crop"), dict(report="median"), dict(eval_every=0), dict(eval_every=2.5), dict(colour="gray"), dict(size=0), dict(size=16.5), dict(size="16"), dict(decode=-1),
       dict(milestones=(0.5, 1.5)), dict(milestones=(-0.5,)), dict(milestones=0.5), dict(lr=0.0), dict(lr=-0.1), dict(steps=0), dict(steps=1.5), dict(backbone="resnet9"), dict(backbone="lenet"),
       dict(weights="own:"), dict(weights="own:nothing-here"), dict(weights=""), dict(weights=None)]


def test_readings_default_to_section_8():
    r = Readings()
    assert (r.alpha, r.detach_target, r.halve_loss, r.crop_source, r.crop_target, r.crop_unit, r.border_trim, r.head_lr, r.aircraft_eval, r.amp, r.milestones, r.backbone, r.size, r.temperature, r.lr, r.steps) == (
        0.1, False, False, (0.1, 0.8), (0.8, 0.9), "side", 0.05, 10.0, "center", True, (0.5, 0.75, 0.9, 0.95), "resnet50", 224, 1.0, None, None)
    with pytest.raises(Exception): r.alpha = 1.0                                   # frozen
    assert ADNet(3, "shapes-fine", Readings(**SMALL)).config["alpha"] == 0.1


def test_aircraft_evaluation_of_the_code():
    "Pitfall B2: the code's test images get the training view."
    images = noise(3)
    for data, differs in (("aircraft-10", True), ("cub200-10", False)):
        center, code = (fresh(data=data, aircraft_eval=e) for e in ("center", "train_transform"))
        code.load_state_dict(center.state_dict())
        assert torch.allclose(center.predict(images), code.predict(images)) is not differs
        assert torch.equal(code.predict(images), code.predict(images))             # deterministic all the same


def test_nothing_is_watched_without_images():
    history = fit(fresh(report="best", eval_every=2), small_set(), replace(QUICK, epochs=1))
    assert len(history.values) == 4


# a run ------------------------------------------------------------------------------------------------------------

QUICK = Budget("smoke", 3, 8, lr=0.02, weight_decay=0.0, schedule="step", milestones=(0.5, 0.75, 0.9, 0.95), clip_norm=1.0, checkpoint_seconds=0)


def small_set(counts=(14, 9, 5), size=24):
    labels = torch.repeat_interleave(torch.arange(len(counts)), tensor(counts))
    return ImageSet(noise(len(labels), size, size), labels, [str(i) for i in range(len(counts))], "shapes-fine")


class Stop(Exception): pass


def test_a_checkpoint_of_other_readings_is_refused(tmp_path):
    fit(fresh(), small_set(), replace(QUICK, epochs=1), out=tmp_path)
    for changes in (dict(alpha=0.0), dict(border_trim=0.0), dict(crop_source=(0.2, 0.8))):
        with pytest.raises(ValueError, match=f"belongs to another run: method.{next(iter(changes))}"): fit(fresh(**changes), small_set(), replace(QUICK, epochs=1), out=tmp_path)


class Far(nn.Module):
    "Finite features that float32 cannot hold the divergence of, in every step."
    num_features = 2
    def __init__(self, source=(3e38, -3e38), target=(3e38, 3e38)):
        super().__init__()
        self.scale, self.rows, self.calls = nn.Parameter(torch.ones(1)), [(0.1, -0.1), source, target], 0

    def forward(self, x):
        self.calls += 1
        return self.scale * tensor(self.rows[(self.calls - 1) % 3]).expand(len(x), 2)


def test_t17_training_goes_on_without_the_infinite_term():
    method = ADNet(3, "shapes-fine", Readings(**SMALL), backbone=Far())
    history = fit(method, small_set(), replace(QUICK, epochs=1))
    assert len(history.values) == 4 and all(a == b for a, b in zip(history["loss"], history["main"]))
    assert all(p.isfinite().all() for p in method.parameters()) and method.network.classifier.bias.any()


def test_nan_stops_the_training():
    with pytest.raises(NonFiniteLoss): fit(ADNet(3, "shapes-fine", Readings(**SMALL), backbone=Far((nan, 0.0))), small_set(), replace(QUICK, epochs=1))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_fit_in_precisions(precision):
    method = fresh()
    history = fit(method, small_set(), replace(QUICK, precision=precision))
    assert all(math.isfinite(v) for row in history.values for v in row) and (history["dist"] > 0).all()
    assert_close(tensor(history["loss"]), tensor(history["main"] + 0.1 * history["dist"]), rtol=1e-5, atol=1e-6)


def test_images_of_one_pixel_keep_it():
    for height, width in ((1, 1), (1, 7), (7, 1)):
        top, left, bottom, right = trim_box(height, width)
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        white = torch.full((2, 3, height, width), 255, dtype=torch.uint8)
        for view in (*ThreeViews(8, **PLAIN_VIEWS)(white, gen()), ThreeViews(8, **PLAIN_VIEWS).plain(white)): assert_close(view, torch.ones(2, 3, 8, 8))


def test_it_learns_what_it_is_shown():
    "Three flat colours, two photographs each: plain network and AD-Net learn them."
    labels = torch.arange(6) % 3
    images = torch.full((6, 3, 24, 24), 60, dtype=torch.uint8)
    images[torch.arange(6), labels] = 200
    data = ImageSet(images, labels, ["red", "green", "blue"], "shapes-fine")
    for changes in (dict(crops="vanilla", border_trim=0.0), dict()):
        method = fresh(**changes)
        fit(method, data, replace(QUICK, epochs=15, batch_size=6, lr=0.03))
        assert (method.predict(images).argmax(1) == labels).all()


def test_a_constructor_trains_nothing_and_loads_nothing(monkeypatch):
    "Weights come with a backbone that holds them; a name alone would be a lie."
    def never(*args, **options): raise AssertionError("loaded")
    monkeypatch.setattr(torch, "load", never)
    for weights in ("imagenet", "own:shapes", "some/file.pt"):
        for named in (None, "resnet8"):
            with pytest.raises(ValueError, match="backbone must be a module that holds the weights"):
                ADNet(3, "shapes-fine", Readings(**{**SMALL, "weights": weights}), named)
        assert ADNet(3, "shapes-fine", Readings(**{**SMALL, "weights": weights}), Probe()).config["weights"] == weights


def test_a_profile_is_as_good_as_a_name():
    from arcbook.profiles import profile_of
    by_name, by_profile = fresh(), ADNet(3, profile_of("shapes-fine"), Readings(**SMALL))
    assert by_name.config == by_profile.config and by_name.views == by_profile.views
    own = ADNet(3, "digits-of-plates", Readings(**SMALL))                          # of one's own, whatever its name begins with
    assert own.views.mean == (0.485, 0.456, 0.406) and own.views.flip and not ADNet(3, "digits", Readings(**SMALL)).views.flip


# two processes ------------------------------------------------------------------------------------------------------

def three_fixed(images, generator):
    x = images.float() / 255
    return x, x.flip(-1) ** 2, 1 - x.flip(-2)


def walk(rank=None):
    "Gradients and weights of three steps on whole batches, or on one process's half; views without chance, BatchNorm at rest."
    data, kept = small_set((16, 9, 7)), []
    method = fresh(alpha=5.0)
    method.views = three_fixed
    half = slice(None) if rank is None else slice(rank, None, 2)
    params = list(method.parameters())
    optimizer = torch.optim.SGD(method.parameter_groups(), 0.02)
    for step, rows in enumerate(method.epoch_indices(data.labels, 8, gen())[:3], 1):
        terms = method.eval()(Batch(*data.batch(rows[half]), rows[half]), step, gen())
        optimizer.zero_grad(), terms.loss.backward()
        if rank is not None:
            for p in params: dist.all_reduce(p.grad), p.grad.div_(2)               # what DDP does
        kept.append([p.grad.clone() for p in params])
        optimizer.step()
    return kept + [[p.detach().clone() for p in params]]


def run_fit(changes):
    method = fresh(**changes)
    history = fit(method, small_set((16, 9, 7)), replace(QUICK, batch_size=8, epochs=2))
    return {k: v.detach().clone() for k, v in method.named_parameters()}, history.values


def worker(rank, folder, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save([walk(rank), *(run_fit(c) for c in ({}, dict(crops="vanilla", alpha=0.0)))], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(worker, (str(tmp_path), port), nprocs=2)
    (walk_a, *fits_a), (walk_b, *fits_b) = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    for a, b, c in zip(walk_a, walk_b, walk()):
        for x, y, z in zip(a, b, c):
            assert torch.equal(x, y)
            assert_close(x, z, rtol=1e-4, atol=1e-6)                               # as one process with whole batches
    for (a, values_a), (b, values_b) in zip(fits_a, fits_b):
        for k, v in a.items(): assert v.isfinite().all() and torch.equal(v, b[k]), k
        assert values_a != values_b and len(values_a) == 8                         # each on its own images
