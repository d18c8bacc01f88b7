"Geometry: colours under simulated colour blindness, forces against autograd, pictures, maps"
import base64
import html
import io
import math
import re
import subprocess
import sys
import warnings

import matplotlib
matplotlib.use("Agg")
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from arcbook.geometry import (ATTRACT, CLASS_COLOURS, REPULSE, align_map, draw_attract_repulse_map, draw_forces, draw_frame,
                              draw_map, film, film_strip, force_vectors, free_points, show_grid, split_forces, style,
                              umap_film, umap_map)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# colours

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
EYES = {
    "all cones": np.eye(3),
    "no green": np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]]),
    "no red": np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]]),
}


def lab(colours, eye):
    "CIELAB of hexadecimal colours as an eye sees them; a distance of about 2 is just visible"
    rgb = np.array([[int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in colours]) / 255
    linear = np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)
    to_xyz = np.array([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750], [.0193339, .1191920, .9503041]])
    x = np.clip(linear @ EYES[eye].T, 0, 1) @ to_xyz.T / [.95047, 1, 1.08883]
    f = np.where(x > .008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("eye", EYES)
def test_all_colours_differ_for_every_eye_and_from_white(eye):
    points = torch.from_numpy(lab([ATTRACT, REPULSE, "#FFFFFF"] + CLASS_COLOURS, eye))
    assert torch.pdist(points).min() > 18


def test_force_colours_are_dark_enough_for_text_and_lines():
    for colour in (ATTRACT, REPULSE): assert lab([colour], "all cones")[0, 0] < 55


# forces

def losses():
    keys, n = noise(7, 3, seed=1), 6
    own = torch.eye(n, dtype=torch.bool)
    pairs = torch.eye(n).roll(n // 2, 1).double()
    soft = noise(n, 7, seed=2).softmax(1)
    cosine = lambda z: (F.normalize(z) @ F.normalize(z).T / 0.3).masked_fill(own, -math.inf)
    return {"class vectors": (lambda z: z @ keys.T, F.one_hot(torch.arange(n), 7)),
            "soft target": (lambda z: F.normalize(z) @ keys.T / 0.1, soft),
            "views of each other": (cosine, pairs),
            "finfo mask": (lambda z: cosine(z).clamp_min(torch.finfo(torch.float64).min), pairs),
            "anchor without target": (cosine, pairs * torch.tensor([1., 1, 1, 0, 1, 1])[:, None])}


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_of_the_force_sum_to_minus_the_gradient(name, dtype):
    logits_fn, target = losses()[name]
    z = noise(6, 3)
    attract, repulse = split_forces(z, logits_fn, target)
    log_p = lambda z: logits_fn(z).log_softmax(1).clamp_min(-1e30)
    assert_close(attract + repulse, force_vectors(lambda z: (target * log_p(z)).sum().neg(), z))
    assert attract.norm() > 0 and repulse.norm() > 0


def test_parts_by_hand_with_fixed_candidates():
    z, keys, target, tau = noise(4, 2), noise(5, 2, seed=1), noise(4, 5, seed=2).softmax(1), 0.3
    attract, repulse = split_forces(z, lambda a: a @ keys.T / tau, target)
    assert_close(attract, target @ keys / tau)
    assert_close(repulse, -(z @ keys.T / tau).softmax(1) @ keys / tau)


def test_free_points_follow_gradient_descent_and_leave_their_start_alone():
    start = noise(5, 3)
    kept = start.clone()
    path = free_points(lambda x: (x ** 2).sum(), start, steps=7, lr=0.05)
    assert path.shape == (8, 5, 3) and start.equal(kept) and not path.requires_grad
    assert_close(path, start * 0.9 ** torch.arange(8.).double()[:, None, None])
    assert_close(free_points(lambda x: x[:, 0].sum(), start, 4, sphere=True).norm(dim=-1), torch.ones(5, 5).double())


# pictures

def png(fig):
    out = io.BytesIO()
    fig.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


@pytest.mark.parametrize("n,m,mask", [(1, 1, False), (3, 4, False), (5, 6, True), (12, 12, True), (24, 24, True), (12, 200, False)])
def test_frame_is_drawn_at_every_size(n, m, mask):
    style()
    logits = noise(n, m)
    if mask: logits.fill_diagonal_(-math.inf)
    target = torch.zeros(n, m)
    target[:, -1] = 1
    fig = draw_frame(logits, target, torch.arange(n) % 4, torch.arange(m) % 10, "a finding")
    assert fig.get_size_inches().tolist() == [8, 2.8] and len(png(fig)) < 100_000
    printed = [t.get_text() for t in fig.axes[1].texts]
    assert len(printed) == (n * m - (min(n, m) if mask else 0) if n <= 5 and m <= 6 else 0)


def test_frame_prints_t_p_and_their_difference():
    p = torch.tensor([[.7, .2, .1]])
    fig = draw_frame(p.log(), torch.tensor([[1., 0., 0.]]), ["image"], ["a", "b", "c"])
    numbers = [[t.get_text() for t in ax.texts] for ax in fig.axes[:3]]
    assert numbers == [["1.00", "0", "0"], ["0.70", "0.20", "0.10"], ["+0.30", "-0.20", "-0.10"]]


def test_frame_survives_masks_of_every_kind():
    masked = torch.full((2, 3), torch.finfo(torch.float32).min)
    for logits in (masked, torch.full((2, 3), -math.inf), torch.zeros(2, 3, dtype=torch.float16)):
        assert png(draw_frame(logits, torch.zeros(2, 3)))


def test_grid_of_images_with_their_labels():
    images = torch.randint(0, 256, (7, 3, 8, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels, names = torch.arange(7) % 3, ["a rather long class name", "b", "c"]
    figure = show_grid(images, labels, names, ncols=3, title="Seven")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 8 and texts[0].endswith("…") and texts[1] == "b" and texts[-1] == "Seven"
    canvas = figure.axes[0].images[0].get_array()
    assert (canvas.shape[1], canvas.shape[0]) == tuple(int(round(v * 100)) for v in figure.get_size_inches())
    zoom = 64 // 6
    first = images[0].permute(1, 2, 0).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy()
    assert any((canvas[y:y + 8 * zoom, :6 * zoom] == first).all() for y in range(60))    # every pixel a square
    assert len(show_grid(torch.rand(5, 3, 8, 8)).axes[0].texts) == 0
    assert show_grid(images[:2], ["one", "two"]).axes[0].texts[1].get_text() == "two"


def gif(movie):
    return base64.b64decode(re.search("base64,([^\"]+)", movie.data).group(1))


def test_film_is_a_small_gif_with_alt_text(tmp_path):
    path = free_points(lambda x: (x ** 2).sum(), noise(30, 2), 50, 0.02)
    movie = film(path, torch.arange(30) % 12, title="Falling \"in\"", frames=12, path=tmp_path / "f.gif")
    assert Image.open(io.BytesIO(gif(movie))).n_frames == 12 and (tmp_path / "f.gif").read_bytes() == gif(movie)
    assert 'alt="Falling &quot;in&quot;"' in movie.data and "<script" not in movie.data
    small = film(path, frames=40, max_bytes=15_000)
    assert len(gif(small)) <= 15_000
    assert len(gif(film(noise(60, 400, 2).cumsum(0)))) <= 300_000


def test_drawings_into_given_axes_return_nothing_and_own_figures_otherwise():
    import matplotlib.pyplot as plt
    xy, labels = noise(12, 2), torch.arange(12) % 3
    ax = plt.figure().subplots()
    for draw in (lambda **k: draw_map(xy, labels, **k), lambda **k: draw_forces(xy, xy, -xy, labels, **k),
                 lambda **k: draw_attract_repulse_map(xy, xy, labels, **k)):
        before = plt.get_fignums()
        assert draw(ax=ax) is None and len(png(draw())) < 100_000
        assert plt.get_fignums() == before                       # nothing is left open to be shown twice
    plt.close("all")
    assert len(film_strip(xy[None].repeat(9, 1, 1), labels, frames=[0, 3, 8]).axes) == 3


def test_links_go_to_the_nearest_of_own_and_other_class():
    from arcbook.geometry import _nearest
    z, y = F.normalize(noise(40, 5)), torch.arange(40) % 3
    rows, cosines = _nearest(z, y, torch.arange(40))
    for i in range(40):
        own = max((j for j in range(40) if j != i and y[j] == y[i]), key=lambda j: z[i] @ z[j])
        other = max((j for j in range(40) if y[j] != y[i]), key=lambda j: z[i] @ z[j])
        assert rows[i].tolist() == [own, other]
    assert_close(cosines[:, 0], (z * z[rows[:, 0]]).sum(1))


def test_map_of_one_class_has_no_repulse_links():
    assert png(draw_attract_repulse_map(noise(6, 2), noise(6, 4), torch.zeros(6)))


# maps

@pytest.fixture(scope="module")
def clusters():
    labels = torch.arange(60) % 3
    return 4 * F.one_hot(labels, 8) + noise(60, 8), labels


def test_map_is_deterministic_silent_and_keeps_neighbours(clusters):
    z, labels = clusters
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first, again, other = umap_map(z), umap_map(z), umap_map(z, seed=1)
    assert first.shape == (60, 2) and first.dtype == np.float32
    assert (first == again).all() and (first != other).any()
    near = torch.cdist(torch.from_numpy(first), torch.from_numpy(first)).fill_diagonal_(9e9).argmin(1)
    assert (labels[near] == labels).float().mean() > 0.95


@pytest.mark.parametrize("n,d", [(3, 8), (4, 8), (5, 2), (13, 8), (20, 1)])
def test_map_of_few_samples(n, d):
    assert np.isfinite(umap_map(noise(n, d))).all()


def test_map_of_a_collapsed_embedding_is_finite():
    assert np.isfinite(umap_map(torch.ones(30, 4))).all()


def test_film_of_maps_moves_less_than_separate_maps(clusters):
    z, _ = clusters
    frames = [z + 0.1 * noise(60, 8, seed=k) for k in range(3)]
    moved = lambda maps: sum(np.linalg.norm(a - b, axis=1).mean() for a, b in zip(maps, maps[1:]))
    joint, separate = umap_film(frames), [umap_map(z, seed=k) for k, z in enumerate(frames)]
    scaled = [(m - m.mean(0)) / np.sqrt(((m - m.mean(0)) ** 2).sum(1).mean()) for m in separate]
    assert moved(joint) < 0.7 * moved(scaled)
    assert all(np.allclose(m.mean(0), 0, atol=1e-5) for m in joint)


def test_align_map_undoes_turn_mirror_and_shift():
    base = noise(20, 2).numpy()
    base = (base - base.mean(0)) / np.sqrt(((base - base.mean(0)) ** 2).sum(1).mean())
    for angle in (0.3, 2.0, 4.0):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        for mirror in (np.eye(2), np.diag([1, -1])):
            assert np.allclose(align_map(3 * base @ turn @ mirror + 5, base), base, atol=1e-5)


# bad input and imports

Z, Y = noise(10, 4), torch.arange(10) % 2
BAD = [
    (lambda: draw_frame(torch.zeros(3), torch.zeros(3)), r"logits must have shape \[N, M\], got \[3\]"),
    (lambda: draw_frame(torch.zeros(2, 3), torch.zeros(3, 2)), r"target must have the shape of logits \[2, 3\], got \[3, 2\]"),
    (lambda: draw_frame(torch.zeros(2, 3), torch.zeros(2, 3), rows=["a"]), "rows needs 2 entries, got 1"),
    (lambda: draw_frame(torch.zeros(2, 3), torch.zeros(2, 3), columns=range(2)), "columns needs 3 entries, got 2"),
    (lambda: split_forces(Z, lambda z: z @ z.T, torch.ones(10, 3)), r"target must have the shape of the logits \[10, 10\]"),
    (lambda: free_points(lambda x: x.sum(), torch.ones(3)), r"points must have shape \[N, D\], got \[3\]"),
    (lambda: film(noise(3, 5, 4)), r"trajectory must have shape \[\.\.\., 2\], got \[3, 5, 4\]"),
    (lambda: show_grid(torch.rand(3, 3, 8, 8), [1, 2]), "labels must be as many as the 3 images, got 2"),
    (lambda: show_grid(torch.rand(3, 8, 8)), r"images must be of shape \[N, 3, H, W\], got \[3, 8, 8\]"),
    (lambda: draw_map(Z), r"coords must have shape \[\.\.\., 2\]"),
    (lambda: draw_map(Z[:, :2], Y[:3]), "labels needs 10 entries, got 3"),
    (lambda: umap_map(Z[:2]), "embeddings needs at least 3 rows, got 2"),
    (lambda: umap_map(Z[0]), r"embeddings must have shape \[N, D\], got \[4\]"),
    (lambda: umap_map(Z * math.nan), "embeddings must be finite, got NaN or inf"),
    (lambda: umap_map(Z, init=np.zeros((5, 2))), "init needs 10 entries, got 5"),           # umap would write beyond it
    (lambda: umap_map(Z, init=np.zeros((10, 3))), r"init must have shape \[\.\.\., 2\], got \[10, 3\]"),
    (lambda: draw_attract_repulse_map(Z[:, :2], Z, Y[:4]), r"labels must have shape \[10\], got \[4\]"),
    (lambda: umap_map(Z, n_neighbors=1), "n_neighbors must be >= 2, got 1"),
    (lambda: umap_film([Z, Z[:5]]), r"embeddings must be of the same samples, got lengths \[5, 10\]"),
    (lambda: umap_film([]), "embeddings must hold at least 1 embedding, got 0"),
]


@pytest.mark.parametrize("call,message", BAD, ids=[m[:40] for _, m in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_import_is_light():
    code = ("import sys, arcbook.geometry, arcbook.evaluation; "
            "print([m for m in ('umap', 'numba', 'matplotlib', 'seaborn', 'sklearn', 'IPython', 'pandas') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
