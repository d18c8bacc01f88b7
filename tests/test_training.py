"Processes, faults and states that the notebook cannot show."
import json, math, threading
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcbook.datasets import load
from arcbook.papers.attract_repulse import AttractRepulse, Readings
from arcbook.training import _epoch_batches as epoch_batches
from arcbook.training import (Budget, Method, NonFiniteLoss, fit, learning_rate, load_checkpoint, save_checkpoint,
                              step_seed)

FEW = load("digits-few:10", "train")


class Terms(NamedTuple):
    loss: Tensor


class Linear(Method):
    "The smallest method: a linear classifier of pixels."
    name = "linear"
    def __init__(self, **config):
        super().__init__(**config)
        self.layer = nn.Linear(3 * 16 * 16, 10)

    def forward(self, batch, step, generator):
        x = batch.images.flatten(1).float() / 255
        noise = torch.rand(x.shape, generator=generator)
        return Terms(F.cross_entropy(self.layer(F.dropout(x + 0.1 * noise, 0.2)), batch.labels))


def fresh(seed=0, **config):
    torch.manual_seed(seed)
    return Linear(**config)


def budget(**changes): return Budget("smoke", **{**dict(epochs=3, batch_size=40, lr=0.1, checkpoint_seconds=0), **changes})


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_resume_equals_uninterrupted(tmp_path, stop_at):
    def stop(step, method):
        if step == stop_at: raise KeyboardInterrupt
    whole, cut = fresh(), fresh()
    history = fit(whole, FEW, budget())
    with pytest.raises(KeyboardInterrupt): fit(cut, FEW, budget(), out=tmp_path, callback=stop)
    resumed = fresh(9)
    again = fit(resumed, FEW, budget(), out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert again.values == history.values and again.images == history.images


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_learning_rates(schedule):
    b = budget(schedule=schedule, warmup_epochs=1, epochs=10)
    rates = [learning_rate(b, s, 7) for s in range(70)]
    assert all(r > 0 for r in rates) and max(rates) <= b.lr + 1e-12
    assert all(math.isclose(rates[s], b.lr * (s + 1) / 7) for s in range(7))
    later = rates[7:]
    assert later == sorted(later, reverse=True)


def test_cosine_equals_torch():
    b = budget(epochs=5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=b.lr)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(20):
        assert math.isclose(learning_rate(b, step, 4), optimizer.param_groups[0]["lr"], abs_tol=1e-9)
        optimizer.step(), reference.step()


def test_refuses_a_checkpoint_of_something_else(tmp_path):
    fit(fresh(width=1), FEW, budget(epochs=1), out=tmp_path)
    cases = [(fresh(width=2), FEW, budget(epochs=1), 0, "method.width is 1 there and 2 here"), (fresh(width=1), FEW, budget(epochs=2), 0, "budget.epochs is 1 there and 2 here"),
             (fresh(width=1), FEW, budget(epochs=1), 5, "seed is 0 there and 5 here"), (fresh(width=1), FEW.subset(torch.arange(50)), budget(epochs=1), 0, "split is")]
    for method, data, b, seed, message in cases:
        with pytest.raises(ValueError, match=message): fit(method, data, b, seed=seed, out=tmp_path)


def test_resume_false_starts_again(tmp_path):
    first = fit(fresh(), FEW, budget(epochs=1), out=tmp_path)
    second = fit(fresh(), FEW, budget(epochs=1), out=tmp_path, resume=False)
    assert first.values == second.values


def test_checkpoints_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return (print, ("owned",))
    torch.save({"identity": "{}", "x": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"): load_checkpoint(tmp_path / "checkpoint.pt", {})


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    monkeypatch.setattr(torch, "save", lambda state, file: (file.write(b"half"), (_ for _ in ()).throw(OSError("disk full"))))
    with pytest.raises(OSError): save_checkpoint(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value):
    class Broken(Linear):
        def forward(self, batch, step, generator):
            loss = super().forward(batch, step, generator).loss
            return Terms(loss * value if step == 4 else loss)
    torch.manual_seed(0)
    with pytest.raises(NonFiniteLoss, match=f"loss became {value} at step 4 of linear; the last good checkpoint is {tmp_path}"):
        fit(Broken(), FEW, budget(), out=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3 and all(torch.isfinite(v).all() for v in state["method"].values())


def test_fewer_images_than_the_batch_and_none():
    history = fit(fresh(), FEW.subset(torch.arange(7)), budget())
    assert len(history.values) == 3 and history.images == 21
    with pytest.raises(ValueError, match="at least one image"): fit(fresh(), FEW.subset(torch.arange(0)), budget())


def test_clipping_and_learning_rate_scales():
    class Scaled(Linear):
        def parameter_groups(self): return [{"params": [self.layer.weight], "lr_scale": 0.0}, {"params": [self.layer.bias]}]
    torch.manual_seed(0)
    method = Scaled()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    fit(method, FEW, budget(clip_norm=1e-3, epochs=1, momentum=0.0, weight_decay=0.0))
    assert torch.equal(method.layer.weight, before["layer.weight"])
    moved = (method.layer.bias - before["layer.bias"]).norm().item()
    assert 0 < moved <= 2 * 0.1 * 1e-3 * 1.01                    # two steps of at most lr x clip norm


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_trains(precision):
    torch.manual_seed(0)
    method = AttractRepulse(10, "digits", Readings(backbone="resnet8", mt_stage="joint"))
    history = fit(method, FEW, budget(precision=precision, epochs=1))
    assert all(math.isfinite(v) for row in history.values for v in row)
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_seeds_are_stable():
    "Known values: a resumed run on another machine draws the same views."
    assert step_seed(0, 0, 0, 1) == 8407437806151696170
    assert step_seed(1, 2) != step_seed(2, 1) and 0 <= step_seed(2**40, 3) < 2**63


# where images lie -------------------------------------------------------------------------------

@pytest.fixture
def root(tmp_path):
    "`few` in prepared form, and the same images as photographs in files (`photos`)"
    from PIL import Image
    (tmp_path / "few" / "train").mkdir(parents=True), (tmp_path / "photos" / "images").mkdir(parents=True)
    pixels = FEW.images.permute(0, 2, 3, 1).contiguous().numpy()
    np.save(tmp_path / "few" / "train" / "images.npy", pixels), np.save(tmp_path / "few" / "train" / "labels.npy", FEW.labels.numpy())
    for i, image in enumerate(pixels): Image.fromarray(image).save(tmp_path / "photos" / "images" / f"{i}.png")
    (tmp_path / "photos" / "train.txt").write_text("".join(f"{i}.png {k}\n" for i, k in enumerate(FEW.labels.tolist())))
    for name in ("few", "photos"): (tmp_path / name / "classes.json").write_text(json.dumps(FEW.classes))
    return tmp_path


def weights(data, out=None, stop_at=None, seed=0):
    def stop(step, method):
        if step == stop_at: raise KeyboardInterrupt
    method = fresh(seed)
    try: history = fit(method, data, budget(), out=out, callback=stop)
    except KeyboardInterrupt: history = None
    return [*method.state_dict().values()], history


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_mapped_set_trains_as_one_in_memory(root, tmp_path):
    mapped, threads = load("few", "train", root), threading.active_count()
    (a, whole), (b, history) = weights(FEW), weights(mapped)
    assert same(a, b) and whole.values == history.values and threading.active_count() == threads
    weights(mapped, tmp_path / "out", stop_at=4)
    assert threading.active_count() == threads
    assert same(a, weights(load("few", "train", root), tmp_path / "out", seed=5)[0])
    part = torch.arange(99, -1, -2)
    assert same(weights(FEW.subset(part))[0], weights(mapped.subset(part))[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_photographs_train_and_resume(root, tmp_path, workers):
    plain = load("photos", "train", root, size=16, crop="whole", workers=workers)
    assert same(weights(plain)[0], weights(FEW)[0])
    boxes = load("photos", "train", root, size=16, crop="resized", workers=workers)
    whole, history = weights(boxes)
    assert not same(whole, weights(plain)[0]) and history.images == 240
    assert weights(boxes, tmp_path / "out", stop_at=3)[1] is None
    assert same(whole, weights(load("photos", "train", root, size=16, crop="resized", workers=2 - workers), tmp_path / "out", seed=7)[0])


def test_random_decoding_changes_between_epochs(root):
    seen, data = [], load("photos", "train", root, size=16, crop="resized", workers=0)
    class Watch(Linear):
        def epoch_indices(self, labels, batch_size, generator): return torch.arange(8).view(2, 4)
        def forward(self, batch, step, generator):
            seen.append(batch.images.clone())
            return super().forward(batch, step, generator)
    torch.manual_seed(0)
    fit(Watch(), data, budget(epochs=2))
    assert len(seen) == 4 and not torch.equal(seen[0], seen[2]) and not torch.equal(seen[1], seen[3])


def test_each_process_reads_its_own_share(root):
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0)).view(4, 2, 12)
    parts = []
    for rank in range(3):
        run = SimpleNamespace(rank=rank, world=3, device=torch.device("cpu"), data=load("few", "train", root), seed=0)
        parts.append(list(epoch_batches(run, order, 0)))
    for step, row in enumerate(order):
        assert torch.equal(torch.stack([parts[rank][step].indices for rank in range(3)], -1).flatten(1), row)
        for rank in range(3):
            batch = parts[rank][step]
            assert torch.equal(batch.images, FEW.images[batch.indices]) and torch.equal(batch.labels, FEW.labels[batch.indices])


def test_a_damaged_photograph_stops_the_run_with_its_path(root):
    path = root / "photos" / "images" / "42.png"
    path.write_bytes(path.read_bytes()[:60])
    for workers in (0, 1):
        with pytest.raises(ValueError, match="42.png is damaged"):
            fit(fresh(), load("photos", "train", root, size=16, workers=workers), budget())
