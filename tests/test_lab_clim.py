"The laboratory of CLIM: recipes, costs, rungs, what is measured."
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from arcbook import probes
from arcbook.contrast import normalize
from arcbook.datasets import DATASETS, load
from arcbook.experiments import Trained
from arcbook.labs import clim as lab
from arcbook.labs.clim import EQUAL, FULL, LAB, VARIANTS, passes
from arcbook.papers.clim import CLIM, RULES, Readings, clim_views
from arcbook.profiles import Profile
from arcbook.selection import nearest_neighbours

gen = lambda seed=0: torch.Generator().manual_seed(seed)
DATA = (*DATASETS, "digits-few:10", "shapes-few:200", "cifar100-few:50", "cifar10-lt:100")      # whatever the registry knows


def plan(data, budget="cpu", variant=FULL, **changes): return LAB.planned(variant, data, budget, **changes)


# recipes ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu"])
@pytest.mark.parametrize("data", DATA)
def test_recipes_of_all_sets(data, budget):
    plans = {variant: plan(data, budget, variant) for variant in VARIANTS}
    longer, cost = plans[EQUAL], lambda v: passes(plans[v].readings) * plans[v].budget.epochs
    assert longer.readings == plans["MoCo v2"].readings and abs(cost(EQUAL) / cost(FULL) - 1) < 0.15
    assert plan(data, budget, tie="lt").readings == replace(plan(data, budget).readings, tie="lt")
    for variant, each in plans.items():
        assert each.budget.name == budget and (variant == EQUAL or each.budget == plans[FULL].budget)
        assert each.readings.queue_size == plans[FULL].readings.queue_size and each.readings.backbone == plans[FULL].readings.backbone


def test_the_recipes_of_the_specification():
    imagenet = plan("imagenet", "gpu")
    b, r = imagenet.budget, imagenet.readings
    assert (b.epochs, b.batch_size, b.lr, b.momentum, b.weight_decay, b.schedule, b.warmup_epochs, b.nesterov) == (200, 256, 0.03, 0.9, 1e-4, "cosine", 0, False)
    assert (r.backbone, r.queue_size, r.temperature, r.momentum, r.dim, r.num_neighbours, r.num_clusters, r.refresh, r.prob, r.alpha, r.resolutions, r.pca) == (
        "resnet50", 65536, 0.2, 0.999, 128, 40, 1000, 10, 0.8, 1.0, (224, 160), 128)
    assert (r.rule, r.tie, r.same_cluster, r.knn_scope, r.empty, r.warmup_epochs, r.encoder, r.pairs, r.box, r.per, r.kmeans_iters, r.spherical, r.unmixed_neighbours, r.symmetric) == (
        "center_wise", "le", True, "global", "unmixed", 0, "query", "all_pairs", "relative", "batch", 30, False, False, False)
    small = plan("cifar100", "gpu")
    assert (small.budget.epochs, small.budget.batch_size, small.budget.lr, small.budget.weight_decay, small.readings.backbone) == (200, 512, 0.06, 5e-4, "resnet18-small")
    assert (small.readings.queue_size, small.readings.momentum, small.readings.temperature, small.readings.resolutions) == (4096, 0.99, 0.1, (32, 24))
    views = clim_views("imagenet", (224, 160))
    assert [v.size for v in views] == [224, 160]
    for v in views:                                                                     # section 4: the same crops at every resolution
        assert v.crop == ("resized", (0.2, 1.0)) and v.jitter == (0.4, 0.4, 0.4, 0.1) and v.jitter_p == 0.8 and v.gray == 0.2 and v.flip and v.blur == (0.1, 2.0)
        assert v.mean == (0.485, 0.456, 0.406) and v.std == (0.229, 0.224, 0.225) and v.cutout == 0
    assert CLIM(1000, "cifar100", replace(small.readings, queue_size=8), 50000).neighbours.centres.shape == (39, 128)      # N/1280


def test_the_recipes_of_the_book():
    for data, epochs, sides, temperature, clusters, shrink, queue in (("digits", 48, (16, 12), 0.2, 16, 1, 64), ("shapes", 17, (32, 24), 0.1, 20, 2, 320),
                                                                      ("cifar100-few:50", 10, (32, 24), 0.1, 20, 2, 576)):
        b, r = plan(data).budget, plan(data).readings
        assert (b.epochs, r.resolutions, r.temperature, r.num_clusters, r.shrink, r.queue_size) == (epochs, sides, temperature, clusters, shrink, queue)
    assert plan("digits", "smoke").test_stride == 4 and plan("digits").test_stride == 1


@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu"])
@pytest.mark.parametrize("data,images,share", [("digits", 797, 0.125), ("shapes-few:200", 1200, 0.125), ("shapes", 3000, 0.125), ("digits-few:10", 100, 0.5)])
def test_queues_stay_small_against_the_data(data, images, share, budget):
    "Pitfall 11: a queue as long as the data set holds the neighbour as a negative."
    if data.startswith("digits"): assert len(load(data, "train")) == images
    assert plan(data, budget).readings.queue_size <= share * images


def test_a_set_that_arrives_later_gets_its_own_queue():
    "Numbers come from the images at hand, not from what was known of a name when it was first asked for."
    unknown, here = Profile("mine", "own", "photographs", side=32), Profile("mine", "own", "photographs", side=32, num_images=600)
    assert plan(unknown, "gpu").readings.queue_size == 4096 and plan(here, "gpu").readings.queue_size == 64
    assert plan("digits-lt:20").readings.queue_size == 1024 and plan(load("digits-lt:20", "train")).readings.queue_size < 64


def test_own_images_go_by_their_size():
    for side, small, backbone, full in ((16, (16, 12), "resnet18-small", (16, 12)), (32, (32, 24), "resnet18-small", (32, 24)),
                                        (64, (64, 48), "resnet18-small", (64, 48)), (None, (64, 48), "resnet50", (224, 160))):
        own = Profile("digits-of-plates", "own", "photographs", side=side, num_images=20000)
        assert plan(own).readings.resolutions == small
        assert (plan(own, "gpu").readings.backbone, plan(own, "gpu").readings.resolutions) == (backbone, full)
        assert (clim_views(own, (8,))[0].blur is None) == (side in (16, 32)) and clim_views(own, (8,))[0].flip


@pytest.mark.parametrize("n", [0, 3, -1, True])
def test_a_recipe_has_only_so_many_resolutions(n):
    with pytest.raises(ValueError, match="resolutions must"): plan("digits", resolutions=n)


def test_bad_names():
    for call, message in ((lambda: plan("digits", "huge"), "budget must be one of smoke, cpu, gpu"), (lambda: plan("digits", variant="CLIM+"), "variants must be among MoCo v2"),
                          (lambda: LAB.train("CLIM", "dgits", "cpu"), "did you mean 'digits'")):
        with pytest.raises(ValueError, match=message): call()


# rungs ------------------------------------------------------------------------------------------------------------------

def test_the_ladder_and_its_rungs():
    assert LAB.ladder[0] == "MoCo v2" and FULL in LAB.ladder and 5 <= len(LAB.ladder) <= 8 and LAB.rows == tuple(VARIANTS)
    forms = {"": ("none", 1), " + CutMix": ("cutmix", 1), " + multi-res": ("none", 2), " + both": ("cutmix", 2)}
    rules = {"MoCo v2": "none", "+kNN": "knn", "+cluster": "kmeans", "+kNN in cluster": "knn_cluster", "+centre-wise": "center_wise"}
    expected = {rung + form: (rule if rung != "MoCo v2" or mixer == "none" else "self", mixer, n) for rung, rule in rules.items() for form, (mixer, n) in forms.items()}
    expected[FULL], expected[EQUAL] = expected.pop("+centre-wise + both"), expected["MoCo v2"]
    assert {name: (v["rule"], v["mixer"], v["resolutions"]) for name, v in VARIANTS.items()} == expected
    for name, (rule, mixer, n) in expected.items():
        r = plan("digits", "smoke", name).readings
        assert (r.rule, r.mixer, len(r.resolutions)) == (rule, mixer, n)


def test_rungs_start_alike():
    "Backbone and head of all rungs are the same before the first step."
    states = []
    for variant in VARIANTS:
        torch.manual_seed(0)
        states.append(CLIM(3, "digits", plan("digits", "smoke", variant).readings, 40).network.state_dict())
    for state in states[1:]: assert all(torch.equal(v, state[k]) for k, v in states[0].items())


def test_passes():
    "By hand: a query costs 3 with its backward pass, a key 1; a second resolution (3/4)^2 of that; a neighbour a key in four of five steps."
    cost = lambda variant: passes(plan("digits", variant=variant).readings)
    assert cost("MoCo v2") == 4 and math.isclose(cost("MoCo v2 + multi-res"), 4 * 25 / 16) and math.isclose(cost("+kNN"), 4.8) and math.isclose(cost(FULL), 4.8 * 25 / 16)
    assert passes(Readings(rule="none", resolutions=(32,), symmetric=True)) == 8
    assert math.isclose(passes(Readings(resolutions=(32,), unmixed_neighbours=True)), 3 * 1.8 + 1.8)


# what is measured -------------------------------------------------------------------------------------------------------

def trained(variant=FULL, family="shapes", **changes):
    return probes.small_run(LAB, variant, family, **changes)


def test_a_run_from_recipe_to_metrics():
    run, test = trained(), probes.probe_images("shapes", seed=1)
    m, arrays = LAB.evaluate(run, test)
    assert {"top1", "knn", "few", "top1_start", "knn_start", "few_start", "alignment", "uniformity"} <= m.keys() and all(math.isfinite(v) for v in m.values())
    assert {f"{kind}_{rule}_{when}" for kind in ("class", "subclass") for rule in (*RULES, "knn_same_number") for when in ("early", "late")} <= m.keys()
    assert all(0 <= m[k] <= 1 for k in m if k.startswith(("class", "subclass", "empty", "top1", "knn", "few")))
    assert len(arrays["features"]) == len(arrays["map_labels"]) == len(arrays["map_subclasses"]) == 24
    assert set(run.histories[0].names) == {"loss", "anchor", "neighbour", "mixed"} and json.dumps(run.method.config)


def test_the_untrained_network_is_measured_as_it_was():
    moments = []
    run = trained()
    start = run.untrained()
    torch.manual_seed(0)
    again = Trained(LAB, run.plan, run.images, run.profile, run.seed, run.methods).untrained()
    images = probes.probe_images("shapes", seed=2).images
    for method in (start, again): moments.append(method.embed(images))
    assert_close(*moments)
    assert not torch.equal(run.method.embed(images), moments[0])


def labelled_noise(n=60):
    "Noisy versions of three images, with a sub-class that means nothing."
    kinds = torch.randint(0, 256, (3, 3, 16, 16), generator=gen()).float()
    images = probes.probe_images("digits")
    labels = torch.arange(n) % 3
    pixels = (0.6 * kinds[labels] + 0.4 * torch.randint(0, 256, (n, 3, 16, 16), generator=gen(1))).to(torch.uint8)
    return replace(images, images=pixels, labels=labels, classes=["a", "b", "c"], truth={"subclass": torch.arange(n) % 2})


def test_selection_quality_counts_what_it_says():
    data = labelled_noise()
    torch.manual_seed(0)
    method = CLIM(3, "digits", Readings(backbone="resnet8", dim=8, resolutions=(16,), queue_size=24, num_neighbours=6, num_clusters=3, pca=8), 60)
    Z = method.extract(data)
    got = lab._selection_quality(method, data)
    near = nearest_neighbours(Z, 6)
    same = (data.labels[near] == data.labels[:, None]).double()
    both = same * (data.truth["subclass"][near] == data.truth["subclass"][:, None])
    assert math.isclose(got["class_knn"], float(same.mean()), abs_tol=1e-6) and math.isclose(got["subclass_knn"], float(both.mean()), abs_tol=1e-6)
    apart = normalize(F.one_hot(data.labels, 3).float() + 0.01 * torch.randn(60, 3, generator=gen(2)))
    perfect = lab._selection_quality(method, data, apart)
    assert all(perfect[f"class_{rule}"] == 1 for rule in RULES)
    assert 0 < perfect["empty"] < 1 and abs(perfect["subclass_kmeans"] - 0.5) < 0.15


def test_as_many_nearest_neighbours():
    run = trained()
    tables = lab._tables_of(run.method, run.method.extract(run.images))
    (near, counts), (_, wanted) = tables["knn_same_number"], tables["center_wise"]
    assert torch.equal(counts, wanted) and torch.equal((near >= 0).sum(1), counts)
    whole = tables["knn"][0]
    for row, all_, n in zip(near.tolist(), whole.tolist(), counts.tolist()): assert row[:n] == all_[:n]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_answers_as_logistic_regression(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    torch.manual_seed(0)
    method = CLIM(4, "digits", Readings(rule="none", backbone="resnet8", dim=8, resolutions=(16,), queue_size=8))
    x, y = torch.randn(90, method.classifier.in_features), torch.arange(90) % classes + 1            # class 0 never comes
    x[:, 3] = 5.0                                                                                    # a feature that never changes
    lab._learn_classifier(method, x, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x.double().numpy(), y.numpy())
    assert method.classifier(x).argmax(1).tolist() == theirs.predict(x.double().numpy()).tolist()
    assert_close(method.classifier(x).softmax(1)[:, 1:classes + 1].double(), torch.from_numpy(theirs.predict_proba(x.double().numpy())), rtol=0, atol=1e-3)
    assert method.classifier(x).softmax(1)[:, 0].max() < 1e-6


def test_fine_tuning_starts_from_the_backbone_and_leaves_it_alone():
    run = trained()
    before = {k: v.clone() for k, v in run.method.state_dict().items()}
    tuned = lab._fine_tune(run.method, run.images, epochs=2)
    assert all(torch.equal(v, before[k]) for k, v in run.method.state_dict().items())
    twin = lab._FineTuned(run.method, 4)
    for a, b in zip(twin.network.backbone.parameters(), run.method.network.backbone.parameters()): assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.network.backbone.parameters(), twin.network.backbone.parameters()))
    assert [group.get("lr_scale", 1.0) for group in twin.parameter_groups()] == [1.0, 10.0]


def test_cases_of_the_probes_are_told_apart():
    "Every option that a case stands for changes its numbers."
    found = {name: probes.probe_loss(f, a) for name, f, a in LAB.probes.losses}
    assert len(found) == len(LAB.probes.losses) >= 14
    for kind in ("mixed", "CLIMLoss", "mix_views", "select", "center_wise"):
        series = [json.dumps(v) for name, v in found.items() if name.startswith(kind)]
        assert len(set(series)) == len(series) > 0
    assert {"d first", "d second"} <= found["CLIMLoss, all_pairs"].keys() and "d queries" in found["mixed_info_nce"]
