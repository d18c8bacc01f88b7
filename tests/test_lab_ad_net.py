"AD-Net's laboratory: rungs, plans, where a run starts, what is measured."
import hashlib, math
from dataclasses import fields, replace

import pytest
import torch

from arcbook.datasets import ImageSet, data_root, load
from arcbook.experiments import Trained, resolve, run_ladder
from arcbook.labs import ad_net
from arcbook.labs.ad_net import LAB, main_statistics
from arcbook.models import backbone
from arcbook.papers.ad_net import ADNet, Readings, head_lr_ratio
from arcbook.probes import probe, probe_loss
from arcbook.profiles import Profile, profile_of
from arcbook.training import Budget, fit, learning_rate

gen = lambda seed=0: torch.Generator().manual_seed(seed)
near = lambda a, b, tol=1e-9: abs(float(a) - b) < tol
noise = lambda n=4, side=24: torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=gen())
planned = lambda data, budget, variant="AD-Net", **changes: LAB.planned(variant, data, budget, **changes)
SMALL = dict(weights="none", size=16, backbone="resnet8")


def small_set(counts=(14, 9, 5), size=24):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return ImageSet(noise(len(labels), size), labels, [str(i) for i in range(len(counts))], "shapes-fine")


def built(seed=0, images=None, budget="smoke", **changes):
    "The method that a rung of these readings begins with."
    images = images or small_set()
    plan = LAB.planned("AD-Net", images, budget, **SMALL | changes)
    torch.manual_seed(seed)
    return LAB.build(images, profile_of(images), plan)


def evaluated(method, data):
    plan = LAB.planned("AD-Net", data, "smoke", **SMALL)
    return LAB.evaluate(Trained(LAB, plan, data, profile_of(data), 0, [method]), data)


# rungs and plans --------------------------------------------------------------------------------------------------

CONTROLS = {"detach target", "single crop", "joint BN", "own head rate off"}


def test_the_rungs():
    ladder = ("plain", "plain+trim", "plain+trim+head lr", "three views CE", "alpha 0", "AD-Net")
    assert LAB.ladder == ladder and {*ladder, *CONTROLS} == set(LAB.variants) and LAB.variants["AD-Net"] == {}
    for data, budget in (("shapes-fine-few:5", "smoke"), ("cub50", "cpu"), ("cub200-10", "gpu")):
        plans = {name: planned(data, budget, name) for name in LAB.variants}
        assert len({p.stages for p in plans.values()}) == 1                        # as many steps on as many images
        r = {name: p.readings for name, p in plans.items()}
        assert r["plain"].border_trim == 0 and r["plain"].head_lr == 1
        assert {r[name].border_trim for name in LAB.variants if name != "plain"} == {0.05}
        assert [r[n].head_lr for n in ladder] == [1, 1, 10, 10, 10, 10]
        changed = lambda a, b: {f.name for f in fields(Readings) if getattr(r[a], f.name) != getattr(r[b], f.name)}
        assert changed("plain", "plain+trim") == {"border_trim"} and changed("plain+trim", "plain+trim+head lr") == {"head_lr"}       # one factor at a time
        for control, reading in (("alpha 0", "alpha"), ("detach target", "detach_target"), ("own head rate off", "head_lr"),
                                 ("joint BN", "passes"), ("single crop", "crops"), ("three views CE", "labels_on")):
            assert changed(control, "AD-Net") == {reading}
        assert r["AD-Net"].alpha == 0.1 and r["alpha 0"].alpha == 0 and not r["AD-Net"].detach_target


def test_t12_schedule():
    plan = planned("cub200-10", "gpu")
    b, r = plan.budget, plan.readings
    assert (b.epochs, b.batch_size, b.lr, b.momentum, b.nesterov, b.weight_decay, b.schedule, b.warmup_epochs, b.clip_norm) == (1600, 24, 0.03, 0.9, True, 0.0, "step", 0, 1.0)
    rates = {0: 0.03, 19_999: 0.03, 20_000: 3e-3, 29_999: 3e-3, 30_000: 3e-4, 35_999: 3e-4, 36_000: 3e-5, 37_999: 3e-5, 38_000: 3e-6, 39_999: 3e-6}
    for n, rate in rates.items(): assert math.isclose(learning_rate(b, n, 25), rate, rel_tol=1e-9), n
    assert r.head_lr == 10 and r.milestones == (0.5, 0.75, 0.9, 0.95) and b.precision == "fp16"
    assert planned("cub200-10", "gpu", amp=False).budget.precision == "no" == planned("cub200-10", "cpu").budget.precision


PER_EPOCH = {"cub200": {10: 25, 15: 42, 30: 75, 50: 125, 100: 250}, "cars": {10: 39, 15: 55, 30: 106, 50: 172, 100: 340}, "aircraft": {10: 32, 15: 45, 30: 87, 50: 141, 100: 278}}


@pytest.mark.parametrize("base,split,steps", [(b, s, n) for b, per in PER_EPOCH.items() for s, n in per.items()])
def test_grid_at_the_published_length(base, split, steps):
    plan = planned(f"{base}-{split}", "gpu")
    assert abs(plan.budget.epochs * steps - 40_000) <= steps / 2 + 1e-9
    assert plan.readings.head_lr == head_lr_ratio(split) and plan.readings.weights == "imagenet" and plan.readings.backbone == "resnet50"
    assert plan.readings.colour == ("jitter" if base == "cub200" else "official24") and plan.readings.size == 224
    if split == 100: assert planned(base, "gpu") == plan
    for budget in ("smoke", "cpu"): assert planned(f"{base}-{split}", budget).readings.head_lr == head_lr_ratio(split)


NAMES = ("shapes-fine-few:5", "digits-few:5", "cub50", "cub50-1i", "cub200-10", "cub200-1i", "cub200", "cars-15", "aircraft-30", "tiny-imagenet-50",
         "cifar100-few:5", "cifar100-lt:100", "imagenet-1pct", "imagenet", "cub200-few:5", "my-own-pictures")


@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu"])
def test_plans_need_no_images(monkeypatch, tmp_path, budget):
    monkeypatch.setenv("ARCBOOK_DATA", str(tmp_path))
    for data in NAMES:
        plan = planned(data, budget)
        assert isinstance(plan.budget, Budget) and plan.budget.name == budget and plan.test_stride >= 1, data
        assert plan.readings.weights in ("imagenet", "own:shapes", "own:tiny-imagenet-50"), data


def test_epochs_follow_the_number_of_images():
    "As the images at hand say, not as a name was once looked up."
    own = Profile("mine", "own", "photographs", None)
    assert planned(own, "cpu").budget.epochs == 400                               # not known: as many as one batch
    for n, epochs in ((24, 400), (25, 200), (240, 40), (2400, 4)):
        assert planned(replace(own, num_images=n), "cpu").budget.epochs == epochs
    assert planned(small_set(), "cpu").budget.epochs == 300                       # 28 glyphs: two steps an epoch


def test_a_name_decides_nothing():
    "Images of one's own are not trained as the set whose name theirs begins with."
    for name in ("shapes-of-clouds", "digits-of-plates", "cars-15-mine", "aircraft-models"):
        r = planned(name, "cpu").readings
        assert (r.weights, r.size, r.colour, r.head_lr) == ("own:tiny-imagenet-50", 64, "jitter", 10.0), name
    assert ad_net._share_of(Profile("cars-15", "own", "photographs")) == "10"
    small = Profile("mine", "own", "photographs", 32, num_images=100)
    assert planned(small, "cpu").readings.size == 32 and planned(small, "gpu").readings.weights == "imagenet"


@pytest.mark.parametrize("call,message", [
    (lambda: planned("cub50", "huge"), "budget must be"),
    (lambda: planned("shapes-fine-few:5", "cpu", lr=0.0), "lr must be"),
    (lambda: planned("shapes-fine-few:5", "cpu", lr=-1.0), "lr must be"),
    (lambda: planned("shapes-fine-few:5", "cpu", steps=0), "steps must be"),
    (lambda: planned("shapes-fine-few:5", "cpu", steps=-5), "steps must be"),
    (lambda: planned("cub200-10", "gpu", backbone="vit_b_16"), "lr and steps must be given"),
    (lambda: LAB.train("AD-net", "shapes-fine-few:5", "smoke"), "variants must be among plain"),
])
def test_bad_plans_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_plans_of_a_vit():
    b = planned("cub200-10", "gpu", backbone="vit_b_16", lr=0.01, steps=10_000).budget
    assert (b.schedule, b.nesterov, b.lr, b.epochs * 25, b.warmup_epochs * 25) == ("cosine", False, 0.01, 10_000, 500)


@pytest.mark.parametrize("data", ["cub50", "shapes-fine-few:5", "cub200-10"])
@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu"])
def test_imagenet_weights_come_with_a_network_that_has_them(data, budget):
    from torchvision import models
    r = planned(data, budget, weights="imagenet").readings
    assert r.weights == "imagenet" and r.backbone in models.list_models(module=models)
    assert planned(data, budget, weights="imagenet", backbone="densenet121").readings.backbone == "densenet121"


# weights ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def quick_start(monkeypatch):
    "The stand-in's images are 28, and nothing of it is remembered afterwards."
    def images(source):
        if source not in ("shapes", "tiny-imagenet-50"): raise FileNotFoundError(f"data set {source!r} is missing")
        return small_set()
    monkeypatch.setattr(ad_net, "_pretraining_images", images)
    ad_net._own_state.cache_clear()
    yield
    ad_net._own_state.cache_clear()


def test_names_of_weights(tmp_path, quick_start):
    path, name_of = tmp_path / "birds.pt", LAB.named["weights"]
    torch.save(backbone("resnet8").state_dict(), path)
    names = [name_of(str(w)) for w in ("none", "imagenet", "own:shapes", path)]
    assert names[:3] == ["none", "imagenet", "own:shapes"]
    assert names[3] == f"file:birds-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    for wrong in (str(tmp_path / "nothing.pt"), "imgnet", "own:nothing-here", str(tmp_path), ""):
        with pytest.raises((ValueError, FileNotFoundError)) as caught: name_of(wrong)
        assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(5)
    body = backbone("resnet8")
    torch.save(body.state_dict(), tmp_path / "mine.pt")
    method = built(weights=str(tmp_path / "mine.pt"))
    for name, value in body.state_dict().items(): assert torch.equal(method.network.backbone.state_dict()[name], value)
    assert method.config["weights"].startswith("file:mine-") and str(tmp_path) not in str(method.config)
    other = built()
    assert not torch.equal(other.network.backbone.conv1.weight, body.conv1.weight) and other.config["weights"] == "none"
    (tmp_path / "junk.pt").write_bytes(b"not tensors")
    for path in ("junk.pt", "no.pt"):
        with pytest.raises((ValueError, FileNotFoundError), match="weights|must hold|No such file"): built(weights=str(tmp_path / path))


def test_imagenet_weights_without_a_network(monkeypatch, tmp_path):
    import urllib.error, urllib.request
    def nowhere(*args, **options): raise urllib.error.URLError("no network")
    monkeypatch.setattr(urllib.request, "urlopen", nowhere)
    monkeypatch.setattr(torch.hub, "urlopen", nowhere, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match="no weights for resnet18 .*pass a file as weights") as caught: built(backbone="resnet18", weights="imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="weights must be .* a file for resnet8, got ImageNet's IMAGENET1K_V1"): built(weights="imagenet")


def test_the_stand_in_is_trained_once_and_kept(monkeypatch, tmp_path, quick_start):
    steps, slow = [], ADNet.forward
    monkeypatch.setattr(ADNet, "forward", lambda *a: steps.append(1) or slow(*a))
    r = Readings(**{**SMALL, "weights": "own:shapes"})
    def start(seed, place=None):
        torch.manual_seed(seed)
        return ad_net._start_body(r, "smoke", place).state_dict()
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    first, number = start(0), len(steps)
    assert number > 0 and same(first, start(7)) and len(steps) == number           # in memory
    ad_net._own_state.cache_clear()                                                # another process
    kept, number = start(3, tmp_path), len(steps)
    assert same(first, kept) and list(tmp_path.rglob("checkpoint.pt"))
    ad_net._own_state.cache_clear()
    assert same(kept, start(4, tmp_path)) and len(steps) == number                # from the file
    torch.manual_seed(0)
    assert not torch.equal(first["conv1.weight"], backbone("resnet8").conv1.weight)


def test_a_run_keeps_the_stand_in_beside_its_checkpoints(tmp_path, quick_start):
    lab = short_lab(weights="own:shapes")
    lab.train("plain", "digits-few:3", "smoke", folder=tmp_path / "runs" / "one")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["one", "own-shapes-resnet8-16-smoke"]


def test_the_stand_in_does_not_decide_the_classifier(quick_start):
    "The classifier's start depends on the caller's seed alone, not on whether the stand-in has been trained before."
    heads = [built(3, weights="own:shapes").network.classifier.weight for _ in range(2)]
    assert torch.equal(*heads)


def test_a_changed_network_does_not_change_the_kept_weights(quick_start):
    a, b = (built(weights="own:shapes") for _ in range(2))
    with torch.no_grad(): a.network.backbone.conv1.weight.zero_()
    assert b.network.backbone.conv1.weight.any() and built(weights="own:shapes").network.backbone.conv1.weight.any()


def test_images_of_the_stand_in_are_no_split_of_the_set():
    seen = {bytes(image.numpy()) for image in ad_net._pretraining_images("shapes").images}
    for name, split in (("shapes-fine", "val"), ("shapes-fine-few:5", "train")):
        assert not seen & {bytes(image.numpy()) for image in load(name, split).images}
    assert ad_net._pretraining_images("shapes").num_classes == 6                   # outlines: the marks are not given


# whole runs, records ------------------------------------------------------------------------------------------------

def short_lab(**always):
    "One epoch on a few test images, from nothing unless told otherwise."
    def plan(profile, budget, **changes):
        p = ad_net._plan(profile, budget, **{**SMALL, **always, **changes})
        return replace(p, stages=(replace(p.budget, epochs=1, checkpoint_seconds=0),), test_stride=9)
    return replace(LAB, plan=plan)


def test_weights_of_a_run(tmp_path, quick_start):
    torch.save(backbone("resnet8").state_dict(), tmp_path / "mine.pt")
    for weights, name in (("none", "none"), ("own:shapes", "own:shapes"), (str(tmp_path / "mine.pt"), "file:mine-")):
        for _ in range(2):                                                         # the second comes from the disk
            record, = run_ladder(short_lab(), "digits-few:3", "smoke", 1, tmp_path / "out", ["AD-Net"], changes=dict(weights=weights))
        assert record.method["weights"].startswith(name) and record.changes["weights"].startswith(name) and str(tmp_path) not in str(record)
    assert len(list((tmp_path / "out" / "ad_net").glob("*.json"))) == 3


class Stop(Exception): pass


def test_whole_runs_resume(tmp_path, quick_start):
    def stop_at(step, method):
        if method.config["num_classes"] == 10 and step == 1: raise Stop
    lab = short_lab(weights="own:shapes")
    whole = lab.train("AD-Net", "digits-few:4", "smoke")
    with pytest.raises(Stop): lab.train("AD-Net", "digits-few:4", "smoke", folder=tmp_path / "run", callback=stop_at)
    ad_net._own_state.cache_clear()
    again = lab.train("AD-Net", "digits-few:4", "smoke", folder=tmp_path / "run")
    assert whole.histories[0].values == again.histories[0].values
    assert all(torch.equal(a, b) for a, b in zip(whole.method.state_dict().values(), again.method.state_dict().values()))


def test_variants_start_alike():
    "The same weights and, where the views are the same, the same first loss."
    firsts, lab = {}, short_lab()
    for variant in ("alpha 0", "AD-Net", "detach target", "own head rate off", "plain+trim", "plain"):
        states = []
        note = lambda step, m: states.append({k: v.clone() for k, v in m.network.state_dict().items()}) if step == 0 else None
        trained = lab.train(variant, "digits-few:3", "smoke", callback=note)
        firsts[variant] = states[0], float(trained.histories[0]["main"][0])
        for k, v in trained.untrained().network.state_dict().items(): assert torch.equal(v, states[0][k]), k
    for state, _ in firsts.values():
        for k, v in firsts["AD-Net"][0].items(): assert torch.equal(v, state[k]), k
    assert len({loss for name, (_, loss) in firsts.items() if name != "plain"}) == 1      # the main view is the same with and without crops
    other = lab.train("AD-Net", "digits-few:3", "smoke", 1).method
    assert not torch.equal(other.network.backbone.conv1.weight, firsts["AD-Net"][0]["backbone.conv1.weight"])


def test_measurements():
    method, data = built(), small_set((20, 12, 9))
    with torch.no_grad(): method.network.classifier.weight.mul_(300)
    metrics, arrays = evaluated(method, data)
    again, _ = evaluated(built(alpha=9.0), data)
    W, b = (p.detach().double() for p in method.network.classifier.parameters())
    large, small = (torch.from_numpy(arrays[k]).double() for k in ("large", "small"))
    p_large, p_small = ((f @ W.T + b).softmax(1) for f in (large, small))
    assert near(metrics["gap"], float((p_large - p_small).abs().sum(1).mean() / 2), 1e-4)
    assert near(metrics["feature_kl"], float(torch.nn.functional.kl_div(small.log_softmax(1), large.softmax(1), reduction="batchmean")), 1e-5)
    labels = torch.from_numpy(arrays["labels"])
    assert near(metrics["top1_large"], float((p_large.argmax(1) == labels).double().mean()), 1e-5) and near(metrics["top1_small"], float((p_small.argmax(1) == labels).double().mean()), 1e-5)
    assert near(metrics["top1"], float((method.predict(data.images).argmax(1) == labels).double().mean()), 1e-5)
    assert again["feature_kl"] == metrics["feature_kl"]                            # the same crops for every method
    assert evaluated(method, data)[0] == metrics and metrics["gap"] > 0


def test_best_accuracy_is_reported_beside_the_last():
    data, accuracies = small_set(), []
    def note(step, method):
        if step and step % 2 == 0: accuracies.append(float((method.predict(data.images).argmax(1) == data.labels).float().mean()))
    method = built(report="best", eval_every=2)
    method.watched = data
    fit(method, data, Budget("smoke", 3, 8, lr=0.02, weight_decay=0.0), callback=note)
    assert near(method.best, max(accuracies), 1e-6)
    metrics, _ = evaluated(method, data)
    assert near(metrics["top1_best_on_test"], max(*accuracies, metrics["top1"]), 1e-5)


def test_main_statistics_are_those_of_main_views():
    "One kind of image: after the exchange the network's running mean is that of its main view."
    method, data = built(crop_source=(0.1, 0.1), crop_target=(0.2, 0.2)), small_set()
    twin = main_statistics(method, data, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), twin.parameters()))
    assert twin.network.backbone.bn1.num_batches_tracked == 4 and not method.network.backbone.bn1.num_batches_tracked


def test_photographs_become_squares_once(tmp_path):
    from PIL import Image
    from arcbook.photographs import PhotoSet
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / "a.png")
    photos = PhotoSet(tmp_path, ["a.png"], torch.zeros(1, dtype=torch.long), ["red"], "mine", workers=0)
    kept = ad_net._prepare(photos, planned(photos, "cpu", decode=16), "train")
    assert isinstance(kept, ImageSet) and kept.images.shape == (1, 3, 16, 16) and kept.name == "mine"
    read = ad_net._prepare(photos, planned(photos, "gpu"), "train")                         # too many to keep: read again every epoch
    assert isinstance(read, PhotoSet) and (read.size, read.crop) == (512, "whole")
    glyphs = small_set()
    assert ad_net._prepare(glyphs, planned(glyphs, "cpu"), "train") is glyphs and LAB.prepared_by == ("decode",)


@pytest.mark.parametrize("name,function,arguments", LAB.probes.losses, ids=lambda x: x if isinstance(x, str) else "")
def test_probed_losses_have_gradients(name, function, arguments):
    series = probe_loss(function, arguments)
    assert any(key.startswith("d ") for key in series) and all(math.isfinite(x) for values in series.values() for x in values)


def test_a_probe_is_quick_and_moves():
    plain, full = (probe(LAB, variant) for variant in ("plain", "AD-Net"))
    assert plain != full and probe(LAB, "AD-Net") == full


@pytest.mark.skipif(not (data_root() / "cub50" / "train_10.txt").exists(), reason="cub50 is not in ARCBOOK_DATA")
def test_birds():
    outcome = short_lab(decode=32).run("AD-Net", "cub50", "smoke")
    assert outcome.record.metrics["top1"] >= 0 and outcome.record.pins == ["rung:AD-Net", "data:cub200", "measure"]


def test_shorthand():
    assert resolve(LAB, "shapes") == resolve(LAB, "shapes-fine") == resolve(LAB, None) == "shapes-fine-few:5"
