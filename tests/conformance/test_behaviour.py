"""Records are judged by behaviour. The pins hold on this machine; every reading moves its probe or stands on a list with the
reason; deliberate mistakes are caught and named; what changes nothing changes nothing."""
import functools
from dataclasses import fields, replace

import pytest
import torch

from arcbook import behaviour, contrast, ledger, memory, probes, sampling, selection, teachers, views
from registry import LABS, changed

TOOLKIT = "toolkit"
every_lab = pytest.mark.parametrize("key", LABS)


@pytest.mark.parametrize("key", [TOOLKIT, *LABS])
def test_the_code_behaves_as_pinned(key):
    "`arcbook records --check`, for one paper: nothing changed, nothing new, nothing gone."
    found = probes.check_behaviour(key)
    assert not found.changed and not found.new and not found.gone, found
    if found.unclear: pytest.skip(f"pinned on another torch, cannot tell: {sorted(found.unclear)[:5]}")


def test_every_record_that_comes_with_the_book_says_what_it_rests_on():
    records = ledger.load_all()
    assert records and all(ledger.state(r) in ("fresh", "stale") for r in records)
    assert all(r.pins for r in records)


@every_lab
def test_pins_name_every_rung_and_loss(key):
    lab, pins = probes.lab_of(key), behaviour.load_behaviour(ledger.runs_root() / key).pins
    wanted = {f"rung:{v}" for v in lab.variants} | {f"data:{f}" for f in lab.probes.families} | {"measure"}
    assert wanted | {f"loss:{name}" for name, *_ in lab.probes.losses} == set(pins)
    assert all(r.pins and set(r.pins) <= set(pins) for r in ledger.load_all(key))


# readings: each must move the probe of its method

VALUES = {       # values that a small probe can feel, where the next one would be too near
    ("attract_repulse", "cr_temperature"): 0.3, ("ad_net", "border_trim"): 0.2, ("ad_net", "eval_every"): 100, ("iccl", "cc_ramp_epochs"): 3, ("clim", "kmeans_iters"): 1,
    ("cone", "mask_self"): False}      # the plan of a small set has it already
WITH = {         # readings that speak only where another one lets them
    ("attract_repulse", "mix_rce"): dict(mix="mixup"), ("ad_net", "eval_every"): dict(report="best"), ("iccl", "tau_norm"): dict(stage2="tau_norm"),
    ("clim", "same_cluster"): dict(num_clusters=10, num_neighbours=23), ("cone", "start"): dict(queue_size=40), ("cone", "queue_start"): dict(queue_size=40, alpha_dc=0.0),
    ("ad_net", "aircraft_eval"): dict(family="aircraft")}
MEASURED = {("ad_net", "report"), ("iccl", "report")}      # they change what is measured, not how one trains
ELSEWHERE = {    # no probe can move: the reason, and where it is tested instead
    ("ad_net", "amp"): "half precision of the gpu budget: test_readings_of_the_gpu_budget",
    ("attract_repulse", "tta_average"): "how ten crops vote; the probe's arg max is the same: tests/test_attract_repulse.py",
    ("ad_net", "decode"): "the squares that photographs are decoded to; images of a probe are no photographs: tests/test_lab_ad_net.py",
    ("clim", "tie"): "acts where two distances to a centre are exactly equal: tests/test_clim.py, the twelve points"}


def others(key, name, value, hint):
    "Another value for a reading: an option, or a number that is clearly different."
    if (key, name) in VALUES: return [VALUES[key, name]]
    found = changed(value, hint)
    if found or isinstance(value, (bool, str)) or value is None or isinstance(value, tuple): return found[:1]
    return [value + 1] if isinstance(value, int) else [0.5 if value != 0.5 else 0.25]


def readings():
    for key in LABS:
        lab = probes.lab_of(key)
        for name, hint in lab.readings.hints().items():
            default = next(f.default for f in fields(lab.readings) if f.name == name)
            for value in others(key, name, lab.probes.tiny.get(name, default), hint): yield key, name, value


@functools.cache
def baseline(key, companions):
    lab = probes.lab_of(key)
    return probes.probe(lab, lab.probes.full, **dict(companions))


def metrics_of(key, **changes):
    lab = probes.lab_of(key)
    return probes.probe_measure(replace(lab, variants={**lab.variants, lab.probes.full: {**lab.variants[lab.probes.full], **changes}}))


@pytest.mark.parametrize("key,name,value", list(readings()), ids=str)
def test_every_reading_moves_its_probe(key, name, value):
    if (key, name) in ELSEWHERE: pytest.skip(ELSEWHERE[key, name])
    if (key, name) in MEASURED: assert behaviour.moved(metrics_of(key), metrics_of(key, **{name: value}), 1e-9)
    else:
        lab, companions = probes.lab_of(key), WITH.get((key, name), {})
        before = baseline(key, tuple(companions.items()))
        try: after = probes.probe(lab, lab.probes.full, **companions, **{name: value})
        except ValueError as error:
            assert "must be" in str(error), error                   # excluded by another reading: said by name
            return
        assert behaviour.moved(before, after, behaviour.TOLERANCE["rung"]), f"{name}={value} changes nothing in the probe of {key}"


def test_readings_of_the_gpu_budget():
    plans = [probes.lab_of("ad_net").planned("AD-Net", "cub200-10", "gpu", amp=amp) for amp in (True, False)]
    assert [plan.budget.precision for plan in plans] == ["fp16", "no"]


# deliberate mistakes: judged by the probes before against the probes after, on this machine

@pytest.fixture(scope="module")
def before():
    return {key: probes.probes_of(key) for key in (TOOLKIT, *LABS)}


def caught(before, keys=(TOOLKIT, *LABS)):
    "Names of the pins that move."
    found = {}
    for key in keys:
        after = probes.probes_of(key)
        for name, values in before[key].items():
            if behaviour.moved(values, after[name], behaviour.tolerance_of(name)): found.setdefault(key, []).append(name)
    return found


def test_a_teacher_that_never_moves(before, monkeypatch):
    monkeypatch.setattr(teachers.EMATeacher, "update", lambda self, step=None: None)
    found = caught(before)
    assert "kernel:teacher" in found[TOOLKIT]
    assert {"rung:CE+MT", "rung:SCE+CR+MT"} <= set(found["attract_repulse"])
    assert "rung:CLIM" in found["clim"] and "rung:CoNe" in found["cone"]
    assert "rung:CE" not in found["attract_repulse"] and "iccl" not in found and "ad_net" not in found


def test_centroids_that_lose_the_order_of_samples(before, monkeypatch):
    whole = memory.ema_centroids
    def shuffled(centroids, embeddings, labels, *more, **options):
        order = torch.arange(len(labels) - 1, -1, -1, device=labels.device)
        return whole(centroids, embeddings[order], labels[order], *more, **options)
    monkeypatch.setattr(memory, "ema_centroids", shuffled)
    found = caught(before, (TOOLKIT, "iccl", "cone"))
    assert "kernel:centroids" in found[TOOLKIT] and "rung:ICCL" in found["iccl"]
    assert "rung:CE" not in found["iccl"] and "cone" not in found


def test_the_farthest_keys_for_the_nearest(before, monkeypatch):
    whole = torch.Tensor.topk
    monkeypatch.setattr(selection, "_top_columns", lambda x, k, *more: whole(x, min(k, x.shape[1]), dim=1, largest=False), raising=False)
    monkeypatch.setattr(selection, "top_columns", lambda x, k, *more: whole(x, min(k, x.shape[1]), dim=1, largest=False), raising=False)
    found = caught(before, ("cone", "iccl"))
    assert "rung:CoNe" in found["cone"] and "rung:CE" not in found["cone"] and "iccl" not in found


def test_shares_that_are_swapped(before, monkeypatch):
    "lam for 1 - lam, in the pixels of a mixture."
    whole = views.mixup
    swapped = lambda a, b, lam: whole(a, b, 1 - lam)
    from arcbook.papers import iccl
    monkeypatch.setattr(views, "mixup", swapped)
    monkeypatch.setattr(iccl, "mixup", swapped)
    found = caught(before, (TOOLKIT, "iccl"))
    assert "kernel:mixup" in found[TOOLKIT]
    assert {"rung:ICCL", "rung:mixup + cRT"} <= set(found["iccl"]) and "rung:CE" not in found["iccl"]


def test_a_sampler_that_forgets_the_classes(before, monkeypatch):
    monkeypatch.setattr(sampling.ClassAwareSampler, "draw", lambda self, n, generator=None: torch.randint(24, (n,), generator=generator))
    found = caught(before, (TOOLKIT, "iccl"))
    assert "rung:ICCL" in found["iccl"] and "rung:CE" not in found["iccl"]


def test_views_without_colour(before, monkeypatch):
    from arcbook.views import Augment
    whole = Augment.__call__
    monkeypatch.setattr(Augment, "__call__", lambda self, images, generator=None: whole(replace(self, jitter=None), images, generator))
    found = caught(before, (TOOLKIT, "attract_repulse"))
    assert "kernel:views of shapes" in found[TOOLKIT] and "rung:CE" in found["attract_repulse"]


def test_a_loss_with_another_gradient(before, monkeypatch):
    "A stop-gradient in the wrong place leaves every value as it is."
    whole = contrast.nt_xent
    monkeypatch.setattr(contrast, "nt_xent", lambda z0, z1, *more, **options: whole(z0, z1.detach(), *more, **options))
    assert "loss:nt_xent" in caught(before, (TOOLKIT,))[TOOLKIT]


def test_words_change_nothing(before, monkeypatch):
    "An error message, a docstring, a name: no pin moves."
    from arcbook import _checks
    monkeypatch.setattr(_checks, "check_option", lambda name, value, allowed: value)
    monkeypatch.setattr(contrast.NTXentLoss, "__doc__", "other words")
    monkeypatch.setattr(teachers.EMATeacher, "extra_repr", lambda self: "other words")
    assert caught(before, (TOOLKIT, "iccl")) == {}
