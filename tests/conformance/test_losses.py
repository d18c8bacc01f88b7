"One property at a time, over every loss of the shelf."
import copy, pickle

import pytest
import torch
from torch.testing import assert_close

from registry import LOSSES, public_losses

every_loss = pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
floats = lambda inputs, change: {k: change(v) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def test_no_loss_of_the_shelf_is_missing_here():
    assert public_losses() == {case.name for case in LOSSES}


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions(case, dtype):
    "The value in any precision is that of the same numbers in float64; the arithmetic is in float32 at least."
    low = floats(case.inputs(), lambda v: v.to(dtype))
    exact = case.call(**floats(low, lambda v: v.double()))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float64): found = case.call(**low)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found.double(), exact, rtol=2e-4 if dtype != torch.float64 else 1e-12, atol=2e-4 if dtype != torch.float64 else 1e-12)


@every_loss
def test_one_graph(case):
    inputs, module = floats(case.inputs(), lambda v: v.float()), case.make()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
    result = compiled(**inputs)
    assert_close(getattr(result, "loss", result), case.call(**inputs))
    torch.compiler.reset()


@every_loss
def test_gradients_are_those_of_the_value(case):
    "Finite differences in float64, for every input that learns; constants get none."
    inputs = case.inputs()
    leaves = [inputs[name].clone().requires_grad_() for name in case.grad]
    assert torch.autograd.gradcheck(lambda *values: case.call(**dict(zip(case.grad, values))), leaves, atol=1e-5)
    fixed = {name: inputs[name].clone().requires_grad_() for name in case.constant}
    learns = {name: inputs[name].clone().requires_grad_() for name in case.grad}
    case.call(**fixed, **learns).backward()
    assert all(v.grad is None or not v.grad.any() for v in fixed.values())
    assert all(v.grad is not None and v.grad.any() for v in learns.values())


@every_loss
def test_an_empty_batch_is_zero_with_a_gradient_path(case):
    if not case.rows: pytest.skip("takes views first: an empty batch is refused by name")
    empty = {name: case.inputs()[name][:0] for name in case.rows}
    empty = {k: v.requires_grad_() if v.is_floating_point() and k in case.grad else v for k, v in empty.items()}
    loss = case.call(**empty)
    assert loss == 0 and loss.requires_grad
    loss.backward()


@every_loss
def test_a_batch_of_one_is_finite(case):
    if case.rows: one = {name: case.inputs()[name][:1] for name in case.rows}
    else: one = {k: v[:, :1] if v.ndim == 3 else v[:1] for k, v in case.inputs().items()}
    assert case.call(**one).isfinite()


@every_loss
def test_zero_rows_are_finite(case):
    "Embeddings without a direction, logits without a preference."
    inputs = {k: torch.zeros_like(v).requires_grad_() if k in case.grad else v for k, v in case.inputs().items()}
    loss = case.call(**inputs)
    loss.backward()
    assert loss.isfinite() and all(inputs[k].grad.isfinite().all() for k in case.grad if inputs[k].grad is not None)


@every_loss
def test_nan_is_refused_by_name(case):
    for name in case.grad:
        broken = case.inputs()[name].clone()
        broken.view(-1)[0] = torch.nan
        with pytest.raises(ValueError, match=f"{name.split('[')[0]}.*(NaN|finite)|(NaN|finite)"): case.call(**{name: broken})


@every_loss
def test_pickles_and_copies(case):
    module, want = case.make(), case.call()
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)): assert_close(case.call(twin), want)
    assert not module.state_dict()                       # a loss holds settings, no state


@every_loss
def test_says_its_settings(case):
    assert any(mark in repr(case.make()) for mark in ("=", "temperature")), repr(case.make())


@every_loss
def test_runs_in_train_and_eval_alike(case):
    module = case.make()
    assert_close(case.call(module.train()), case.call(module.eval()))
