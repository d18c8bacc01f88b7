"The frame: values and gradients against loops, other libraries and closed forms; precisions, compilation, processes."
import inspect
import math
import shutil
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from arcbook import contrast
from arcbook._checks import check_labels
from arcbook.contrast import (InfoNCELoss, NTXentLoss, SupConLoss, cosine_logits, forces, gather_with_gradient, info_nce,
                              normalize, nt_xent, repulse_term, soft_target_cross_entropy, sup_con)

f64 = torch.float64


def draw(*shape, seed=0, dtype=f64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64).to(dtype)


def in_blocks(monkeypatch, rows):
    "Make every repulse term go through blocks of so many rows."
    plain = contrast.repulse_term
    monkeypatch.setattr(contrast, "repulse_term", lambda q, k, own=0: plain(q, k, own, rows))


# independent references: one float64 number at a time, from the definitions --------------------------------------

def dot(a, b): return sum(x * y for x, y in zip(a, b))


def unit(rows):
    return [[x / dot(row, row).sqrt() for x in row] for row in (list(r) for r in rows)]


def loop_cross_entropy(logits, target):
    losses = []
    for s, t in zip(logits, target):
        total = sum(x.exp() for x in s)
        losses.append(-sum(tj * (x.exp() / total).log() for tj, x in zip(t, s)))
    return torch.stack(losses)


def loop_info_nce(q, k, negatives, tau):
    q, k, negatives = unit(q), unit(k), unit(negatives)
    losses = []
    for a, b in zip(q, k):
        own = (dot(a, b) / tau).exp()
        losses.append(-(own / (own + sum((dot(a, n) / tau).exp() for n in negatives))).log())
    return torch.stack(losses)


def loop_sup_con(z, labels, tau):
    u, losses = unit(z), []
    for i in range(len(u)):
        total = sum((dot(u[i], u[j]) / tau).exp() for j in range(len(u)) if j != i)
        positives = [j for j in range(len(u)) if j != i and labels[j] == labels[i]]
        terms = [((dot(u[i], u[j]) / tau).exp() / total).log() for j in positives]
        losses.append(-sum(terms) / len(terms) if terms else u[i][0] * 0)
    return torch.stack(losses)


def loop_nt_xent(z0, z1, tau):
    return loop_sup_con(torch.cat([z0, z1]), list(range(len(z0))) * 2, tau)


def same(function, reference, *inputs, value=1e-12, grad=1e-11):
    "Per-anchor values and the gradient of a random weighted sum agree."
    inputs = [x.clone().requires_grad_() for x in inputs]
    ours, theirs = function(*inputs), reference(*inputs)
    assert_close(ours, theirs, atol=value, rtol=value)
    weights = draw(*ours.shape, seed=9)
    slopes = (torch.autograd.grad((losses * weights).sum(), inputs) for losses in (ours, theirs))
    for a, b in zip(*slopes): assert_close(a, b, atol=grad, rtol=grad)


labels7 = tensor([4, 0, 4, 4, 9, 0, 1])


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_values_and_gradients_equal_nested_loops(tau):
    z0, z1, keys = draw(5, 4), draw(5, 4, seed=1), draw(6, 4, seed=2)
    same(lambda a, b: nt_xent(a, b, tau, "none"), lambda a, b: loop_nt_xent(a, b, tau), z0, z1)
    same(lambda a, b, n: info_nce(a, b, n, tau, "none"), lambda a, b, n: loop_info_nce(a, b, n, tau), z0, z1, keys)
    same(lambda a: sup_con(a, labels7, tau, "none"), lambda a: loop_sup_con(a, labels7, tau), draw(7, 4, seed=3))
    same(lambda s, t: soft_target_cross_entropy(s, t.softmax(1), "none"),
         lambda s, t: loop_cross_entropy(s, t.softmax(1)), z0, z1)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_blocks_equal_nested_loops(monkeypatch, rows):
    in_blocks(monkeypatch, rows)
    same(lambda a, b: nt_xent(a, b, .2, "none"), lambda a, b: loop_nt_xent(a, b, .2), draw(5, 4), draw(5, 4, seed=1))
    same(lambda a: sup_con(a, labels7, .1, "none"), lambda a: loop_sup_con(a, labels7, .1), draw(7, 4, seed=3))


def test_info_nce_without_negatives_uses_the_other_rows():
    q, k = draw(4, 3), draw(4, 3, seed=1)
    rows = [info_nce(q[i:i + 1], k[i:i + 1], k[torch.arange(4) != i], .3)[None] for i in range(4)]
    assert_close(info_nce(q, k, temperature=.3, reduction="none"), torch.cat(rows))


def test_large_batches_switch_to_blocks_with_the_same_result():
    z, labels = draw(1500, 8, dtype=torch.float32).requires_grad_(), torch.arange(1500) % 37
    logits = cosine_logits(z, z, .1).masked_fill(torch.eye(1500, dtype=torch.bool), -math.inf)
    target = (labels[:, None] == labels).float().fill_diagonal_(0)
    expected = soft_target_cross_entropy(logits, target / target.sum(1, keepdim=True))
    loss = sup_con(z, labels)
    names, todo = set(), [loss.grad_fn]
    while todo:
        names.add(type(node := todo.pop()).__name__)
        todo += [n for n, _ in node.next_functions if n]
    assert "_RepulseInBlocksBackward" in names
    assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_close(*(torch.autograd.grad(x, z)[0] for x in (loss, expected)), atol=1e-7, rtol=1e-4)


# other libraries ------------------------------------------------------------------------------------------------

def test_equals_pytorch_metric_learning():
    oracle = pytest.importorskip("pytorch_metric_learning.losses")
    z0, z1 = draw(6, 5), draw(6, 5, seed=1)
    pairs = torch.arange(6).repeat(2)
    same(lambda a, b: nt_xent(a, b, .2)[None],
         lambda a, b: oracle.NTXentLoss(.2)(torch.cat([a, b]), pairs)[None], z0, z1, value=1e-8, grad=1e-8)
    labels = tensor([0, 0, 1, 1, 1, 2, 2, 0])           # every anchor has a positive: theirs averages over those
    same(lambda a: sup_con(a, labels, .1)[None], lambda a: oracle.SupConLoss(.1)(a, labels)[None], draw(8, 5),
         value=1e-8, grad=1e-8)


# worked values --------------------------------------------------------------------------------------------------

def test_worked_values_of_info_nce():
    at = lambda n, tau: info_nce(torch.eye(n, dtype=f64), torch.eye(n, dtype=f64), temperature=tau).item()
    assert at(4, .5) == pytest.approx(.340752954, abs=1e-9)
    assert at(4, .2) == pytest.approx(.020012253, abs=1e-9)
    assert at(256, .2) == pytest.approx(.999961245, abs=1e-9)
    two = tensor([[1., 0.], [-1., 0.]], dtype=f64)
    assert info_nce(two, two, temperature=.5).item() == pytest.approx(.018149928, abs=1e-9)
    for n in (1, 2, 7, 256):
        equal = torch.ones(n, 3, dtype=f64)
        assert info_nce(equal, equal).item() == pytest.approx(math.log(n), abs=1e-12)


def test_worked_two_query_example():
    q, k = torch.eye(2, dtype=f64), tensor([[.6, .8], [0., 1.]], dtype=f64)
    rows = info_nce(q, k, temperature=.5, reduction="none")
    assert_close(rows, tensor([.263282467, .513015252], dtype=f64), atol=1e-9, rtol=0)
    assert rows.mean().item() == pytest.approx(.388148860, abs=1e-9)
    logits = cosine_logits(q, k, .5)
    assert_close(logits.softmax(1)[0], tensor([.768524783, .231475217], dtype=f64), atol=1e-9, rtol=0)
    free = -forces(logits, torch.eye(2, dtype=f64))[0] @ k / .5
    assert_close(free, tensor([-.277770261, .092590087], dtype=f64), atol=2e-9, rtol=0)
    x = q.clone().requires_grad_()
    on_circle = torch.autograd.grad(info_nce(x, k, temperature=.5, reduction="none")[0], x)[0][0]
    assert_close(on_circle, tensor([0., .092590087], dtype=f64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("rows", [None, 1])
def test_worked_values_of_nt_xent(monkeypatch, rows):
    if rows: in_blocks(monkeypatch, rows)
    apart, equal = torch.eye(2, dtype=f64), torch.ones(2, 2, dtype=f64)
    assert nt_xent(apart, apart, .5).item() == pytest.approx(.239544766, abs=1e-9)
    assert nt_xent(equal, equal, .5).item() == pytest.approx(math.log(3), abs=1e-12)


def test_worked_values_of_sup_con():
    for tau, value in ((.07, 1.0986139550), (1., 1.7822200347)):                        # orthogonal classes
        got = sup_con(torch.eye(3, dtype=f64).repeat_interleave(4, 0), torch.arange(3).repeat_interleave(4), tau)
        assert got.item() == pytest.approx(value, abs=1e-9)
    assert sup_con(torch.ones(8, 2, dtype=f64), torch.arange(8) % 3).item() == pytest.approx(1.9459101491, abs=1e-9)
    single = sup_con(torch.eye(3, dtype=f64)[[0, 1, 1, 2]], tensor([0, 1, 1, 2]), 1.)
    assert single.item() == pytest.approx(.2757223570, abs=1e-9)
    angles = tensor([0., 60., 180.], dtype=f64).deg2rad()
    rows = sup_con(torch.stack([angles.cos(), angles.sin()], 1), tensor([0, 0, 1]), .5, "none")
    assert_close(rows, tensor([.0485873516, .1269280110, 0.], dtype=f64), atol=1e-9, rtol=0)
    angles = tensor([0., 0., 60., 90., 180.], dtype=f64).deg2rad()            # an anchor and four keys, CoNe's T10
    rows = sup_con(torch.stack([angles.cos(), angles.sin()], 1), tensor([0, 0, 1, 0, 1]), .5, "none")
    assert rows[0].item() == pytest.approx(1.4197166463, abs=1e-9)


# invariants ------------------------------------------------------------------------------------------------------

def test_nothing_that_should_not_matter_matters():
    z0, z1, order = draw(6, 4), draw(6, 4, seed=1), torch.randperm(6, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(draw(4, 4, seed=2))[0]
    value = nt_xent(z0, z1)
    for a, b in ((z0 * draw(6, 1).abs(), z1 * 5), (z0 @ rotation, z1 @ rotation), (z1, z0), (z0[order], z1[order])):
        assert_close(nt_xent(a, b), value)
    labels = tensor([0, 0, 1, 2, 1, 0])
    assert_close(sup_con(z0, labels), sup_con(z0[order] * 3, labels[order]))
    assert_close(sup_con(z0, labels), sup_con(z0, tensor([-5, 2**40, 7])[labels]))
    assert_close(sup_con(z0, labels), sup_con(z0, labels.to(torch.uint8)))
    assert_close(sup_con(torch.cat([z0, z1]), torch.arange(6).repeat(2), .2, "none"), nt_xent(z0, z1, .2, "none"))


def test_forces_sum_to_zero_and_are_minus_the_gradient():
    logits, target = draw(5, 7).requires_grad_(), draw(5, 7, seed=1).softmax(1)
    loss = soft_target_cross_entropy(logits, target, "sum")
    assert_close(forces(logits, target).sum(1), torch.zeros(5, dtype=f64))
    assert_close(forces(logits, target), -torch.autograd.grad(loss, logits)[0])


def test_reductions():
    z0, z1, labels = draw(4, 3), draw(4, 3, seed=1), tensor([0, 0, 1, 2])
    for loss in (lambda r: nt_xent(z0, z1, .2, r), lambda r: sup_con(z0, labels, .2, r),
                 lambda r: info_nce(z0, z1, z0, .2, r), lambda r: soft_target_cross_entropy(z0, z1.softmax(1), r)):
        assert_close(loss("none").mean(), loss("mean"))
        assert_close(loss("none").sum(), loss("sum"))


def test_modules_are_their_functions():
    z0, z1, labels = draw(4, 3), draw(4, 3, seed=1), tensor([0, 0, 1, 2])
    assert_close(NTXentLoss(.3, "sum")(z0, z1), nt_xent(z0, z1, .3, "sum"))
    assert_close(SupConLoss(.3, "none")(z0, labels), sup_con(z0, labels, .3, "none"))
    assert_close(InfoNCELoss(.3)(z0, z1, z1), info_nce(z0, z1, z1, .3))
    for module, function in ((NTXentLoss, nt_xent), (SupConLoss, sup_con), (InfoNCELoss, info_nce)):
        defaults = {k: p.default for k, p in inspect.signature(function).parameters.items()}
        for name, parameter in inspect.signature(module).parameters.items(): assert parameter.default == defaults[name]
        assert not list(module().parameters()) and "temperature=" in repr(module())
    changed = NTXentLoss(.3)
    changed.temperature = .9
    assert_close(changed(z0, z1), nt_xent(z0, z1, .9))


# gradients --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rows", [None, 3])
def test_gradcheck(monkeypatch, rows):
    if rows: in_blocks(monkeypatch, rows)
    z0, z1 = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda a, b: nt_xent(a, b, .5, "none"), (z0, z1))
        assert check(lambda a: sup_con(a, tensor([1, 1, 0, 1]), .5, "none"), (z0,))
        assert check(lambda a, b: info_nce(a, b, draw(2, 3, seed=2), .5, "none"), (z0, z1))
        assert check(lambda s, t: soft_target_cross_entropy(s, t.softmax(1), "none"), (z0, z1))


def test_backward_twice_gives_the_same():
    z = draw(600, 4, dtype=torch.float32).requires_grad_()
    loss = nt_xent(z, z.flip(0))
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# small and odd batches ----------------------------------------------------------------------------------------------

def with_gradient(loss, *inputs):
    "Value and gradients, all of which must be finite."
    gradients = torch.autograd.grad(loss, inputs)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
    return loss.item(), gradients


@pytest.mark.parametrize("rows", [None, 1])
def test_small_and_odd_batches_have_defined_values(monkeypatch, rows):
    if rows: in_blocks(monkeypatch, rows)
    a, b = draw(1, 4).requires_grad_(), draw(1, 4, seed=1).requires_grad_()
    assert with_gradient(nt_xent(a, b), a, b)[0] == pytest.approx(0, abs=1e-12)        # one candidate, the right one
    assert with_gradient(info_nce(a, b), a, b)[0] == 0
    assert with_gradient(info_nce(a, b, torch.empty(0, 4, dtype=f64)), a, b)[0] == 0    # an empty queue
    for labels in ([3], [3, 5], [0, 1, 2, 3]):                                          # nobody has a positive
        z = draw(len(labels), 4).requires_grad_()
        value, (slope,) = with_gradient(sup_con(z, tensor(labels)), z)
        assert value == 0 and not slope.any()
    z = draw(2, 4).requires_grad_()
    assert with_gradient(sup_con(z, tensor([6, 6])), z)[0] == pytest.approx(0, abs=1e-12)   # only two, same class
    z = draw(5, 4).requires_grad_()
    assert with_gradient(sup_con(z, torch.zeros(5, dtype=torch.long)), z)[0] > 0        # all of one class
    some, (slope,) = with_gradient(sup_con(z, tensor([0, 0, 1, 2, 2])), z)
    assert some == pytest.approx(sup_con(z, tensor([0, 0, 1, 2, 2]), reduction="none").sum().item() / 5)


def test_empty_batch_is_zero_with_a_gradient_path():
    z = torch.empty(0, 4, requires_grad=True)
    for loss in (nt_xent(z, z), sup_con(z, torch.empty(0, dtype=torch.long)), info_nce(z, z, torch.ones(2, 4))):
        assert loss.item() == 0
        torch.autograd.grad(loss, z)


def test_zero_vectors_and_tiny_temperatures_stay_finite():
    z = draw(4, 3).index_fill(0, tensor([1]), 0.).requires_grad_()
    _, (slope,) = with_gradient(sup_con(z, tensor([0, 0, 1, 1])), z)
    assert not slope[1].any()
    z = draw(6, 3, dtype=torch.float32).requires_grad_()
    with_gradient(nt_xent(z, z.flip(0), 1e-4), z)
    with_gradient(sup_con(z, tensor([0, 0, 0, 1, 1, 1]), 1e-4), z)


def test_collapsed_large_class_keeps_its_digits():
    z = torch.ones(3000, 16).mul_(draw(3000, 1, dtype=torch.float32).abs() + .1)
    assert sup_con(z, torch.zeros(3000, dtype=torch.long), .1).item() == pytest.approx(math.log(2999), abs=1e-5)


def test_masked_candidates():
    logits = tensor([[0., 1., -math.inf], [-math.inf, 2., 0.]], dtype=f64, requires_grad=True)
    target = tensor([[.5, .5, 0.], [0., 0., 1.]], dtype=f64, requires_grad=True)
    loss = soft_target_cross_entropy(logits, target)
    value, (d_logits, d_target) = with_gradient(loss, logits, target)
    rest = (-tensor([0., 1.]).log_softmax(0).mean() - tensor([2., 0.]).log_softmax(0)[1]) / 2
    assert value == pytest.approx(rest.item(), abs=1e-6)
    assert_close(d_logits, -forces(logits, target).detach() / 2)
    assert forces(logits, target)[0, 2] == 0


# precision ----------------------------------------------------------------------------------------------------------

def losses():
    labels = torch.arange(40) % 7
    yield "nt_xent", lambda a, b: nt_xent(a, b, .2)
    yield "sup_con", lambda a, b: sup_con(a, labels, .1) + 0 * b.sum()
    yield "info_nce", lambda a, b: info_nce(a, b, b.flip(0)[:9], .2)
    yield "soft", lambda a, b: soft_target_cross_entropy(a, normalize(b)**2)


named = pytest.mark.parametrize("loss", [pytest.param(f, id=name) for name, f in losses()])


@named
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, f64])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_precisions(loss, dtype, autocast):
    a, b = draw(40, 16, dtype=dtype), draw(40, 16, seed=1, dtype=dtype)
    exact = [x.double().requires_grad_() for x in (a, b)]             # the same rounded input, computed in float64
    given = [x.clone().requires_grad_() for x in (a, b)]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None): ours = loss(*given)
    theirs = loss(*exact)
    assert ours.dtype == (f64 if dtype == f64 else torch.float32)
    assert_close(ours.double(), theirs, atol=1e-12 if dtype == f64 else 2e-6, rtol=0)
    step = torch.finfo(dtype).eps
    for x, y in zip(given, exact):
        a, b = (torch.autograd.grad(value, at, retain_graph=True)[0] for value, at in ((ours, x), (theirs, y)))
        assert a.dtype == dtype
        assert_close(a.double(), b, atol=4 * step, rtol=4 * step)


def test_blocks_ignore_autocast_also_on_the_way_back():
    z = draw(700, 8, dtype=torch.float32)
    def run():
        x = z.clone().requires_grad_()
        loss = nt_xent(x, x.flip(0), .1)
        return loss.detach(), torch.autograd.grad(loss, x)[0]
    plain = run()
    with torch.autocast("cpu", torch.bfloat16): cast = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))


def test_mixed_types_of_queries_and_keys():
    half, single, double = draw(3, 4, dtype=torch.float16), draw(5, 4, dtype=torch.float32), draw(6, 4)
    assert cosine_logits(half, single, .1).dtype == torch.float32
    assert cosine_logits(single, double, .1).dtype == f64
    assert info_nce(half, half, double).dtype == f64


# compilation -----------------------------------------------------------------------------------------------------

def rows(n, seed=0): return draw(n, 8, seed=seed, dtype=torch.float32)


def compiled_cases():
    yield nt_xent, lambda n: (rows(n), rows(n, 1))
    yield sup_con, lambda n: (rows(n), torch.arange(n) % 5)
    yield info_nce, lambda n: (rows(n), rows(n, 1), rows(n + 1, 2))
    yield soft_target_cross_entropy, lambda n: (rows(n), rows(n, 1).softmax(1))


def agree_compiled(function, inputs, backend):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for values in inputs:
        anchors = values[0].requires_grad_()
        a, b = compiled(*values), function(*values)
        assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert_close(*(torch.autograd.grad(x, anchors)[0] for x in (a, b)), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("function, make", [pytest.param(f, m, id=f.__name__) for f, m in compiled_cases()])
def test_compiles_to_one_graph(function, make):
    agree_compiled(function, [make(6), make(9), make(1500)], "aot_eager")


@pytest.mark.slow
def test_compiles_with_inductor(tmp_path, monkeypatch):
    # kernels are kept on disk under a name without the processor's capability: those of another one do not compile, or crash
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    if not (shutil.which("g++") or shutil.which("clang++")): pytest.skip("no C++ compiler")
    agree_compiled(sup_con, [(rows(12), torch.arange(12) % 5)], "inductor")


# several processes -------------------------------------------------------------------------------------------------

def process(rank, world, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    data = torch.load(f"{folder}/data.pt", weights_only=True)
    part = slice(rank * data["n"], (rank + 1) * data["n"])
    results = {}
    for name, loss in distributed_losses().items():
        weight = data["weight"].clone().requires_grad_()                # one linear layer stands for the network
        value = loss(data["x0"][part] @ weight, data["x1"][part] @ weight, data["labels"][part], True)
        value.backward()
        dist.all_reduce(weight.grad)                                    # what data-parallel training does
        dist.all_reduce(value := value.detach())
        results[name] = (value / world, weight.grad / world)
    try: gather_with_gradient(torch.ones(2 + rank, 1))
    except ValueError as error: results["uneven"] = str(error)
    if rank == 0: torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def distributed_losses():
    return {"nt_xent": lambda a, b, y, gather: nt_xent(a, b, .2, gather_distributed=gather),
            "sup_con": lambda a, b, y, gather: sup_con(torch.cat([a, b]), y.repeat(2), .1, gather_distributed=gather)}


def test_two_processes_give_the_gradient_of_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    labels = tensor([0, 1, 2, 0, 5, 1, 1, 0, 3, 2])
    data = dict(n=5, x0=draw(10, 6), x1=draw(10, 6, seed=1), weight=draw(6, 4, seed=2), labels=labels)
    torch.save(data, tmp_path / "data.pt")
    torch.multiprocessing.spawn(process, (2, port, str(tmp_path)), nprocs=2)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert results["uneven"] == "every process must bring as many rows, got [2, 3]"
    for name, loss in distributed_losses().items():
        weight = data["weight"].clone().requires_grad_()
        value = loss(data["x0"] @ weight, data["x1"] @ weight, data["labels"], False)
        value.backward()
        assert_close(results[name][0], value.detach(), atol=1e-12, rtol=1e-12)
        assert_close(results[name][1], weight.grad, atol=1e-12, rtol=1e-10)


# wrong input -------------------------------------------------------------------------------------------------------

z, ids = torch.ones(3, 4), torch.arange(3)
refusals = [
    (lambda: nt_xent(z, z, 0), "temperature must be > 0 and finite, got 0"),
    (lambda: nt_xent(z, z, "warm"), "temperature must be > 0"),
    (lambda: nt_xent(z, z, .2, "avg"), "reduction must be .*, got 'avg'"),
    (lambda: nt_xent(z[0], z[0]), r"z0 must have shape \[N, D\], got \[4\]"),
    (lambda: nt_xent(z, z[:2]), r"z1 must have shape \[3, 4\], got \[2, 4\]"),
    (lambda: nt_xent(z, z[:, :3]), r"z1 must have shape \[3, 4\], got \[3, 3\]"),
    (lambda: nt_xent(z.long(), z), "z0 must be floating point, got torch.int64"),
    (lambda: nt_xent([[1.]], z), "z0 must be a tensor .*, got list"),
    (lambda: nt_xent(z / 0, z), "z0 must be finite"),
    (lambda: sup_con(z, ids[:2]), r"labels must have shape \[3\], got \[2\]"),
    (lambda: sup_con(z, ids.float()), "labels must be integers, got torch.float32"),
    (lambda: sup_con(z, ids > 1), "labels must be integers, got torch.bool"),
    (lambda: sup_con(z, [0, 1, 2]), "labels must be a tensor"),
    (lambda: info_nce(z, z[:2]), r"positives must have shape \[3, 4\], got \[2, 4\]"),
    (lambda: info_nce(z, z, z[:, :2]), r"negatives must have shape \[N, 4\], got \[3, 2\]"),
    (lambda: cosine_logits(z, z[:, :2], 1.), r"keys must have shape \[N, 4\], got \[3, 2\]"),
    (lambda: soft_target_cross_entropy(z, ids), "target must be a floating tensor"),
    (lambda: soft_target_cross_entropy(z, z[:2]), "target must have the shape of logits"),
    (lambda: soft_target_cross_entropy(z * math.nan, z), "logits must be finite or -inf"),
    (lambda: soft_target_cross_entropy(z, -z), "target must be finite and >= 0"),
    (lambda: forces(z, ids), "target must be a floating tensor"),
    (lambda: check_labels("labels", ids, 3, 2), r"labels must lie in 0..1, got 0..2"),
    (lambda: SupConLoss(temperature=-1), "temperature must be > 0 and finite, got -1"),
    (lambda: InfoNCELoss(reduction="max"), "reduction must be"),
]


@pytest.mark.parametrize("call, message", refusals)
def test_wrong_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_normalize_and_repulse_term_of_gathered_keys():
    keys = normalize(draw(6, 3))
    whole = repulse_term(keys / .2, keys)
    assert_close(repulse_term(keys[2:4] / .2, keys, own=2), whole[2:4])
    assert_close(repulse_term(keys[2:5] / .2, keys, own=2, rows=2), whole[2:5])
