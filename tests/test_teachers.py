"""EMA teachers and consistency: what the notebook cannot show briefly (networks, files, processes, compilation)."""
import copy
import math
import pickle

import pytest
import torch
from torch import nn

from arcbook.teachers import (ConsistencyLoss, EMATeacher, consistency, cosine_momentum, mean_teacher_decay,
                              sigmoid_rampup)


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).to(dtype)


def train(student, teacher, steps, first=1):
    "A few steps of SGD on random batches that depend on the step only."
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(first, first + steps):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, 8, 8, generator=g)
        loss = consistency(student(x), teacher(x.flip(3))) + student(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(step)


# EMATeacher ----------------------------------------------------------------------------------------------------------

def test_whole_network_equals_one_number_at_a_time():
    student = network(dtype=torch.float64)
    teacher = EMATeacher(student, mean_teacher_decay(0.8), buffers="ema")
    expected = {k: v.clone() for k, v in student.state_dict().items()}
    for step in range(1, 9):
        for p in [*student.parameters(), student[1].running_mean, student[1].running_var]:
            p.data += torch.randn_like(p)
        student[1].num_batches_tracked += 3
        teacher.update(step)
        a = min(1 - 1 / (step + 1), 0.8)
        for k, v in student.state_dict().items():
            expected[k] = a * expected[k] + (1 - a) * v if v.is_floating_point() else v.clone()
    for k, v in teacher.module.state_dict().items():
        torch.testing.assert_close(v, expected[k], rtol=1e-12, atol=1e-12)
    assert teacher.updates == 8


@pytest.mark.parametrize("buffers", ["own", "copy", "ema"])
def test_file_and_resume_bit_for_bit(buffers, tmp_path):
    def pair():
        student = network(1)
        return student, EMATeacher(student, mean_teacher_decay(0.9), buffers)
    whole = pair()
    train(*whole, steps=6)
    cut = pair()
    train(*cut, steps=3)
    torch.save([m.state_dict() for m in cut], tmp_path / "half.pt")
    resumed = pair()
    states = torch.load(tmp_path / "half.pt", weights_only=True)
    for module, state in zip(resumed, states): module.load_state_dict(state)
    train(*resumed, steps=3, first=4)
    for a, b in zip(whole, resumed):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not torch.equal(whole[1].module[0].weight, whole[0][0].weight)


@pytest.mark.parametrize("buffers", ["own", "copy", "ema"])
def test_buffer_rules(buffers):
    student = network()
    teacher = EMATeacher(student, 0.75, buffers)
    student(torch.randn(16, 3, 8, 8) + 2)
    teacher.update(1)
    bn, start, now = teacher.module[1], torch.zeros(4), student[1].running_mean
    if buffers == "own": assert torch.equal(bn.running_mean, start) and bn.num_batches_tracked == 0
    if buffers == "copy": assert torch.equal(bn.running_mean, now) and bn.num_batches_tracked == 1
    if buffers == "ema":
        torch.testing.assert_close(bn.running_mean, 0.25 * now)
        assert bn.num_batches_tracked == 1
    before = bn.running_mean.clone()
    teacher.train()(torch.randn(16, 3, 8, 8))
    assert torch.equal(bn.running_mean, before) == (buffers != "own")
    teacher.eval()
    after = bn.running_mean.clone()
    teacher(torch.randn(16, 3, 8, 8))
    assert torch.equal(bn.running_mean, after) and not teacher.module.training


def test_teacher_is_never_trained():
    student = network()
    teacher = EMATeacher(student)
    method = nn.ModuleDict({"student": student, "teacher": teacher})
    assert len(list(method.parameters())) == 2 * len(list(student.parameters()))
    assert not any(k.startswith("teacher.student") or "_student" in k for k in method.state_dict())
    frozen = [p.clone() for p in teacher.parameters()]
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0, weight_decay=0.1)
    x = torch.randn(4, 3, 8, 8)
    (consistency(student(x), teacher(x)) + consistency(student(x), student(x + 1))).backward()
    optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(frozen, teacher.parameters()))
    for _ in range(3): teacher.update(1)        # and it does move when it is asked to
    assert not torch.equal(frozen[0], next(teacher.parameters()))


def test_equal_teacher_stays_equal_bit_for_bit():
    student = network()
    teacher = EMATeacher(student, mean_teacher_decay(), buffers="ema")
    for step in range(1, 30): teacher.update(step)
    assert all(torch.equal(v, teacher.module.state_dict()[k]) for k, v in student.state_dict().items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_method_has_its_own_student(duplicate):
    method = nn.Module()
    method.teacher = EMATeacher(nn.Linear(2, 2))      # the teacher is registered first
    method.student = method.teacher.student
    twin = duplicate(method)
    assert twin.teacher.student is twin.student is not method.student
    twin.student.weight.data.zero_()
    twin.teacher.update(1)
    assert not torch.equal(twin.teacher.module.weight, method.teacher.module.weight)


def test_student_cast_and_moved_later():
    method = nn.Module()
    method.student = nn.Linear(2, 2)
    method.teacher = EMATeacher(method.student, 0.5)
    method.double()
    method.student.weight.data.fill_(1), method.teacher.module.weight.fill_(0)
    method.teacher.update(1)
    assert method.teacher.module.weight.dtype == torch.float64 and (method.teacher.module.weight == 0.5).all()
    method.student.bfloat16()                         # the teacher alone stays in float64
    method.teacher.update(2)
    assert (method.teacher.module.weight == 0.75).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_average_is_kept_and_saved(dtype):
    def make():
        student = nn.Linear(1, 1, bias=False).to(dtype)
        student.weight.data.fill_(1)
        teacher = EMATeacher(student, 0.999)
        student.weight.data.fill_(2)
        return teacher
    whole, first, second = make(), make(), make()
    for _ in range(400): whole.update()
    for _ in range(200): first.update()
    second.load_state_dict(first.state_dict())
    for _ in range(200): second.update()
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())
    assert whole.module.weight.dtype == dtype
    assert whole.module.weight.item() == pytest.approx(2 - 0.999 ** 400, rel=torch.finfo(dtype).eps)
    second.module.weight.data.fill_(-1)               # loaded from elsewhere: the average follows
    second.update(1)
    assert second.average0.item() == pytest.approx(-1 + 0.003)


def test_tied_weights_and_empty_modules():
    student = nn.Module()
    student.a = nn.Linear(3, 3, bias=False)
    student.b = nn.Linear(3, 3, bias=False)
    student.b.weight = student.a.weight
    teacher = EMATeacher(student, 0.0)
    student.a.weight.data.fill_(1)
    teacher.update(1)
    assert teacher.module.a.weight is teacher.module.b.weight and (teacher.module.b.weight == 1).all()
    EMATeacher(nn.ReLU()).update(1)


def test_under_ddp_and_inside_autocast(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        class Method(nn.Module):
            def __init__(self):
                super().__init__()
                self.student = network()
                self.teacher = EMATeacher(self.student, 0.5, buffers="ema")
            def forward(self, x): return consistency(self.student(x), self.teacher(x.flip(3)))
        method = Method()
        ddp = nn.parallel.DistributedDataParallel(method)
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        old = [p.clone() for p in method.teacher.parameters()]
        with torch.autocast("cpu", dtype=torch.bfloat16): loss = ddp(torch.randn(8, 3, 8, 8))
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        method.teacher.update(1)
        for o, t, s in zip(old, method.teacher.parameters(), method.student.parameters()):
            torch.testing.assert_close(t, 0.5 * o + 0.5 * s)
    finally:
        torch.distributed.destroy_process_group()


def test_bad_arguments():
    student = nn.Linear(2, 2)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="decay must be in"): EMATeacher(student, bad)
        with pytest.raises(ValueError, match="decay must be in"): EMATeacher(student, lambda step: bad).update(1)
    with pytest.raises(ValueError, match="buffers must be"): EMATeacher(student, buffers=True)
    with pytest.raises(ValueError, match="max_decay must be in"): mean_teacher_decay(2)
    with pytest.raises(ValueError, match="total_steps must be > 0"): cosine_momentum(0.9, -1)
    with pytest.raises(ValueError, match="length must be >= 0"): sigmoid_rampup(0, -2)
    teacher = EMATeacher(nn.Sequential(nn.Linear(2, 2)))
    teacher.student.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="student must have the tensors"): teacher.update(1)


# consistency ---------------------------------------------------------------------------------------------------------

def loops(student, teacher, kind):
    "Nested loops in Python floats."
    losses = []
    for s, t in zip(student.tolist(), teacher.tolist()):
        p, q = ([math.exp(v - max(row)) for v in row] for row in (s, t))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        if kind == "mse": losses.append(sum((a - b) ** 2 for a, b in zip(p, q)) / len(p))
        else: losses.append(sum(b * math.log(b / a) for a, b in zip(p, q)))
    return losses


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_gradients_reductions(kind, dtype):
    g = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(2, 7, 11, generator=g, dtype=torch.float64)).to(dtype)
    s.requires_grad_()
    each = consistency(s, t, kind, "none")
    expected = torch.tensor(loops(s, t, kind), dtype=each.dtype)
    assert each.shape == (7,) and each.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(consistency(s, t, kind), expected.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ConsistencyLoss(kind, "sum")(s, t), expected.sum(), rtol=1e-5, atol=1e-6)
    consistency(s, t, kind, "sum").backward()
    p, q = s.detach().double().softmax(1), t.double().softmax(1)
    d = p - q
    by_hand = d if kind == "kl" else 2 / 11 * p * (d - (p * d).sum(1, keepdim=True))
    torch.testing.assert_close(s.grad.double(), by_hand, rtol=0, atol=1e-4 + torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_gradcheck_and_constant_teacher(kind):
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 4, 5, generator=g, dtype=torch.float64)
    s.requires_grad_(), t.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: consistency(s, t.detach(), kind), s)
    consistency(s, t, kind).backward()
    assert t.grad is None and s.grad is not None
    s.grad = None
    consistency(s, s.detach(), kind).backward()
    assert consistency(s, s, kind) == 0 and s.grad.abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_compiles_without_a_graph_break(kind):
    s, t = torch.randn(2, 6, 5).unbind()
    s.requires_grad_()
    compiled = torch.compile(consistency, fullgraph=True, backend="aot_eager")
    loss, plain = compiled(s, t, kind), consistency(s, t, kind)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, s), torch.autograd.grad(plain, s))


def test_extreme_logits_shift_and_empty_batch():
    s, t = torch.tensor([[200.0, -200.0]], requires_grad=True), torch.tensor([[-200.0, 200.0]])
    loss = consistency(s, t)
    assert loss == 400 and torch.equal(torch.autograd.grad(loss, s)[0], torch.tensor([[1.0, -1.0]]))
    assert consistency(s, t, "mse").isfinite()
    torch.testing.assert_close(consistency(s + 7, t - 3), loss)
    empty = torch.zeros(0, 3, requires_grad=True)
    consistency(empty, empty.detach()).backward()
    assert consistency(empty, empty) == 0 and empty.grad.shape == (0, 3)


@pytest.mark.parametrize("s, t, word", [
    (torch.zeros(3), torch.zeros(3), "student_logits"), (torch.zeros(2, 3), torch.zeros(2, 4), "teacher_logits"),
    (torch.zeros(2, 3), torch.zeros(3, 3), "teacher_logits"),
    (torch.zeros(2, 3).long(), torch.zeros(2, 3), "student_logits"),
    (torch.zeros(2, 3), torch.full((2, 3), math.nan), "teacher_logits"),
    ([[0.0]], torch.zeros(1, 1), "student_logits")])
def test_bad_logits_are_named(s, t, word):
    with pytest.raises(ValueError, match=word): consistency(s, t)


@pytest.mark.parametrize("kwargs, word", [({"kind": "l2"}, "kind"), ({"reduction": "batchmean"}, "reduction")])
def test_bad_choices_are_named(kwargs, word):
    with pytest.raises(ValueError, match=word): ConsistencyLoss(**kwargs)
    with pytest.raises(ValueError, match=word): consistency(torch.zeros(1, 2), torch.zeros(1, 2), **kwargs)


@pytest.mark.parametrize("schedule", [mean_teacher_decay(0.9), cosine_momentum(0.996, 100)])
def test_schedules_pickle(schedule):
    import pickle
    again = pickle.loads(pickle.dumps(schedule))
    assert [again(t) for t in (1, 2, 50, 100)] == [schedule(t) for t in (1, 2, 50, 100)]
    pickle.dumps(EMATeacher(torch.nn.Linear(2, 2), schedule))
