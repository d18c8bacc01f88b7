"The laboratory of ICCL: plans, what they cost, evaluation, and runs of every rung."
from dataclasses import replace

import pytest
import torch

from arcbook.datasets import ImageSet
from arcbook.experiments import Plan, train_plan
from arcbook.labs.iccl import LAB, VARIANTS, _cost
from arcbook.papers.iccl import ICCL, protocol_views
from arcbook.profiles import Profile, profile_of
from arcbook.training import learning_rate


def close(a, b, tol=1e-6): return abs(float(a) - b) <= tol


def test_the_published_baseline_recipe():
    plan = LAB.planned("CE", "cifar100-lt:100", "gpu")
    b, v = plan.budget, protocol_views("cifar100-lt:100")
    assert (b.epochs, b.batch_size, b.lr, b.momentum, b.nesterov, b.weight_decay, b.warmup_epochs) == (200, 128, 0.1, 0.9, False, 2e-4, 5)
    rate = lambda epoch: learning_rate(b, round(epoch * 84), 84)
    assert close(rate(0), 0.1 / 420) and close(rate(2.5), 0.05, 3e-4) and close(rate(5), 0.1) and close(rate(159.9), 0.1)
    assert close(rate(160), 1e-3) and close(rate(179.9), 1e-3) and close(rate(180), 1e-5) and close(rate(199.9), 1e-5)
    assert (v.crop, v.flip, v.pad_mode, v.jitter, v.cutout, v.gray) == (("pad", 4), True, "zeros", None, 0, 0.0)
    assert v.mean == (0.4914, 0.4822, 0.4465) and v.std == (0.2023, 0.1994, 0.2010)
    assert plan.readings.backbone == "resnet32"
    assert sum(p.numel() for p in ICCL(10, "cifar10", plan.readings).parameters()) == 464154             # 0.46 M
    second = LAB.planned("ICCL", "cifar100-lt:100", "gpu").stages[1]
    assert (second.epochs, second.batch_size, second.lr, second.weight_decay) == (30, 128, 0.1, 5e-4)
    assert [round(learning_rate(second, e, 1), 6) for e in (0, 9, 10, 19, 20, 29)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]


@pytest.mark.parametrize("data,backbone,decay,epochs", [("imagenet-lt", "resnext50_32x4d", 5e-4, 10), ("inat2018", "resnet50", 1e-4, 30)])
def test_the_recipes_of_large_photographs(data, backbone, decay, epochs):
    plan = LAB.planned("ICCL", data, "gpu")
    first, second = plan.stages
    assert plan.readings.backbone == backbone
    assert (first.epochs, first.batch_size, first.lr, first.weight_decay, first.precision) == (90, 512, 0.2, decay, "bf16")
    assert second == replace(first, epochs=epochs)


@pytest.mark.parametrize("data,budget", [("digits-lt:20", "smoke"), ("shapes-lt:20", "cpu"), ("cifar100-lt:100", "gpu")])
def test_equal_steps_and_equal_compute(data, budget):
    plans = {name: LAB.planned(name, data, budget) for name in VARIANTS}
    full, equal = plans["ICCL"], plans.pop("CE, equal compute")
    assert len({p.budget for p in plans.values()}) == 1
    assert {p.stages[1:] for p in plans.values()} == {(), full.stages[1:]} and len(full.stages) == 2
    assert _cost(full) == 2 * full.budget.epochs + 1 + full.stages[1].epochs and _cost(plans["CE"]) == full.budget.epochs
    assert equal.budget.epochs == _cost(equal) == _cost(full)


@pytest.mark.parametrize("changes,cost", [({}, 2 * 40 + 1 + 10), (dict(centroids="epoch", cc_start_epochs=3), 2 * 40 + 37 + 10), (dict(use_aware=True), 3 * 40 + 11),
                                          (dict(w_ce=0.0), 2 * 40 + 11), (dict(w_ce=0.0, w_cc=0.0), 40 + 10), (dict(stage2="tau_norm"), 81), (dict(stage2="none"), 81)])
def test_a_pass_for_everything_that_is_looked_at(changes, cost):
    assert _cost(LAB.planned("ICCL", "digits-lt:20", "cpu", **changes)) == cost


def test_second_stages_that_train_nothing_or_are_left_out():
    of = lambda stage2: LAB.planned("ICCL", "digits-lt:20", "cpu", stage2=stage2).stages
    assert [stage and stage.epochs for stage in of("crt")] == [40, 10] and of("lws") == of("crt")
    assert of("tau_norm") == (of("crt")[0], None) and of("none") == of("crt")[:1]


def own(images, side): return Profile("photographs of plates", "own", "photographs", side, num_images=images, num_classes=3)

def test_a_set_of_ones_own_goes_by_its_size():
    cpu = lambda images, side: LAB.planned("ICCL", own(images, side), "cpu")
    few, some, many = (cpu(n, 32).budget for n in (72, 1500, 50_000))
    assert (few.epochs, few.batch_size) == (100, 32) and (some.epochs, some.batch_size) == (21, 32)
    assert (many.epochs, many.batch_size) == (10, 64)
    assert cpu(72, 16).readings.shrink == 1 and cpu(72, 32).readings.shrink == cpu(72, None).readings.shrink == 2
    assert cpu(72, None).test_stride == 1                                       # every test image counts
    assert LAB.planned("ICCL", "digits-of-plates", "cpu").budget.batch_size == 64                         # no digits
    gpu = lambda side: LAB.planned("ICCL", own(72, side), "gpu")
    assert gpu(None).readings.backbone == "resnet50" and gpu(32).readings.backbone == "resnet32"
    assert gpu(None).budget.batch_size == 64 and gpu(None).budget.lr == 0.025


def small_set(seed, subclass=True):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(6).repeat_interleave(torch.tensor([14, 9, 9, 7, 4, 4]))
    images = torch.randint(0, 256, (len(labels), 3, 16, 16), dtype=torch.uint8, generator=g)
    truth = {"subclass": torch.randint(0, 3, (len(labels),), generator=g)} if subclass else {}
    return ImageSet(images, labels, list("abcdef"), "digits", truth)


def trained(variant="ICCL", **changes):
    "A rung with two epochs and one, on drawn images."
    data = small_set(0)
    plan = LAB.planned(variant, data, "smoke", dim=8, backbone="resnet8", **changes)
    stages = tuple(stage and replace(stage, epochs=2 - i, batch_size=16) for i, stage in enumerate(plan.stages))
    return train_plan(LAB, Plan(stages, plan.readings), data, profile_of(data), test=lambda: small_set(1))


def test_metrics_are_of_the_last_stage():
    run, test = trained("ICCL", stage2="tau_norm"), small_set(1, subclass=False)
    metrics, arrays = LAB.evaluate(run, test)
    assert len(run.methods) == 2 and len(run.histories) == 1                    # a second method that was not trained
    first, last = (method.predict(test.images) for method in run.methods)
    share = lambda logits: float((logits.argmax(1) == test.labels).float().mean())
    assert close(metrics["top1"], share(last)) and close(metrics["top1_stage1"], share(first))
    assert torch.allclose(arrays["scores"], last.softmax(1), atol=1e-6) and "few_purity" not in metrics
    tail = test.labels >= 4                                                     # thirds of the six classes by size
    assert close(metrics["few_stage1"], share_of(first, test.labels, tail)) and close(metrics["few"], share_of(last, test.labels, tail))


def share_of(logits, labels, part): return float((logits.argmax(1) == labels)[part].float().mean())


def test_the_best_epoch_includes_the_last():
    run = trained(report="best")
    metrics, _ = LAB.evaluate(run, small_set(1))
    assert metrics["top1_best"] >= metrics["top1"] and float(run.method.best) == pytest.approx(metrics["top1_best"])


def test_maps_show_every_subclass():
    "A stride over a set that is sorted by sub-class shows some of them only."
    data = small_set(0)
    thousands = data.subset(torch.arange(len(data)).repeat(40))
    thousands.truth["subclass"] = torch.arange(len(thousands)) % 3
    _, arrays = LAB.evaluate(trained(), thousands)
    assert len(arrays["map_subclass"]) == 600
    assert arrays["map_subclass"].bincount().min() > 150


def test_checkpoints_of_both_stages_resume(tmp_path):
    data, whole = small_set(0), trained()
    def stop_at(n):
        calls = []
        def stop(step, method):
            calls.append(step)
            if len(calls) == n: raise KeyboardInterrupt
        return stop
    steps = [len(history.values) for history in whole.histories]
    again = lambda **k: train_plan(LAB, whole.plan, data, profile_of(data), folder=tmp_path, **k)
    for n in (steps[0] // 2, steps[0] // 2 + steps[1] // 2 + 2):
        with pytest.raises(KeyboardInterrupt): again(callback=stop_at(n))
    resumed = again()
    for a, b in zip(whole.methods, resumed.methods):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert [h.values for h in whole.histories] == [h.values for h in resumed.histories]


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="budget must be one of smoke, cpu, gpu"): LAB.planned("CE", "digits-lt:20", "huge")
    with pytest.raises(ValueError, match="variants must be among CE, "): LAB.planned("x", "digits-lt:20", "smoke")
    with pytest.raises(ValueError, match="data_seed must be 0: `resample` draws"): LAB.planned("CE", "digits-lt:20", data_seed=1)
