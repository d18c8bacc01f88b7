"Selection against brute force in float64: neighbours with every kind of tie, k-means, whitening, nearest keys of a queue"
import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from arcbook import selection
from arcbook.contrast import normalize
from arcbook.selection import (block_cosines, inverse_length, key_blocks, kmeans, nearest_centre, nearest_keys,
                               nearest_neighbours, pack, weighted_rows, whiten)

f64, inf = torch.float64, math.inf


def gen(seed=0): return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=f64):
    return torch.randn(*shape, generator=gen(seed), dtype=f64).to(dtype)


# nearest neighbours ------------------------------------------------------------------------------------------------

def brute(points, k, groups=None):
    "By distance in float64, of equally far ones by number; -1 where there is nobody. Plain Python."
    rows, table = points.double().tolist(), []
    for i, a in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i and (groups is None or groups[j] == groups[i])]
        apart = {j: sum((p - q) ** 2 for p, q in zip(a, rows[j])) for j in others}
        near = sorted(others, key=lambda j: (apart[j], j))[:k]
        table.append(near + [-1] * (k - len(near)))
    return tensor(table).reshape(len(rows), k)


def exact(points, k):
    "The same for many rows without ties, as one matrix"
    apart = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return apart.fill_diagonal_(inf).sort(dim=1, stable=True).indices[:, :k]


def test_digits_that_a_product_loses():
    row = tensor([[0.], [1.], [1000.], [1000.001], [1000.003]])
    assert nearest_neighbours(row, 1)[3] == 2
    for offset in (0., 1e3, 1e5):
        for scale in (1e-30, 1e-3, 1., 1e15):
            x = (draw(200, 5, seed=1, dtype=torch.float32) + offset) * scale
            assert torch.equal(nearest_neighbours(x, 7), brute(x, 7)), (offset, scale)


@st.composite
def clouds(draw):
    "Few points on a small grid: duplicates, ties, lone points; k below, at and above their number"
    dim = draw(st.integers(1, 3))
    row = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    points = draw(st.lists(row, min_size=1, max_size=24))
    groups = draw(st.none() | st.lists(st.integers(0, 3), min_size=len(points), max_size=len(points)))
    return tensor(points, dtype=f64), groups, draw(st.integers(1, 26))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(clouds(), st.integers(1, 30), st.sampled_from([f64, torch.float32, torch.float16]), st.sampled_from([1, 0.5, 4]))
def test_grids_with_ties_equal_brute_force_in_order(cloud, block, dtype, unit):
    points, groups, k = cloud
    where = None if groups is None else tensor(groups)
    near = nearest_neighbours((unit * points).to(dtype), k, block, groups=where)
    assert near.dtype == torch.int64
    assert torch.equal(near, brute(points, k, groups))


@pytest.mark.parametrize("n,distinct,k", [(400, 7, 3), (400, 7, 100), (400, 1, 5), (300, 1, 299), (60, 2, 40), (500, 20, 11)])
@pytest.mark.parametrize("grouped", [False, True])
def test_more_equally_far_rows_than_candidates(n, distinct, k, grouped):
    "Ties beyond rank k, far beyond what is preselected: the first in the data set are taken"
    points = draw(distinct, 9, dtype=torch.float32)[torch.randint(distinct, (n,), generator=gen(1))]
    groups = torch.arange(n) % 3 if grouped else None
    apart = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(inf)
    if grouped: apart.masked_fill_(groups[:, None] != groups, inf)
    values, order = apart.sort(dim=1, stable=True)
    assert torch.equal(nearest_neighbours(points, k, groups=groups), order[:, :k].masked_fill(values[:, :k] == inf, -1))


@pytest.mark.parametrize("n", [2, 5, 70])
def test_all_rows_equally_far_though_different(n):
    assert torch.equal(nearest_neighbours(torch.eye(n), 3), brute(torch.eye(n), 3))
    signs = torch.cartesian_prod(*[tensor([-1., 1.])] * 6)
    assert torch.equal(nearest_neighbours(signs, 4), brute(signs, 4))


def test_twins_of_unit_rows_are_in_order_whatever_a_product_rounds_to():
    for dtype in (torch.float32, f64):
        z = normalize(draw(30, 17, seed=1)).to(dtype).repeat(3, 1)
        twins = ((torch.arange(90)[:, None] + tensor([30, 60])) % 90).sort(1).values
        assert torch.equal(nearest_neighbours(z, 2), twins)


def test_ties_do_not_hang_on_the_processor():
    "The same table under other kernels of the processor and of the matrix library"
    code = ("import torch, hashlib; from arcbook.selection import nearest_neighbours as f; g = torch.Generator().manual_seed(0);"
            "x = torch.randn(30, 17, generator=g).repeat(9, 1); y = torch.randint(-2, 3, (500, 4), generator=g).float();"
            "print(hashlib.sha256(b''.join(f(z, 6).numpy().tobytes() for z in (x, y, y.double()))).hexdigest())")
    kinds = ({}, {"ATEN_CPU_CAPABILITY": "default"}, {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"})
    import os
    run = lambda kind: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | kind).stdout
    assert len({run(kind) for kind in kinds}) == 1


@pytest.mark.parametrize("n,k,block", [(101, 7, 1), (101, 7, 17), (101, 7, 101), (101, 7, 5000), (64, 63, 64), (65, 5, 64), (2, 1, 1)])
def test_nearest_neighbours_equal_sklearn(n, k, block):
    from sklearn.neighbors import NearestNeighbors
    z = draw(n, 6, seed=n)
    theirs = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(z.numpy()).kneighbors(return_distance=False)
    assert nearest_neighbours(z, k, block).tolist() == theirs.tolist()
    for x in (z.float(), z - 30, (z + 100).float(), z.half(), z.bfloat16()):                 # far from the origin too
        assert torch.equal(nearest_neighbours(x, k, block), exact(x, k))


def test_many_rows_in_many_dimensions():
    z = normalize(draw(3000, 128, dtype=torch.float32))
    assert torch.equal(nearest_neighbours(z, 40), exact(z, 40))
    outlier = torch.cat([z[:500], 1e4 * z[500:503]])                                     # does not blur the others
    assert torch.equal(nearest_neighbours(outlier, 10), exact(outlier, 10))


def test_few_rows():
    assert nearest_neighbours(torch.ones(1, 3), 4).tolist() == [[-1] * 4]
    assert nearest_neighbours(tensor([[0.], [5.]]), 3).tolist() == [[1, -1, -1], [0, -1, -1]]
    alone = nearest_neighbours(draw(5, 2), 2, groups=torch.arange(5))
    assert alone.tolist() == [[-1, -1]] * 5


def test_distances_are_euclidean():
    points = tensor([[1.0, 0], [10, 1], [0.5, 0.5]], dtype=f64)
    assert nearest_neighbours(points, 1)[0] == 2 and nearest_neighbours(normalize(points), 1)[0] == 1


def test_the_search_leaves_its_input_alone_and_keeps_no_gradient():
    z = draw(50, 3).requires_grad_()
    before = z.detach().clone()
    assert not nearest_neighbours(z, 3).requires_grad and torch.equal(z.detach(), before)


def test_autocast_does_not_reach_the_search():
    points = draw(70, 4, dtype=torch.float32) + 2 * draw(3, 4, seed=1, dtype=torch.float32)[torch.arange(70) % 3]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_neighbours(points, 9), nearest_neighbours(points.double(), 9))
        found = kmeans(points, 3, centres=points[:3])
        assert_close(whiten(points, 3).abs(), whiten(points.double(), 3).abs().float(), rtol=1e-3, atol=1e-3)
        cosines, place = nearest_keys(points[:5], points, 4)
    assert torch.equal(found[0], kmeans(points.double(), 3, centres=points[:3].double())[0])
    assert cosines.dtype == torch.float32
    assert_close(cosines, (normalize(points[:5]) @ normalize(points).T).gather(1, place))


def test_packing_keeps_the_order():
    candidates, keep = torch.randint(0, 99, (40, 7), generator=gen()), torch.rand(40, 7, generator=gen()) < 0.5
    table, counts = pack(candidates, keep, 9)
    for row, n, c, k in zip(table.tolist(), counts.tolist(), candidates.tolist(), keep.tolist()):
        assert row == [x for x, kept in zip(c, k) if kept] + [-1] * (9 - n)


# k-means -----------------------------------------------------------------------------------------------------------

def inertia(points, assigned, centres): return float((points - centres[assigned]).square().sum())


def test_four_points():
    points = tensor([[0.0, 0], [0, 1], [10, 0], [10, 1]], dtype=f64)
    assigned, centres = kmeans(points, 2, centres=points[[0, 2]])
    assert assigned.tolist() == [0, 0, 1, 1] and assigned.dtype == torch.int64
    assert_close(centres, tensor([[0, 0.5], [10, 0.5]], dtype=f64))
    assert inertia(points, assigned, centres) == 1


@pytest.mark.parametrize("iters", [1, 2, 5, 100])
def test_kmeans_equals_sklearn(iters):
    from sklearn.cluster import KMeans
    points = draw(150, 5, seed=4) + 2 * draw(6, 5, seed=5)[torch.arange(150) % 6]
    start = points[:6]
    theirs = KMeans(6, init=start.numpy(), n_init=1, max_iter=iters, tol=0, algorithm="lloyd").fit(points.numpy())
    for x in (points, points.float()):
        before = start.clone()
        assigned, centres = kmeans(x, 6, iters, centres=start.to(x))
        assert torch.equal(start, before)                                               # the caller's centres are not written over
        assert assigned.tolist() == theirs.labels_.tolist()
        assert_close(centres.double(), torch.from_numpy(theirs.cluster_centers_), rtol=0, atol=1e-9 if x.dtype == f64 else 1e-4)
        assert math.isclose(inertia(x, assigned, centres), theirs.inertia_, rel_tol=1e-5)


def test_kmeans_properties():
    points, worst = draw(80, 3, seed=6), inf
    for iters in range(1, 12):
        assigned, centres = kmeans(points, 7, iters, centres=points[:7])
        assert torch.equal(assigned, torch.cdist(points, centres).argmin(1))            # to the nearest of the final centres
        assert inertia(points, assigned, centres) <= worst + 1e-9                       # never rises
        worst = inertia(points, assigned, centres)
    runs = [kmeans(points, 7, generator=gen(s)) for s in (0, 0, 1)]
    assert torch.equal(runs[0][1], runs[1][1]) and not torch.equal(runs[0][1], runs[2][1])
    assigned, centres = kmeans(points[:20], 20, generator=gen())                        # a cluster each
    assert inertia(points[:20], assigned, centres) < 1e-12 and len(assigned.unique()) == 20
    assigned, centres = kmeans(points, 1, generator=gen())
    assert not assigned.any()
    assert_close(centres, points.mean(0, keepdim=True))
    order, start = torch.randperm(80, generator=gen(2)), points[:7]
    a, b = kmeans(points, 7, centres=start), kmeans(points[order], 7, centres=start)     # no order of the data enters
    assert torch.equal(b[0], a[0][order])
    assert_close(b[1], a[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("points,m,start", [
    (torch.ones(9, 3, dtype=f64), 4, None),                                             # nine times the same image
    (torch.ones(9, 3, dtype=f64), 9, None),
    (tensor([[0.0], [0], [0], [1]], dtype=f64), 3, None),
    (draw(12, 2), 3, tensor([[0.0, 0], [900, 900], [-900, 900]], dtype=f64)),            # two clusters lose everybody at once
    (draw(1, 2), 1, None)])
@pytest.mark.parametrize("spherical", [False, True])
def test_empty_clusters(points, m, start, spherical):
    points = normalize(points + 0.01) if spherical else points
    assigned, centres = kmeans(points, m, generator=gen(), spherical=spherical, centres=start)
    assert centres.shape == (m, points.shape[1]) and centres.isfinite().all()
    assert assigned.shape == (len(points),) and 0 <= assigned.min() and assigned.max() < m
    apart = torch.cdist(points, centres)
    assert_close(apart.gather(1, assigned[:, None])[:, 0], apart.min(1).values)


@pytest.mark.parametrize("move,dtype", [(100, torch.float32), (1000, torch.float32), (1e6, f64), (0, torch.bfloat16), (0, torch.float16)])
def test_kmeans_far_from_the_origin_and_in_half_precision(move, dtype):
    "Only differences count; nor may sums of many rows lose digits."
    points = (draw(1500, 6, seed=3) + move).to(dtype)
    truth, centres = kmeans(points.double(), 5, centres=points[:5].double())
    assigned, found = kmeans(points, 5, centres=points[:5])
    assert (assigned == truth).float().mean() > 0.995
    assert_close(found.double() - move, centres - move, rtol=0, atol=0.02)


def test_spherical_centres_are_directions():
    z = normalize(draw(60, 4, seed=8))
    assigned, centres = kmeans(z, 5, generator=gen(), spherical=True)
    assert_close(centres.norm(dim=1), torch.ones(5, dtype=f64))
    assert torch.equal(assigned, (z @ centres.T).argmax(1))
    assert (kmeans(z, 5, generator=gen())[1].norm(dim=1) < 1).all()                     # otherwise not re-normalised


@pytest.mark.parametrize("cells", [1, 30, 2**24])
def test_nearest_centre_in_blocks(cells):
    z, centres = draw(50, 3), draw(7, 3, seed=1)
    assert torch.equal(nearest_centre(z, centres, cells), torch.cdist(z, centres).argmin(1))


# whitening ---------------------------------------------------------------------------------------------------------

def test_whitening_equals_sklearn():
    from sklearn.decomposition import PCA
    z = draw(60, 6, seed=9) @ draw(6, 6, seed=10) + 3
    for dim in (1, 4, 6):
        theirs = torch.from_numpy(PCA(dim, whiten=True, svd_solver="full").fit_transform(z.numpy()))
        ours = whiten(z, dim)
        assert ours.shape == (60, dim)
        sign = (ours * theirs).sum(0).sign()
        assert_close(ours * sign, theirs, rtol=1e-6, atol=1e-6)
        assert_close(whiten(z.float(), dim).double().abs(), theirs.abs(), rtol=0, atol=2e-3)
    order = torch.randperm(60, generator=gen())
    assert_close((whiten(z[order], 4) @ whiten(z[order], 4).T), (whiten(z, 4) @ whiten(z, 4).T)[order][:, order], rtol=1e-6, atol=1e-6)
    assert torch.equal(whiten(z, 4), whiten(z, 4))


@pytest.mark.parametrize("z", [torch.ones(10, 4), torch.ones(10, 4) * torch.arange(10.0)[:, None],
                               torch.cat([draw(10, 2, dtype=torch.float32), torch.zeros(10, 2)], 1)])
def test_whitening_of_flat_directions_is_finite(z):
    "Dead channels and collapsed features have no variance to divide by."
    assert whiten(z, 4).isfinite().all() and whiten(z, 4).abs().max() < 100


# nearest keys ------------------------------------------------------------------------------------------------------

def unit(row): return row / (row * row).sum().sqrt()


def loops(queries, keys, k, own=None):
    "Cosines of each query with its k nearest keys, descending, one number at a time; a list of tensors with a gradient"
    rows = []
    for i, q in enumerate(queries):
        allowed = [j for j in range(len(keys)) if own is None or own[0][i] != own[1][j]]
        cosines = {j: (unit(q) * unit(keys[j])).sum() for j in allowed}
        near = sorted(allowed, key=lambda j: -float(cosines[j].detach()))[:k]
        rows.append((torch.stack([cosines[j] for j in near]), near))
    return rows


OWN = tensor([0, 1, 2, 3, 4]), torch.arange(23) % 7


@pytest.mark.parametrize("own", [None, OWN])
@pytest.mark.parametrize("k", [1, 4, 9, 23, 100])
@pytest.mark.parametrize("size", [None, 1, 3, 8, 50])
def test_nearest_keys_equal_nested_loops(monkeypatch, k, own, size):
    if size: monkeypatch.setattr(selection, "key_blocks", lambda rows, keys, k=1, cells=0: [
        slice(i, min(i + size, len(keys))) for i in range(0, len(keys), size)])
    q, keys = (3 * draw(5, 6)).requires_grad_(), draw(23, 6, seed=3)
    cosines, place = nearest_keys(q, keys, k, *(own or ()))
    assert cosines.shape == place.shape == (5, min(k, 23))
    order = cosines.argsort(dim=1, descending=True)
    weights, total, ours = draw(5, 23, seed=5), 0, 0
    for i, (expected, near) in enumerate(loops(q, keys, k, own)):
        n = len(near)
        assert place[i, order[i, :n]].tolist() == near and (cosines[i, order[i, n:]] == -inf).all()
        assert_close(cosines[i, order[i, :n]], expected)
        ours, total = ours + (weights[i, :n] * cosines[i, order[i, :n]]).sum(), total + (weights[i, :n] * expected).sum()
    a, b = (torch.autograd.grad(x, q, retain_graph=True)[0] for x in (ours, total))
    assert_close(a, b)


def test_gradient_of_nearest_keys_is_that_of_numbers():
    keys = draw(40, 3)
    torch.autograd.gradcheck(lambda q: nearest_keys(q, keys, 5)[0].sort(1).values, draw(4, 3, seed=1).requires_grad_())
    keys.requires_grad_()
    assert not nearest_keys(draw(4, 3), keys, 5)[0].requires_grad                        # keys are constants


@pytest.mark.parametrize("n,k", [(1, 1), (7, 3), (64, 4), (65, 4), (999, 40), (4096, 1), (5000, 300), (640, 41)])
def test_top_columns_equals_topk(n, k):
    for x in (draw(6, n), draw(6, n).round(decimals=1), draw(6, n).masked_fill(draw(6, n, seed=1) > 0, -inf),
              torch.arange(n).double().expand(6, n)):
        values, columns = selection._top_columns(x, k)
        assert torch.equal(values.sort(descending=True).values, x.topk(min(k, n)).values)
        assert torch.equal(x.gather(1, columns), values)
        assert all(len(row.unique()) == min(k, n) for row in columns)


def test_keys_that_tie_at_rank_k_are_some_of_those_that_tie():
    keys = torch.cat([torch.eye(2)[:1].repeat(3, 1), torch.eye(2)[1:].repeat(20, 1)])
    cosines, place = nearest_keys(tensor([[1., 0.5]]), keys, 5)
    assert {0, 1, 2} < set(place[0].tolist()) and len(place[0].unique()) == 5
    assert_close(cosines.sort(descending=True).values[0, 3:], tensor([0.2, 0.2]).sqrt())


def test_blocks_cover_all_keys_once():
    for rows, size, k in ((256, 65536, 512), (1, 7, 512), (10**7, 9, 4), (256, 8192, 1), (0, 5, 1)):
        blocks = key_blocks(rows, torch.zeros(size, 1), k)
        assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(size))
    assert max(b.stop - b.start for b in key_blocks(256, torch.zeros(65536, 1), 512)) == 8192


def test_keys_without_direction_and_a_queue_in_another_precision():
    q, keys = draw(5, 6), draw(23, 6, seed=3)
    keys[0], q[0] = 0, 0
    assert inverse_length(keys)[0] == 0 and (nearest_keys(q, keys, 23)[0][0] == 0).all()
    assert_close(inverse_length(keys)[1:], 1 / keys[1:].norm(dim=1))
    cosines, place = nearest_keys(q.float(), keys.half(), 7)
    assert cosines.dtype == torch.float32
    assert_close(cosines.double(), (normalize(q) @ normalize(keys).T).gather(1, place), atol=2e-3, rtol=0)
    own = block_cosines(normalize(q), keys, inverse_length(keys), slice(2, 9), *OWN)
    assert torch.equal(own == -inf, OWN[0][:, None] == OWN[1][2:9])


def test_sums_of_rows():
    weights, place, rows = draw(5, 7), torch.randint(0, 9, (5, 7), generator=gen()), draw(9, 4, seed=2)
    assert_close(weighted_rows(weights, place, rows), torch.stack([sum(w * rows[j] for w, j in zip(*both)) for both in zip(weights, place)]))


@pytest.mark.parametrize("numbers", [(), OWN])
def test_nearest_keys_compile_to_one_graph(numbers):
    torch._dynamo.reset()
    q, keys = draw(5, 6, dtype=torch.float32).requires_grad_(), draw(23, 6, seed=3, dtype=torch.float32)
    compiled = torch.compile(nearest_keys, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(q, keys, 5, *numbers), nearest_keys(q, keys, 5, *numbers)): assert_close(ours, theirs)


# bad input, imports, cost ------------------------------------------------------------------------------------------

Z = draw(10, 4)
BAD = [
    (lambda: whiten(Z, 5), r"dim must be an integer in 1..4, got 5"),
    (lambda: whiten(Z[0], 2), r"features must have shape \[N, D\], got \[4\]"),
    (lambda: whiten(Z[:0], 2), r"features must hold at least one row, got \[0, 4\]"),
    (lambda: whiten(Z.long(), 2), "features must be floating point, got torch.int64"),
    (lambda: whiten(Z * math.nan, 2), "features must be finite, got NaN or inf"),
    (lambda: kmeans(Z, 11), "num_clusters must be an integer in 1..10, got 11"),
    (lambda: kmeans(Z, 2, 0), "iters must be an integer > 0, got 0"),
    (lambda: kmeans(Z, 2, centres=Z[:3]), r"centres must have shape \[2, 4\], got \[3, 4\]"),
    (lambda: nearest_neighbours(Z, 0), "k must be an integer > 0, got 0"),
    (lambda: nearest_neighbours(Z, 2.0), "k must be an integer > 0, got 2.0"),
    (lambda: nearest_neighbours(Z, 2, block=0), "block must be an integer > 0, got 0"),
    (lambda: nearest_neighbours(Z, 2, groups=torch.zeros(9).long()), r"groups must have shape \[10\], got \[9\]"),
    (lambda: nearest_neighbours(Z.tolist(), 2), r"features must be a tensor \[N, D\], got list"),
    (lambda: nearest_keys(Z, Z * math.inf, 2), "keys must be finite, got NaN or inf"),
]


@pytest.mark.parametrize("call,message", BAD, ids=[m[:40] for _, m in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()


ALONE = """
import sys, time, resource, json
import arcbook.selection as selection
heavy = sorted({m.split(".")[0] for m in sys.modules} & {"torchvision", "sklearn", "matplotlib", "accelerate", "scipy", "PIL", "faiss", "umap"})
ours = sorted(m for m in sys.modules if m.startswith("arcbook"))
import torch
torch.set_num_threads(1)
features = torch.nn.functional.normalize(torch.randn(12000, 64, generator=torch.Generator().manual_seed(0)))
selection.nearest_neighbours(features[:500], 20)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before, start = peak(), time.process_time()
selection.kmeans(features, 12, 10, torch.Generator().manual_seed(0))
selection.nearest_neighbours(features, 20)
print(json.dumps(dict(heavy=heavy, ours=ours, bytes=peak() - before, seconds=time.process_time() - start)))
start = time.process_time()
selection.nearest_neighbours(torch.ones(12000, 64), 20)
print(time.process_time() - start)
"""

def test_imports_time_and_memory():
    "At a quarter of the size: far less than the 576 MB of all distances. benchmarks/clim.py measures the whole."
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, timeout=120).stdout.split("\n")
    found = json.loads(done[0])
    assert found["heavy"] == []
    assert found["ours"] == ["arcbook", "arcbook._checks", "arcbook.contrast", "arcbook.selection"]
    assert found["bytes"] < 200e6, found
    assert found["seconds"] < 10, found                                                 # CPU seconds; loose: the machine may be busy
    assert float(done[1]) < 30                                                          # a network that has collapsed
