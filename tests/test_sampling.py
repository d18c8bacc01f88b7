"Subsets and samplers against the reference selection, the published counts and chi-square tests"
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader

from arcbook.sampling import (ClassAwareSampler, class_probabilities, draw_seed, few_per_class_indices,
                              long_tail_counts, long_tail_indices, shot_groups, shuffled_by_class, two_stream_indices)

CIFAR100 = {
    100: "500 477 455 434 415 396 378 361 344 328 314 299 286 273 260 248 237 226 216 206 197 188 179 171 163 "
        "156 149 142 135 129 123 118 112 107 102 98 93 89 85 81 77 74 70 67 64 61 58 56 53 51 48 46 44 42 40 "
        "38 36 35 33 32 30 29 27 26 25 24 23 22 21 20 19 18 17 16 15 15 14 13 13 12 12 11 11 10 10 9 9 8 8 7 "
        "7 7 6 6 6 6 5 5 5 5",
    50: "500 480 462 444 426 410 394 379 364 350 336 323 311 299 287 276 265 255 245 235 226 218 209 201 193 "
        "186 178 172 165 158 152 146 141 135 130 125 120 115 111 107 102 98 95 91 87 84 81 78 75 72 69 66 64 "
        "61 59 56 54 52 50 48 46 44 43 41 39 38 36 35 34 32 31 30 29 27 26 25 24 23 22 22 21 20 19 18 18 17 "
        "16 16 15 14 14 13 13 12 12 11 11 10 10 10",
    10: "500 488 477 466 455 445 434 424 415 405 396 387 378 369 361 352 344 336 328 321 314 306 299 292 286 "
        "279 273 266 260 254 248 243 237 232 226 221 216 211 206 201 197 192 188 183 179 175 171 167 163 159 "
        "156 152 149 145 142 139 135 132 129 126 123 121 118 115 112 110 107 105 102 100 98 95 93 91 89 87 85 "
        "83 81 79 77 75 74 72 70 69 67 66 64 63 61 60 58 57 56 54 53 52 51 50"}
CIFAR10 = {10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
           50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
           100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]}


@pytest.mark.parametrize("imbalance", [10, 50, 100])
def test_counts_of_cifar_lt(imbalance):
    assert long_tail_counts(100, 500, imbalance).tolist() == [int(n) for n in CIFAR100[imbalance].split()]
    assert long_tail_counts(10, 5000, imbalance).tolist() == CIFAR10[imbalance]


def test_totals_and_shot_groups():
    totals = [[int(long_tail_counts(c, n, f).sum()) for f in (10, 50, 100)] for c, n in ((10, 5000), (100, 500))]
    assert totals == [[20431, 13996, 12406], [19573, 12608, 10847]]
    groups = {10: ([69, 31, 0], [17343, 2230, 0]), 50: ([41, 41, 18], [10331, 2028, 249]),
              100: ([35, 35, 30], [8824, 1718, 305])}
    for imbalance, (classes, images) in groups.items():
        counts = long_tail_counts(100, 500, imbalance)
        group = shot_groups(counts)
        assert [int((group == g).sum()) for g in range(3)] == classes
        assert [int(counts[group == g].sum()) for g in range(3)] == images
    assert shot_groups(torch.tensor([101, 100, 20, 19, 0])).tolist() == [0, 1, 1, 2, 2]


def reference_selection(targets, imbalance, seed=0):
    "kaidic/LDAM-DRW imbalance_cifar.py, transcribed: global generator, class by class"
    targets, classes = np.array(targets), len(np.unique(targets))
    most = len(targets) / classes
    kept = []
    state = np.random.get_state()
    np.random.seed(seed)
    for k in range(classes):
        indices = np.where(targets == k)[0]
        np.random.shuffle(indices)
        kept.extend(indices[:int(most * (1 / imbalance) ** (k / (classes - 1.0)))])
    np.random.set_state(state)
    return [int(i) for i in kept]


@pytest.mark.parametrize("imbalance", [1, 10, 100])
@pytest.mark.parametrize("seed", [0, 5])
def test_long_tail_indices_equal_the_reference(imbalance, seed):
    labels = np.random.RandomState(9).permutation(np.repeat(np.arange(10), 200))
    assert long_tail_indices(labels, imbalance, seed).tolist() == reference_selection(labels, imbalance, seed)


GOLDEN_FEW, GOLDEN_DRAWS = [54, 3, 57, 34, 4, 55, 47, 41, 38], [40, 22, 29, 12, 19, 38, 38, 19]


def test_golden_indices():
    "The same on every platform and with every version of NumPy and torch"
    labels = torch.arange(60) % 3
    assert few_per_class_indices(labels, 3, 0).tolist() == GOLDEN_FEW
    assert list(ClassAwareSampler(labels, 0.5, num_samples=8, seed=1)) == GOLDEN_DRAWS


def test_global_random_state_is_left_alone():
    np.random.seed(1); torch.manual_seed(1)
    a = np.random.rand(), torch.rand(()).item()
    np.random.seed(1); torch.manual_seed(1)
    few_per_class_indices([0, 1] * 20, 5), long_tail_indices([0, 1] * 20, 4), list(ClassAwareSampler([0, 1] * 20))
    assert a == (np.random.rand(), torch.rand(()).item())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 2 ** 32 - 1))
def test_few_is_a_nested_stratified_subset(extra, seed):
    labels = torch.tensor([0, 1, 2, 3, 4] * 4 + extra)
    small, large = few_per_class_indices(labels, 2, seed), few_per_class_indices(labels, 4, seed)
    assert labels[large].tolist() == sorted(labels[large].tolist()) and len(set(large.tolist())) == 20
    assert labels[large].bincount().tolist() == [4] * 5
    assert torch.equal(small.view(5, 2), large.view(5, 4)[:, :2])
    whole = np.concatenate(shuffled_by_class(labels, seed))
    assert sorted(whole.tolist()) == list(range(len(labels)))


@pytest.mark.parametrize("call, words", [
    (lambda: few_per_class_indices([0, 0, 1], 2), "per_class must be at most 1, the images of class 1, got 2"),
    (lambda: few_per_class_indices([0, 0, 2, 2], 2), "class 1"),
    (lambda: few_per_class_indices([0, 1], 0), "per_class must be >= 1, got 0"),
    (lambda: few_per_class_indices([0, -1], 1), "labels must be >= 0, got -1"),
    (lambda: few_per_class_indices([], 1), "labels"),
    (lambda: few_per_class_indices([[0, 1]], 1), "labels must be whole numbers of shape [N]"),
    (lambda: few_per_class_indices([0.5, 1], 1), "labels must be whole numbers"),
    (lambda: few_per_class_indices([0, 1], 1, seed=-1), "seed must be in 0..4294967295, got -1"),
    (lambda: long_tail_counts(0, 5, 1), "num_classes must be >= 1, got 0"),
    (lambda: long_tail_counts(10, 50, 100), "imbalance must be between 1 and 50"),
    (lambda: long_tail_counts(10, 50, 0.5), "imbalance"),
    (lambda: long_tail_counts(10, 50, float("nan")), "imbalance"),
    (lambda: class_probabilities([0, 0], 0), "counts"),
    (lambda: class_probabilities([1, -1], 0), "counts"),
    (lambda: class_probabilities([1.0, 2.0], 0), "counts must be whole numbers"),
    (lambda: class_probabilities([1, 2], float("inf")), "gamma must be finite, got inf"),
    (lambda: long_tail_indices([0] * 9 + [1] * 3, 5), "imbalance must be between 1 and 3, the images of the smallest class, got 5"),
    (lambda: two_stream_indices([0, 1], 0), "batch_size must be >= 1, got 0"),
    (lambda: ClassAwareSampler([0, 1], num_samples=0), "num_samples must be >= 1, got 0"),
    (lambda: ClassAwareSampler([0, 1], seed=-3), "seed"),
])
def test_bad_input(call, words):
    with pytest.raises(ValueError) as error: call()
    assert words in str(error.value)


def test_a_drawn_seed_is_the_same_in_every_version_of_torch():
    "Recorded with torch 2.6.0 and 2.14.1; `torch.randint(2**31, ())` is 209652396 and 398764591 there."
    generator = torch.Generator().manual_seed(0)
    assert [draw_seed(generator) for _ in range(3)] == [398764591, 1478610112, 1537364731]
    assert torch.rand((), generator=generator).item() == pytest.approx(0.4900934100151062, abs=1e-7)       # six numbers of 32 bits are gone
    assert draw_seed(torch.Generator().manual_seed(7), 2**32) == 976413892
    torch.manual_seed(7)
    assert draw_seed(high=2**32) == 976413892                                                       # torch's global stream
    for high in (2**31, 2**32, 1, 8, 2**63):
        assert 0 <= draw_seed(generator, high) < high


def test_a_drawn_seed_is_what_randint_gives_today():
    if torch.randint(2**31, (), generator=torch.Generator().manual_seed(0)) != 398764591: pytest.skip("32 bits in older versions")
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for high in (2**31, 2**32) * 50:
        assert draw_seed(one, high) == torch.randint(high, (), generator=other).item()
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("high", [0, -8, 3, 1000, 2**64])
def test_a_seed_is_below_a_power_of_two(high):
    with pytest.raises(ValueError, match="high must be a power of two"): draw_seed(high=high)


def test_class_probabilities():
    expected = {-1: [.900901, .090090, .009009], 0: [1 / 3] * 3,
                .5: [.070610, .223289, .706101], 1: [.009009, .090090, .900901]}
    for gamma, p in expected.items(): assert np.allclose(class_probabilities([100, 10, 1], gamma), p, atol=1e-6)
    counts = torch.tensor([16, 8, 4, 2, 1])   # an exact geometric profile: gamma 1 mirrors gamma -1
    assert torch.allclose(class_probabilities(counts, 1), class_probabilities(counts, -1).flip(0))
    assert class_probabilities([5, 0, 3], 0).tolist() == [.5, 0, .5]
    for gamma in (-500, 500): assert class_probabilities([5000, 1], gamma).isfinite().all()


def test_collisions_and_draws_per_image():
    inverse = {(100, 500, 100): .002020, (100, 500, 50): .003057, (100, 500, 10): .006474,
               (10, 5000, 100): .016217, (10, 5000, 50): .025486, (10, 5000, 10): .059860}
    for (classes, largest, imbalance), collision in inverse.items():
        n = long_tail_counts(classes, largest, imbalance).double()
        for gamma, expected in ((0, 1 / classes), (1, collision)):
            assert abs((n / n.sum() * class_probabilities(n.long(), gamma)).sum() - expected) < 1e-6
    n = long_tail_counts(100, 500, 100)
    draws = n.sum() * class_probabilities(n, 1) / n
    assert abs(draws[0] - .0095) < 1e-4 and abs(draws[-1] - 95.06) < .05


@pytest.mark.parametrize("gamma", [-1, -.5, 0, .5, 1])
def test_sampler_frequencies(gamma):
    labels = torch.tensor([1] * 3 + [0] * 60 + [3] * 12)[torch.randperm(75, generator=torch.Generator().manual_seed(0))]
    drawn = torch.tensor(list(ClassAwareSampler(labels, gamma, num_samples=40_000, seed=2)))
    counts = labels.bincount()
    expected = 40_000 * (class_probabilities(counts, gamma)[labels] / counts[labels])
    assert chisquare(drawn.bincount(minlength=75).numpy(), expected.numpy()).pvalue > 1e-3
    assert (labels[drawn] != 2).all()   # a class without images is never drawn


def test_sampler_epochs_and_loader():
    labels = [0, 0, 0, 1, 2] * 4
    sampler = ClassAwareSampler(labels, seed=4)
    assert len(sampler) == len(list(sampler)) == 20
    epochs = []
    for epoch in range(3): sampler.set_epoch(epoch); epochs.append(list(sampler))
    assert epochs[0] != epochs[1] != epochs[2]
    sampler.set_epoch(1); assert list(sampler) == epochs[1]
    assert torch.cat(list(DataLoader(range(20), batch_size=6, sampler=sampler))).tolist() == epochs[1]
    assert epochs[0] != list(ClassAwareSampler(labels, seed=5))


def test_draw_uses_the_callers_generator():
    sampler = ClassAwareSampler([0, 0, 1])
    a, b = (sampler.draw(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.int64
    assert sampler.draw(0, torch.Generator()).shape == (0,)


def test_two_streams():
    labels = torch.tensor([0] * 60 + [1] * 12 + [2] * 3)
    draw = lambda seed, size=16, gamma=0.0: two_stream_indices(labels, size, gamma, torch.Generator().manual_seed(seed))
    pairs = draw(0)
    assert pairs.shape == (4, 2, 16) and pairs.dtype == torch.int64 and torch.equal(pairs, draw(0)) and not torch.equal(pairs, draw(1))
    assert len(set(pairs[:, 0].flatten().tolist())) == 64                      # a shuffle: nothing twice
    assert draw(0, 500).shape == (1, 2, 75)                                    # fewer images than a batch: all of them
    aware = torch.cat([draw(seed, 75, 1.0)[0, 1] for seed in range(100)])
    expected = len(aware) * class_probabilities(labels.bincount(), 1.0)
    assert chisquare(labels[aware].bincount(minlength=3).numpy(), expected.numpy()).pvalue > 1e-3


def test_same_in_a_fresh_process():
    code = ("from arcbook.sampling import *; import torch\n"
            "assert two_stream_indices([0, 0, 0, 1], 2, 0.5, torch.Generator().manual_seed(3)).tolist() == "
            f"{two_stream_indices([0, 0, 0, 1], 2, 0.5, torch.Generator().manual_seed(3)).tolist()}\n"
            "sampler = ClassAwareSampler(torch.arange(90) % 7, 1., seed=11)\n"
            "print(list(sampler), long_tail_indices([0, 1, 2] * 30, 10).tolist())")
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = list(ClassAwareSampler(torch.arange(90) % 7, 1., seed=11)), long_tail_indices([0, 1, 2] * 30, 10).tolist()
    assert fresh == "{} {}".format(*here)
