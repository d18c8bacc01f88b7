"Section 10 of the specification of Attract-and-Repulse, every value, and what the notebook does not show."
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from arcbook.contrast import info_nce, nt_xent
from arcbook.evaluation import ensemble
from arcbook.labs.attract_repulse import LAB, _crop_views
from arcbook.papers import attract_repulse as chapter
from arcbook.papers.attract_repulse import (LOG_ZERO, AttractRepulse, AttractRepulseLoss, ContrastiveRegularizationLoss, Readings,
                                            SymmetricCrossEntropyLoss, contrastive_regularization, second_stage, symmetric_cross_entropy)
from arcbook.teachers import EMATeacher, consistency, mean_teacher_decay, sigmoid_rampup
from arcbook.training import Batch
from arcbook.views import ten_crop

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
Z, Y = P.log(), torch.tensor([0])
close = lambda a, b, tol=1e-9: math.isclose(float(a.detach() if isinstance(a, torch.Tensor) else a), b, rel_tol=0, abs_tol=tol)
rce = lambda z, y, a=-4.0, **k: symmetric_cross_entropy(z, y, 0.0, 1.0, a, **k)


def naive_sce(z, y, alpha, beta, a):
    "Nested loops over the definitions, float64."
    total = 0.0
    for row, label in zip(z.tolist(), y.tolist()):
        top = max(row)
        exp = [math.exp(v - top) for v in row]
        p = [e / sum(exp) for e in exp]
        q = [1.0 if k == label else 0.0 for k in range(len(p))]
        ce = -sum(qk * math.log(pk) for qk, pk in zip(q, p) if qk)
        rce = -sum(pk * (math.log(qk) if qk else a) for qk, pk in zip(q, p))
        total += alpha * ce + beta * rce
    return total / len(z)


def test_1_values():
    assert close(symmetric_cross_entropy(Z, Y, 1, 0), 0.35667494393873245)
    for a, value in ((-2, 0.6), (-4, 1.2), (-6, 1.8), (math.log(1e-4), 2.763102111592855)): assert close(rce(Z, Y, a), value)


def test_2_sce():
    assert close(symmetric_cross_entropy(Z, Y, 0.1, 1, -4.0), 1.2356674943938732)
    assert close(symmetric_cross_entropy(Z, Y, 6, 0.1, -4.0), 2.2600496636323947)
    assert close(symmetric_cross_entropy(Z, Y, 0.1, 1), 2.798769605986728)


@pytest.mark.parametrize("alpha,beta,a", [(1, 0.1, LOG_ZERO), (0.1, 1, -4.0), (6, 0.1, -6.0), (0, 1, -2.0)])
def test_naive_loops_and_gradients(alpha, beta, a):
    torch.manual_seed(0)
    z, y = torch.randn(7, 11, dtype=torch.float64, requires_grad=True), torch.randint(0, 11, (7,))
    assert close(symmetric_cross_entropy(z, y, alpha, beta, a), naive_sce(z.detach(), y, alpha, beta, a))
    assert torch.autograd.gradcheck(lambda x: symmetric_cross_entropy(x, y, alpha, beta, a), z)
    gradient, = torch.autograd.grad(symmetric_cross_entropy(z, y, alpha, beta, a, "sum"), z)
    p, q = z.softmax(1), F.one_hot(y, 11)
    assert_close(gradient, (alpha + beta * -a * p.gather(1, y[:, None])) * (p - q))


def test_3_limits():
    torch.manual_seed(0)
    z, y = torch.randn(5, 6, dtype=torch.float64), torch.randint(0, 6, (5,))
    assert_close(symmetric_cross_entropy(z, y, 1, 0), F.cross_entropy(z, y))
    assert_close(symmetric_cross_entropy(z, y, 2.5, 0), 2.5 * F.cross_entropy(z, y))
    assert close(rce(Z, Y, -2.0), 0.6)


def test_4_only_the_product_matters():
    z, y = torch.randn(50, 9, dtype=torch.float64, requires_grad=True), torch.randint(0, 9, (50,))
    a, b = symmetric_cross_entropy(z, y, 1, 0.1, math.log(1e-4)), symmetric_cross_entropy(z, y, 1, 0.23025850929940458, -4.0)
    assert_close(a, b)
    assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (a, b)))


@pytest.mark.parametrize("alpha,beta,expected", [(1, 0, (-0.3, 0.2, 0.1)), (0, 1, (-0.84, 0.56, 0.28)), (0.1, 1, (-0.87, 0.58, 0.29)), (6, 0.1, (-1.884, 1.256, 0.628))])
def test_5_gradients(alpha, beta, expected):
    z = Z.clone().requires_grad_()
    gradient, = torch.autograd.grad(symmetric_cross_entropy(z, Y, alpha, beta, -4.0), z)
    assert_close(gradient[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
    assert close(gradient.sum(), 0)


@pytest.mark.parametrize("p_y,size", [(0.5, 1.0), (0.1, 0.36), (0.9, 0.36)])
def test_6_pull_of_rce(p_y, size):
    z = torch.tensor([[p_y, 1 - p_y]], dtype=torch.float64).log().requires_grad_()
    assert close(torch.autograd.grad(rce(z, Y), z)[0][0, 0], -size)


def test_6_extremes():
    for logit in (800.0, -800.0):
        z = torch.tensor([[logit, 0.0]], dtype=torch.float64, requires_grad=True)
        assert close(torch.autograd.grad(rce(z, Y), z)[0][0, 0], 0)


@pytest.mark.parametrize("k,ce,reverse", [(2, 0.693147181, 2), (10, 2.302585093, 3.6), (100, 4.605170186, 3.96), (1000, 6.907755279, 3.996)])
def test_7_uniform(k, ce, reverse):
    z = torch.zeros(1, k, dtype=torch.float64)
    assert close(symmetric_cross_entropy(z, Y, 1, 0), ce) and close(rce(z, Y), reverse)
    if k in (10, 1000): assert close(rce(z, Y, LOG_ZERO), {10: 8.289306335, 1000: 9.201130032}[k])


@pytest.mark.parametrize("k,total", [(3, 8), (10, 36), (1000, 3996)])
def test_8_symmetry(k, total):
    z = torch.randn(1, k, dtype=torch.float64) * 3
    assert close(rce(z.expand(k, k), torch.arange(k), reduction="sum"), total, 1e-8)
    assert close(rce(torch.tensor([[900.0, 0.0]], dtype=torch.float64), Y), 0)


def test_9_mixup():
    q = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    assert close(rce(Z, q), 2.0) and close(rce(Z, q, soft_rce="direct"), 0.940836083)
    hard = F.one_hot(Y, 3).double()
    for soft_rce in ("linear", "direct"): assert close(rce(Z, hard, soft_rce=soft_rce), 1.2)


def test_10_info_nce():
    def within(q, k, tau):  # N pairs; the other keys are the negatives of a row
        rows = [info_nce(q[i:i + 1], k[i:i + 1], torch.cat([k[:i], k[i + 1:]]), tau) for i in range(len(q))]
        return torch.stack(rows)
    same = torch.ones(5, 4, dtype=torch.float64)
    assert_close(within(same, same, 0.2), torch.full((5,), math.log(5), dtype=torch.float64))
    for n, tau, value in ((4, 0.5, 0.340752954), (4, 0.2, 0.020012253), (256, 0.2, 0.999961245)):
        eye = torch.eye(n, dtype=torch.float64)
        assert close(info_nce(eye[:1], eye[:1], eye[1:], tau), value)
    ends = torch.tensor([[1.0, 0], [-1.0, 0]], dtype=torch.float64)
    assert close(within(ends, ends, 0.5).mean(), 0.018149928)


def test_11_info_nce_by_hand():
    q, k = torch.eye(2, dtype=torch.float64), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    losses = [info_nce(q[i:i + 1], k[i:i + 1], k[1 - i:2 - i], 0.5) for i in range(2)]
    assert close(losses[0], 0.263282467) and close(losses[1], 0.513015252)
    q0 = q[:1].clone().requires_grad_()
    gradient, = torch.autograd.grad(info_nce(q0, k[:1], k[1:], 0.5), q0)   # normalised inside: the tangent part remains
    assert_close(gradient[0], torch.tensor([0, 0.092590087], dtype=torch.float64), atol=1e-9, rtol=0)


def test_12_nt_xent():
    eye, one = torch.eye(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    for loss in (nt_xent, contrastive_regularization):
        assert close(loss(eye, eye, 0.5), 0.239544766) and close(loss(one, one, 0.5), 1.098612289)
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    order = torch.randperm(6)
    for x, y in ((a * torch.rand(6, 1, dtype=torch.float64).add(0.1), 7 * b), (a @ rotation, b @ rotation), (b, a), (a[order], b[order])):
        assert_close(contrastive_regularization(x, y), contrastive_regularization(a, b))


@pytest.mark.parametrize("decay,init,expected", [(mean_teacher_decay(0.999), 0.0, (0.5, 1, 1.5, 2)), (mean_teacher_decay(0.999), 7.0, (4, 10 / 3, 3.25, 3.4)),
                                                 (0.5, 0.0, (0.5, 1.25, 2.125, 3.0625))])
def test_13_ema(decay, init, expected):
    student = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad(): student.weight.fill_(init)
    teacher = EMATeacher(student, decay)
    for step, value in enumerate(expected, 1):
        with torch.no_grad(): student.weight.fill_(float(step))
        teacher.update(step)
        assert close(teacher.module.weight, value)
    assert teacher.module.weight.grad is None
    assert mean_teacher_decay(0.999)(998) < 0.999 == mean_teacher_decay(0.999)(999)


def test_14_ramp():
    for x, value in ((0, 0.006737947), (0.2, 0.040762204), (0.25, 0.060054668), (0.5, 0.286504797), (0.75, 0.731615629), (1, 1)):
        assert close(sigmoid_rampup(100 * x, 100), value)
    assert sigmoid_rampup(0, 0) == 1


def test_15_16_consistency_and_calibrated_label():
    s = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log()
    assert close(consistency(s, t, "mse"), 0.09) and close(consistency(s, t), 0.192744757)
    assert_close(torch.autograd.grad(consistency(s, t), s)[0], torch.tensor([[-0.3, 0.3]], dtype=torch.float64))
    terms = AttractRepulseLoss(beta=0.0, cr_weight=0.0)(s[None], Y, teacher_logits=t[None])
    assert_close(torch.autograd.grad(terms.loss, s)[0], torch.tensor([[-0.8, 0.8]], dtype=torch.float64))


def test_17_ten_crop():
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    means = ten_crop(image, 2)[0, :, 0].mean((1, 2))
    assert_close(means, torch.tensor([2.0, 3, 5, 6, 6, 3, 2, 6, 5, 5]))
    crops = _crop_views(torch.rand(2, 3, 32, 32), True)
    assert crops.shape[1:] == (10, 3, 32, 32)


def test_18_averaging():
    a, b = torch.tensor([[4.0, 0, 0]]).double(), torch.tensor([[0.0, 3, 0]]).double()
    assert_close(ensemble([a.softmax(1), b.softmax(1)])[0], torch.tensor([0.504970828, 0.463555710, 0.031473461], dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(ensemble([a.softmax(1)] * 3), a.softmax(1))


def make_inputs(dtype=torch.float64):
    torch.manual_seed(1)
    return (torch.randn(2, 6, 4, dtype=dtype), torch.randint(0, 4, (6,)), torch.randn(2, 6, 8, dtype=dtype), torch.randn(2, 6, 4, dtype=dtype))


def test_19_wiring():
    logits, labels, embeddings, teacher = make_inputs()
    def gradients(**weights):
        x, e, t = (v.clone().requires_grad_() for v in (logits, embeddings, teacher))
        terms = AttractRepulseLoss(**weights)(x, labels, e, t)
        terms.loss.backward()
        return terms.loss.detach(), x.grad, e.grad, t.grad
    value, x, e, t = gradients(cr_weight=0.0, mt_weight=0.0)
    sce = sum(symmetric_cross_entropy(v, labels) for v in logits) / 2
    assert_close(value, sce)
    assert not e.any() and t is None
    for name in ("cr_weight", "mt_weight"):   # affine in each weight
        at = [gradients(**{name: w})[0] for w in (0.0, 1.0, 2.0)]
        assert_close(at[2] - at[1], at[1] - at[0])


@pytest.mark.parametrize("beta_over_alpha,a,ratio", [(10, -4, 20), (0.1 / 6, -4, 0.0333333333), (10, LOG_ZERO, 46.0517018), (0.1, LOG_ZERO, 0.4605170)])
def test_20_strength_of_rce(beta_over_alpha, a, ratio):
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    ce, = torch.autograd.grad(symmetric_cross_entropy(z, Y, 1, 0), z)
    reverse, = torch.autograd.grad(symmetric_cross_entropy(z, Y, 0, beta_over_alpha, a), z)
    assert close((reverse / ce)[0, 0], ratio, 1e-6)


def test_modules_equal_functions():
    logits, labels, embeddings, _ = make_inputs()
    assert_close(SymmetricCrossEntropyLoss(2.0, 0.5, -4.0)(logits[0], labels), symmetric_cross_entropy(logits[0], labels, 2.0, 0.5, -4.0))
    assert_close(ContrastiveRegularizationLoss(0.3, 0.4)(*embeddings), contrastive_regularization(*embeddings, 0.3, 0.4))


@pytest.mark.parametrize("call,message", [
    (lambda: symmetric_cross_entropy(torch.zeros(3), Y), "logits must be"),
    (lambda: symmetric_cross_entropy(torch.zeros(1, 3).long(), Y), "logits must be"),
    (lambda: symmetric_cross_entropy(Z, torch.tensor([3])), "target"),
    (lambda: symmetric_cross_entropy(Z, torch.tensor([-1])), "target"),
    (lambda: symmetric_cross_entropy(Z, torch.tensor([0, 1])), "target"),
    (lambda: symmetric_cross_entropy(Z, torch.ones(1, 4).double()), "target must be"),
    (lambda: SymmetricCrossEntropyLoss(alpha=-1.0), "alpha must be finite and >= 0"),
    (lambda: AttractRepulseLoss(beta=math.nan), "beta must be finite and >= 0"),
    (lambda: AttractRepulseLoss(cr_weight=-5.0), "cr_weight must be finite and >= 0"),
    (lambda: symmetric_cross_entropy(Z, Y, log_zero=0.0), "log_zero must be finite and < 0"),
    (lambda: symmetric_cross_entropy(Z, Y, reduction="avg"), "reduction"),
    (lambda: contrastive_regularization(Z, Z, -1.0), "temperature"),
    (lambda: contrastive_regularization(Z, torch.zeros(1, 4).double()), "must"),
    (lambda: AttractRepulseLoss(temperature=0.0), "temperature"),
    (lambda: AttractRepulse(10, "digits", Readings(cr_form="x")), "cr_form must be one of"),
])
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_projection_head_is_dropped_without_harm():
    torch.manual_seed(0)
    method = AttractRepulse(10, "digits", Readings(backbone="resnet8"))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    before = method.predict(images)
    method.network.head = torch.nn.Identity()
    assert torch.equal(before, method.predict(images))


def test_second_stage_starts_where_the_first_ended():
    torch.manual_seed(0)
    first = AttractRepulse(10, "digits", Readings(backbone="resnet8"))
    second = second_stage(first)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert first.teacher is None
    for teacher in (False, True): assert torch.equal(first.predict(images), second.predict(images, teacher))
    assert all(not p.requires_grad for p in second.teacher.parameters())


def test_teacher_has_no_effect_at_weight_zero():
    batch = Batch(torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8), torch.arange(6), torch.arange(6))
    losses = []
    for weight in (0.0, 1e-12):
        torch.manual_seed(0)
        method = AttractRepulse(10, "digits", Readings(backbone="resnet8", mt_stage="joint", mt_weight=weight))
        losses.append(method(batch, 1, torch.Generator().manual_seed(0)).loss)
    assert_close(*losses)



def a_batch(n=6):
    torch.manual_seed(3)
    return Batch(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8), torch.arange(n) % 3, torch.arange(n))


def small(stage=1, **changes):
    torch.manual_seed(0)
    return AttractRepulse(3, "digits", Readings(backbone="resnet8", cr_dim=8, **changes), stage, num_images=20)


# what the method does with its losses: each of these was once a mistake that no test saw

def test_the_teacher_is_asked_about_the_other_view():
    method, seen = small(stage=2), {}
    hook = lambda name: lambda module, inputs: seen.setdefault(name, inputs[0].clone())
    method.network.register_forward_pre_hook(hook("student"))
    method.teacher.module.register_forward_pre_hook(hook("teacher"))
    method(a_batch(), 1, torch.Generator().manual_seed(0))
    first, second = seen["student"].chunk(2)
    assert not torch.equal(first, second) and torch.equal(seen["teacher"], torch.cat([second, first]))


def test_the_trade_off_by_confidence_is_detached():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    embeddings, labels = torch.randn(2, 6, 8, dtype=torch.float64), torch.arange(6) % 4
    loss = AttractRepulseLoss(alpha=0.0, beta=0.0, tradeoff="stopgrad_py")
    gradient, = torch.autograd.grad(loss(logits, labels, embeddings).loss, logits, allow_unused=True)
    assert gradient is None or not gradient.any()
    plain = AttractRepulseLoss(alpha=0.0, beta=0.0)(logits, labels, embeddings)
    weight = logits.softmax(2).gather(2, labels.expand(2, 6)[..., None]).mean((0, 2))
    terms = ContrastiveRegularizationLoss(reduction="none")(*embeddings)
    assert_close(loss(logits, labels, embeddings).loss, (weight.repeat(2) * terms).mean().detach())
    assert_close(plain.loss, terms.mean())


def test_cutmix_uses_the_share_that_was_pasted(monkeypatch):
    "Boxes are clipped at the border: the share that was drawn is not the share that is there."
    method, batch, kept = small(mix="cutmix", cr_weight=0.0, mt_weight=0.0), a_batch(), {}
    def paste(images, others, lam, generator):
        kept["drawn"] = lam
        return images, 0.3125
    monkeypatch.setattr(chapter, "cutmix", paste)
    generator = torch.Generator().manual_seed(0)
    _, target = method.mixed(method.view(batch.images, generator), batch.labels, generator)
    shares = {round(float(v), 4) for v in target.flatten()}
    assert shares <= {0.0, 0.3125, 0.6875, 1.0} and 0.3125 in shares and round(kept["drawn"], 4) != 0.3125


@pytest.mark.parametrize("keep", [True, False])
def test_the_second_stage_keeps_repulsion_only_where_it_shall(keep):
    method = second_stage(small(mt_keep_cr=keep))
    terms = method(a_batch(), 1, torch.Generator().manual_seed(0))
    assert method.uses_cr == keep and (terms.cr > 0) == keep


@pytest.mark.parametrize("stage,expected", [(1, math.exp(-5)), (2, 1.0)])
def test_the_ramp_of_the_repulsion_belongs_to_stage_1(stage, expected):
    method = small(stage, tradeoff="ramp", mt_weight=1.0 if stage == 2 else 0.0, sce_alpha=0.0, sce_beta=0.0, mt_ramp_epochs=5)
    terms = method(a_batch(), 1, torch.Generator().manual_seed(0))
    agree = math.exp(-5) * terms.consistency
    assert_close(terms.loss, expected * terms.cr + agree, rtol=1e-4, atol=1e-5)


def test_neighbours_are_looked_for_in_one_network_s_features(monkeypatch):
    "kNN compares training and test images through the same network: the averaged one, where there is one."
    trained = LAB.train("SCE+CR+MT", "digits-few:10", "smoke", seed=0, mt_weight=1.0)
    asked, method = set(), trained.method
    whole = type(method).output
    monkeypatch.setattr(type(method), "output", lambda self, images, teacher=False: (asked.add((len(images), teacher)), whole(self, images, teacher))[1])
    from arcbook.datasets import load
    LAB.evaluate(trained, load("digits", "test").subset(torch.arange(0, 600, 20)))
    assert {teacher for n, teacher in asked if n == 100} == {True}


def test_crops_vote_by_probabilities_or_by_logits():
    "Reading 13: the mean of probabilities and the softmax of mean logits are different distributions."
    from arcbook import probes
    test = probes.probe_images(seed=1)
    scores = {}
    for how in ("prob", "logit"):
        trained = probes.small_run(LAB, "SCE", tta_average=how)
        scores[how] = LAB.evaluate(trained, test)[1]["scores_tencrop"]
        crops = _crop_views(test.images, trained.profile.mirror)
        logits = torch.stack([trained.method.predict(view) for view in (crops.transpose(0, 1) * 255).round().byte()], 1)
        wanted = logits.softmax(2).mean(1) if how == "prob" else logits.mean(1).softmax(1)
        assert_close(scores[how].float(), wanted, rtol=0, atol=0.03)           # pixels were rounded for this reference
    assert not torch.allclose(scores["prob"].float(), scores["logit"].float(), atol=1e-3)


@pytest.mark.parametrize("data,budget", [("digits-few:10", "cpu"), ("cifar100-few:50", "gpu"), ("tiny-imagenet-50", "gpu"), ("vipriors", "gpu"), ("shapes", "smoke")])
def test_every_variant_gets_the_same_number_of_epochs(data, budget):
    totals = {sum(stage.epochs for stage in LAB.planned(variant, data, budget).stages) for variant in LAB.variants}
    assert len(totals) == 1
