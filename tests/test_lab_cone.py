"The laboratory of CoNe: recipes, queues, what is measured, its rungs."
from dataclasses import replace

import pytest
import torch

from arcbook.datasets import load
from arcbook.glyphs import _draw_nuisances, make_shapes
from arcbook.labs import cone as lab
from arcbook.labs.cone import LAB
from arcbook.papers.cone import FAITHFUL, CoNe, Readings
from arcbook.profiles import Profile, profile_of
from arcbook.sampling import random_stream


def plan(data, budget="cpu", variant="CoNe"): return LAB.planned(variant, data, budget)


def test_recipes_of_the_specification():
    imagenet = plan("imagenet", "gpu")
    b, r = imagenet.budget, imagenet.readings
    assert (b.epochs, b.batch_size, b.lr, b.weight_decay, b.warmup_epochs, b.precision) == (100, 1024, 0.4, 1e-4, 5, "fp16")
    assert not b.nesterov and r == Readings()
    assert (r.backbone, r.queue_size, r.k, r.sup_temperature, r.dc_temperature, r.alpha_sup, r.alpha_dc, r.momentum, r.dim, r.mask_self) == (
        "resnet50", 65536, 512, 0.1, 0.07, 0.7, 0.4, 0.996, 256, False)
    small = plan("cifar100", "gpu")
    assert (small.budget.epochs, small.budget.batch_size, small.budget.lr, small.budget.weight_decay) == (200, 256, 0.1, 5e-4)
    assert small.readings.backbone == "resnet18-small"
    assert small.readings.queue_size == 64 * 256 < 50000 / 2 and small.readings.k == 512 and small.readings.mask_self


def test_recipes_of_the_book():
    glyphs, digits, cifar = (plan(data) for data in ("shapes-few:200", "digits-few:40", "cifar100-few:100"))
    for p, epochs, lr, body, size, k in ((glyphs, 40, 0.02, "resnet8/2", 599, 399), (digits, 30, 0.05, "resnet8", 199, 79),
                                         (cifar, 20, 0.05, "resnet8/2", 4096, 163)):
        r = p.readings
        assert (p.budget.epochs, p.budget.lr, r.backbone, r.queue_size, r.k, r.mask_self) == (epochs, lr, body, size, k, True)
    assert plan("digits", "smoke").budget.epochs == 3 and plan("digits", "smoke").test_stride == 4


@pytest.mark.parametrize("data,budget", [("shapes-few:200", "cpu"), ("digits-few:40", "smoke"), ("digits-few:10", "gpu"), ("digits", "cpu")])
def test_small_queues_stay_below_half_the_data(data, budget):
    images = load(data, "train")
    r = plan(images, budget).readings
    assert r.queue_size < len(images) / 2
    assert 2 <= r.k / (r.queue_size / images.num_classes) <= 8 and r.mask_self


def test_unknown_numbers_count_as_large():
    r = plan("cifar100-lt:100", "gpu").readings
    assert (r.queue_size, r.k) == (64 * 256, 512)
    assert plan(Profile("mine", "own", "photographs"), "gpu").readings == Readings()


def test_small_sets_of_photographs_do_not_meet_their_own_keys():
    assert plan("imagenet", "gpu").readings == Readings()
    for data, n in (("cub200", 5994), ("imagenet-lt", 115846)):
        r = plan(data, "gpu").readings
        assert r.queue_size < n / 2 and r.mask_self and r.backbone == "resnet50"


def test_own_images_go_by_their_size_and_number():
    own = Profile("mine", "own", "photographs", num_images=500, num_classes=4)
    for side, body, gpu in ((8, "resnet8", "resnet18-small"), (32, "resnet8/2", "resnet18-small"), (None, "resnet8/2", "resnet50")):
        profile = replace(own, side=side)
        assert plan(profile).readings.backbone == body and plan(profile, "gpu").readings.backbone == gpu
        assert plan(profile).readings.queue_size == 249 and plan(profile, "gpu").readings.mask_self


def test_the_number_of_steps_comes_from_plan_and_images():
    images = load("digits-few:40", "train")
    method = LAB.build(images, profile_of(images), plan(images))
    assert method.config["total_steps"] == 30 * (400 // 64)


def test_light_and_dark_glyphs_are_told_apart():
    "Against what the generator drew: its dark grounds have a value of 0.1 to 0.4, its light ones of 0.7 to 0.95."
    drawn = _draw_nuisances(120, random_stream(5, 0))
    truth = drawn["glyph"].max(1) > drawn["ground"].max(1)
    assert (lab._lighter(make_shapes(20, seed=5)).numpy() == truth).mean() > 0.9


def test_evaluation_measures_what_labels_do_not_tell():
    torch.manual_seed(0)
    glyphs, test = load("shapes-few:4", "train"), load("shapes", "val").subset(torch.arange(0, 600, 7))
    method = CoNe(6, "shapes", Readings(backbone="resnet8", dim=8, head_hidden=16, queue_size=9))
    metrics, arrays = lab._measured(method, test, glyphs)
    assert set(metrics) == {"top1", "knn", "subclass", "subclass_within", "lighter_within"} and all(0 <= v <= 1 for v in metrics.values())
    assert {len(arrays[n]) for n in ("predicted", "labels", "embeddings", "features", "map_labels", "map_subclasses", "map_lighter")} == {len(test)}
    assert arrays["embeddings"].shape[1] == 8 and arrays["features"].shape[1] == 64


def test_the_ladder_and_its_controls():
    assert LAB.ladder == tuple(LAB.variants)[:5] and len(LAB.variants) == 7
    for variant in LAB.variants: assert plan("digits-few:10", variant=variant).budget == plan("digits-few:10").budget
    coded = plan("digits-few:40", variant="CoNe, as coded").readings
    assert {name: getattr(coded, name) for name in FAITHFUL["code"]} == FAITHFUL["code"]


def test_a_control_can_be_run_by_its_name():
    outcome = LAB.run("CoNe, as coded", "digits-few:4", "smoke")
    assert outcome.record.variant == "CoNe, as coded" and outcome.record.method["queue_start"] == "random"
    assert outcome.record.terms["sup"][-1] > 0
