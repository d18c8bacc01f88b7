"Every paper's method: it trains under every reading, resumes at any step, is the same in a copy, and its ladder can be interrupted."
import copy
from dataclasses import fields, replace

import pytest
import torch
from torch.testing import assert_close

from arcbook import experiments, probes
from registry import LABS, changed, rungs, shrunk_lab

every_lab = pytest.mark.parametrize("key", LABS)
every_rung = pytest.mark.parametrize("key,variant", rungs(), ids=lambda value: value)


def trained(key, variant, folder=None, callback=None, **changes):
    lab, images = probes.lab_of(key), probes.probe_images("digits")
    profile = replace(probes.profile_of(images), side=16)
    plan = probes.small_plan(lab, variant, profile, **changes)
    plan = replace(plan, stages=tuple(stage and replace(stage, checkpoint_seconds=0.0) for stage in plan.stages))
    return experiments.train_plan(lab, plan, images, profile, seed=3, folder=folder, callback=callback,
                                  test=lambda: probes.probe_images("digits", seed=1))


def equal(a, b):
    "All tensors of the last methods of two runs, bit for bit."
    ours, theirs = a.method.state_dict(), b.method.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@every_lab
@pytest.mark.parametrize("stop", [1, 4, 8, 11])
def test_resumes_at_any_step_bit_for_bit(key, stop, tmp_path):
    "Killed after the n-th step, in either stage; the resumed run equals the uninterrupted one."
    full, count = probes.lab_of(key).probes.full, []
    whole = trained(key, full)
    def kill(step, method):
        count.append(step)
        if len(count) == stop + 1: raise KeyboardInterrupt
    if stop >= sum(len(history.values) for history in whole.histories): pytest.skip("the run is shorter")
    with pytest.raises(KeyboardInterrupt): trained(key, full, tmp_path, kill)
    assert list(tmp_path.rglob("checkpoint.pt"))
    resumed = trained(key, full, tmp_path)
    assert equal(whole, resumed)
    assert [history.values for history in whole.histories] == [history.values for history in resumed.histories]


@every_lab
def test_a_copy_is_the_same_method(key):
    method = trained(key, probes.lab_of(key).probes.full).method
    images = probes.probe_images("digits", seed=2).images
    twin = copy.deepcopy(method)
    assert torch.equal(method.predict(images), twin.predict(images))
    torch.nn.init.zeros_(next(twin.parameters()))
    assert not torch.equal(method.predict(images), twin.predict(images))           # nothing is shared


@every_lab
def test_state_is_plain_and_complete(key):
    "All that a method remembers is in its state; a fresh one that loads it answers alike."
    run = trained(key, probes.lab_of(key).probes.full)
    images = probes.probe_images("digits", seed=2).images
    fresh = probes.lab_of(key).build(run.images, run.profile, run.plan)
    if len(run.methods) > 1: fresh = probes.lab_of(key).follow(fresh)
    fresh.load_state_dict(run.method.state_dict())
    assert_close(fresh.predict(images), run.method.predict(images))     # but for the memory format that `fit` chose


def options():
    "Every other option of every reading of every paper."
    found = []
    for key in LABS:
        kind = probes.lab_of(key).readings
        for name, hint in kind.hints().items():
            default = next(f.default for f in fields(kind) if f.name == name)
            found += [(key, name, value) for value in changed(default, hint)]
    return found


@pytest.mark.parametrize("key,name,value", options(), ids=str)
def test_every_option_trains(key, name, value):
    lab = probes.lab_of(key)
    try: run = trained(key, lab.probes.full, **{name: value})
    except ValueError as error: assert "must be" in str(error), error      # two options that exclude each other, by name
    else: assert all(torch.isfinite(torch.tensor(history.values)).all() for history in run.histories)


@every_lab
def test_a_ladder_runs_stops_and_resumes(key, tmp_path, monkeypatch):
    "Rungs on probe images; killed after a few, resumed: the same records as of an uninterrupted ladder."
    monkeypatch.setattr(experiments, "load", lambda name, split="train", seed=0: probes.probe_images("digits", seed=(split != "train") + 2 * seed))
    lab, lines = shrunk_lab(key), []
    chosen = tuple(dict.fromkeys([*tuple(lab.variants)[:3], lab.probes.full]))
    after = min(2, len(chosen) - 1)
    climb = lambda folder, report=lines.append: experiments.run_ladder(lab, "digits", "smoke", 1, tmp_path / folder, chosen, report=report)
    whole = climb("whole")
    assert [r.variant for r in whole[:len(chosen)]] == list(chosen)
    def stop(line):
        if sum("from disk" not in x for x in cut) + 1 == after: raise KeyboardInterrupt
        cut.append(line)
    cut = []
    with pytest.raises(KeyboardInterrupt): climb("cut", stop)
    lines.clear()
    again = climb("cut")
    assert sum("from disk" in line for line in lines) == after
    assert [(r.id, r.metrics, r.terms) for r in whole] == [(r.id, r.metrics, r.terms) for r in again]


@every_lab
def test_a_laboratory_is_whole(key):
    from pathlib import Path
    lab, root = probes.lab_of(key), Path(__file__).parents[2]
    assert lab.key == key and (root / "nbs" / lab.chapter).exists() and (root / "nbs" / lab.chapter.replace("papers/", "labs/")).exists()
    assert set(lab.ladder) <= set(lab.variants) and lab.probes.full in lab.variants
    assert set(lab.variants) <= set(lab.rows or lab.variants)
    for variant in lab.variants:
        plans = [lab.planned(variant, experiments.resolve(lab, None), budget) for budget in ("smoke", "cpu", "gpu")]
        assert all(isinstance(plan.readings, lab.readings) and plan.stages[0].name == budget
                   for plan, budget in zip(plans, ("smoke", "cpu", "gpu")))
