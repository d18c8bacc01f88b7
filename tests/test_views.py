"""Views: laws of their draws, other implementations as oracles, and what every view must keep."""
import colorsys
import math
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TV
import torchvision.transforms.v2.functional as TV2
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop

from arcbook import views as V
from arcbook._checks import as_sides
from arcbook.datasets import make_shapes
from arcbook.profiles import profile_of

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
STRONG = V.Augment(("pad", 2), True, (10, 0.1, (0.9, 1.1)), 0.3, (0.4, 0.4, 0.4, 0.1), 0.8, 4, (0.4,) * 3, (0.2,) * 3)
RESIZED = replace(STRONG, crop=("resized", (0.2, 1.0)), size=(9, 14))
VIEWS = {   # name: function of (float images, generator)
    "random_crop": lambda x, g: V.random_crop(x, 3, g), "random_crop zeros": lambda x, g: V.random_crop(x, 3, g, "zeros"),
    "random_flip": lambda x, g: V.random_flip(x, 0.5, g), "color_jitter": lambda x, g: V.color_jitter(x, generator=g),
    "random_gray": lambda x, g: V.random_gray(x, 0.5, g), "cutout": lambda x, g: V.cutout(x, 4, 0.9, g),
    "cutout filled": lambda x, g: V.cutout(x, 4, 0.9, g, fill=0.5), "random_affine": lambda x, g: V.random_affine(x, generator=g),
    "random_resized_crop": lambda x, g: V.random_resized_crop(x, (9, 14), generator=g),
    "scaled_crop": lambda x, g: V.scaled_crop(x, 11, (0.3, 0.8), generator=g),
    "multi_resolution": lambda x, g: V.multi_resolution(x, [12], generator=g)[0], "Augment": STRONG, "Augment resized": RESIZED}


def seeded(seed=0, device="cpu"): return torch.Generator(device).manual_seed(seed)


def noise(*shape, seed=0): return torch.rand(*shape, generator=seeded(seed))


def chi_square(counts, expected): return float(((counts - expected) ** 2 / expected).sum())


# ---------------------------------------------------------------- what every view must keep

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VIEWS)
def test_seed_decides_everything(name, device):
    x = noise(16, 3, 13, 10).to(device)
    before, state = x.clone(), torch.get_rng_state()
    one, two, other = (VIEWS[name](x, seeded(s, device)) for s in (0, 0, 1))
    assert one.equal(two) and not one.equal(other)
    assert x.equal(before), "the input was written to"
    assert torch.get_rng_state().equal(state), "torch's global generator was used"
    assert one.device == x.device and one.isfinite().all()


@pytest.mark.parametrize("name", VIEWS)
def test_every_image_has_its_own_draw(name):
    x = noise(1, 3, 13, 10).expand(64, 3, 13, 10)
    assert len(VIEWS[name](x, seeded()).flatten(1).unique(dim=0)) > (1 if name in ("random_flip", "random_gray") else 20)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("batch", [0, 1])
def test_empty_batch_and_batch_of_one(name, batch):
    y = VIEWS[name](noise(batch, 3, 12, 12), seeded())
    assert y.shape[:2] == (batch, 3) and y.isfinite().all()


@pytest.mark.parametrize("name", VIEWS)
def test_memory_format_and_precision(name):
    x = noise(6, 3, 12, 12)
    packed = VIEWS[name](x.to(memory_format=torch.channels_last), seeded())
    assert_close(packed, VIEWS[name](x, seeded()), atol=1e-6, rtol=1e-5)
    double = VIEWS[name](x.double(), seeded())
    assert double.dtype == torch.float64
    assert_close(double.float(), VIEWS[name](x, seeded()), atol=1e-4, rtol=1e-4)


class CountOps(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VIEWS)
def test_no_loop_over_images(name):
    counts = []
    for batch in (4, 64):
        x = noise(batch, 3, 12, 12)
        with CountOps() as ops: VIEWS[name](x, seeded())
        counts.append(ops.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("function", [V.to_float, V.random_crop, V.random_flip, V.random_gray, V.color_jitter, V.random_affine,
                                      partial(V.cutout, size=3), partial(V.ten_crop, size=3), partial(V.border_trim, fraction=0.1),
                                      partial(V.random_resized_crop, size=4), partial(V.scaled_crop, size=4, scale=(0.5, 1)),
                                      STRONG, STRONG.plain])
@pytest.mark.parametrize("bad", [torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int64), np.zeros((1, 3, 8, 8))])
def test_bad_images_are_named(function, bad):
    with pytest.raises(ValueError, match="^images must be"): function(bad)


@pytest.mark.parametrize("call, text", [
    (lambda x: V.random_crop(x, -1), "padding must be >= 0, got -1"),
    (lambda x: V.random_flip(x, 2), r"p must be in \[0, 1\], got 2"),
    (lambda x: V.random_gray(x, float("nan")), r"p must be in \[0, 1\], got nan"),
    (lambda x: V.color_jitter(x, brightness=-1), r"brightness must be in \[0, inf\], got -1"),
    (lambda x: V.cutout(x, -2), "size must be >= 0, got -2"),
    (lambda x: V.random_resized_crop(x, 0), "size must be >= 1"),
    (lambda x: V.random_resized_crop(x, 8, ratio=(2, 1)), "ratio must be"),
    (lambda x: V.scaled_crop(x, 8, (0.5, 0.9), unit="pixels"), "unit must be one of side, area, got 'pixels'"),
    (lambda x: V.scaled_crop(x, 8, (0, 0.9)), "scale must be"),
    (lambda x: V.crop_resize(x, torch.zeros(1, 4), 8), r"boxes must have shape \[2, 4\], got \[1, 4\]"),
    (lambda x: V.crop_resize((x * 255).byte(), torch.zeros(2, 4), 8), "images must be floating point"),
    (lambda x: V.random_affine(x, scale=(0, 1)), "scale must be"),
    (lambda x: V.cutmix_box(8, 8, -0.1), r"lam must be in \[0, 1\], got -0.1"),
    (lambda x: V.cutmix(x, x[:1], 0.5), "images_b must have the shape of images_a"),
    (lambda x: V.mixup(x, x, 1.5), r"lam must be in \[0, 1\], got 1.5"),
    (lambda x: V.ten_crop(x, 9), r"size must be <= the images' \[8, 8\], got \[9, 9\]"),
    (lambda x: V.ten_crop(x, 4, "down"), "rounding must be one of up, even"),
    (lambda x: V.border_trim(x, 0.5), r"fraction must be in \[0, 0.5\), got 0.5"),
    (lambda x: V.Augment(gray=0.2)(x[:, :1]), "images must have 3 channels, got 1"),
])
def test_bad_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text): call(noise(2, 3, 8, 8))


# ---------------------------------------------------------------- geometry

@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.parametrize("size", [None, 5, (12, 6)])
def test_random_crop_equals_naive_loop(mode, size):
    x, (h, w) = noise(20, 3, 9, 11), (9, 11) if size is None else as_sides("size", size)
    rows, cols = V._windows(x, 4, (h, w), seeded(3))
    padded = F.pad(x, (4,) * 4, mode="reflect" if mode == "reflect" else "constant")
    naive = [p[:, int(r[0]) + 4:int(r[0]) + 4 + h, int(c[0]) + 4:int(c[0]) + 4 + w] for p, r, c in zip(padded, rows, cols)]
    assert V.random_crop(x, 4, seeded(3), mode, size).equal(torch.stack(naive))
    as_bytes = (x * 255).byte()
    assert V.random_crop(as_bytes, 4, seeded(3), mode, size).equal(torch.stack([(255 * n).byte() for n in naive]))


def test_random_crop_places_are_uniform():
    x = torch.zeros(1).expand(30_000, 1, 10, 10)
    rows, cols = V._windows(x, 2, (10, 10), seeded())
    counts = torch.bincount((rows[:, 0] + 2) * 5 + cols[:, 0] + 2, minlength=25)
    assert len(counts) == 25 and chi_square(counts, 30_000 / 25) < 51.2   # 24 degrees of freedom, p = 0.001


def test_crop_resize_equals_torchvision():
    x, g = noise(40, 3, 23, 17), seeded(5)
    boxes = torch.cat([V.resized_boxes(x[:20], (0.01, 1.0), (0.2, 5.0), g), V.scaled_boxes(x[:20], (0.05, 1.0), "side", g)])
    for size in ((23, 17), (7, 7), (40, 5), (1, 1)):
        theirs = [TV.resized_crop(i, *map(int, b), list(size), antialias=True) for i, b in zip(x, boxes)]
        assert_close(V.crop_resize(x, boxes, size), torch.stack(theirs), atol=3e-6, rtol=0)


def test_resize_matrix_rows_are_weights_inside_the_box():
    start, length = torch.tensor([0, 3, 11, 5]), torch.tensor([12, 4, 1, 7])
    for size in (1, 3, 12, 30):
        matrix = V._resize_matrix(start, length, 12, size)
        assert_close(matrix.sum(-1), torch.ones(4, size))
        assert (matrix >= 0).all()
        for m, s, n in zip(matrix, start, length): assert not m[:, :s].any() and not m[:, s + n:].any()


def test_resized_boxes_follow_the_law():
    x = torch.zeros(1).expand(40_000, 3, 64, 64)
    top, left, high, wide = V.resized_boxes(x, (0.3, 0.6), (3/4, 4/3), seeded()).T
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= 64).all() and (left + wide <= 64).all()
    area, aspect = high * wide / 64**2, (wide / high).log() / math.log(4/3)
    for value, low, up in ((area, 0.3, 0.6), (aspect, -1, 1)):   # every draw fits here, so both are uniform, rounding aside
        share = ((value - low) / (up - low) * 4).floor().clamp(0, 3).long().bincount(minlength=4) / 40_000
        assert (share - 0.25).abs().max() < 0.02
    exact = top[high == 48]
    assert chi_square(exact.bincount(minlength=17), len(exact) / 17) < 39.3   # 16 degrees of freedom, p = 0.001


@pytest.mark.parametrize("shape", [(64, 64), (30, 50), (8, 90), (90, 8)])
def test_resized_boxes_agree_with_torchvision(shape):
    x = torch.zeros(1).expand(3_000, 3, *shape)
    torch.manual_seed(1)
    theirs = torch.tensor([RandomResizedCrop.get_params(x[0], (0.08, 1.0), (3/4, 4/3)) for _ in x]).double()
    ours = V.resized_boxes(x, (0.08, 1.0), (3/4, 4/3), seeded()).double()
    for k in (1, 2):   # moments
        a, b = ours ** k, theirs ** k
        assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * ((a.var(0) + b.var(0)) / 3_000).sqrt() + 1e-9).all()


@pytest.mark.parametrize("shape, ratio", [((10, 100), (3/4, 4/3)), ((100, 10), (3/4, 4/3))])
def test_resized_boxes_fall_back_to_the_centre(shape, ratio):
    x = torch.zeros(5, 3, *shape)
    assert V.resized_boxes(x, (1.0, 1.0), ratio).tolist() == [list(RandomResizedCrop.get_params(x[0], [1.0, 1.0], list(ratio)))] * 5


def test_scaled_boxes_of_large_scale_overlap():
    x = torch.zeros(1).expand(5_000, 3, 61, 47)
    a, b = V.scaled_boxes(x, (0.1, 0.8), "side", seeded(1)), V.scaled_boxes(x, (0.8, 0.9), "side", seeded(2))
    for start, length, pixels in ((0, 2, 61), (1, 3, 47)):
        both = a[:, length] + b[:, length] > pixels
        inside = torch.minimum(a[:, start] + a[:, length], b[:, start] + b[:, length]) > torch.maximum(a[:, start], b[:, start])
        assert inside[both].all() and both.any()
        assert (a[:, start] + a[:, length] <= pixels).all() and (b[:, length] >= a[:, length]).all()
    assert (V.scaled_boxes(x[:9, :, :3, :3], (0.1, 0.1))[:, 2:] == 1).all()   # never empty


@pytest.mark.parametrize("shape", [(16, 16), (15, 22)])
def test_affine_equals_torchvision(shape):
    x = noise(4, 3, *shape)
    angle, scale = torch.tensor([0., 17, -90, 180]), torch.tensor([1., 0.7, 1.0, 1.4])
    shift = torch.tensor([[3., 0], [0, -2], [1, 1], [-4, 2.]])
    theirs = [TV.affine(i, float(a), m.tolist(), float(s), [0., 0], TV.InterpolationMode.BILINEAR)
              for i, a, m, s in zip(x, angle, shift, scale)]
    assert_close(V.affine(x, angle, shift, scale), torch.stack(theirs), atol=2e-4, rtol=0)


def naive_five(image, h, w):
    H, W = image.shape[1:]
    middle = int((H - h + 1) * 0.5), int((W - w + 1) * 0.5)
    return [image[:, t:t + h, s:s + w] for t, s in ((0, 0), (0, W - w), (H - h, 0), (H - h, W - w), middle)]


@pytest.mark.parametrize("shape", [(9, 9), (12, 7)])
def test_ten_crop_every_size(shape):
    x = torch.arange(2 * 3 * shape[0] * shape[1]).view(2, 3, *shape).float()
    for h in range(1, shape[0] + 1):
        for w in range(1, shape[1] + 1):
            assert V.ten_crop(x, (h, w), "even").equal(torch.stack(TV.ten_crop(x, [h, w]), 1))
            naive = torch.stack([torch.stack(naive_five(i, h, w) + naive_five(i.flip(-1), h, w)) for i in x])
            assert V.ten_crop(x, (h, w)).equal(naive)
            assert V.ten_crop(x, (h, w)).sum(1).equal(V.ten_crop(x.flip(-1), (h, w)).sum(1))


# ---------------------------------------------------------------- colour

def naive_jitter(image, b, c, s, h):
    "One image, one pixel at a time, float64: the four changes one after the other, the hue by a complex number"
    luma, third = np.array([0.299, 0.587, 0.114]), np.exp(2j * np.pi / 3)
    image = np.asarray(image, dtype=np.float64) * b
    image = c * image + (1 - c) * np.tensordot(luma, image, 1).mean()
    out = np.empty_like(image)
    for row in range(image.shape[1]):
        for col in range(image.shape[2]):
            pixel = image[:, row, col]
            pixel = luma @ pixel + s * (pixel - luma @ pixel)
            colour = (pixel @ [1, third, third**2]) * np.exp(2j * np.pi * h)   # red, green, blue on the circle
            around = np.array([(colour * np.conj(third**k)).real * 2 / 3 for k in range(3)])
            out[:, row, col] = around + luma @ (pixel - around)
    return out.clip(0, 1)


def test_jitter_matrix_equals_naive_pixels():
    x = noise(6, 3, 5, 4)
    factors = torch.stack([*(noise(3, 6, seed=2) * 1.5), noise(6, seed=3) - 0.5])
    b, c, s, h = factors
    ours = V._apply_colour(x, V._colour_matrix(b, c, s, h), (1 - c) * b)
    naive = np.stack([naive_jitter(i, *map(float, f)) for i, f in zip(x, factors.T)])
    assert_close(ours.double(), torch.from_numpy(naive), atol=2e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.7])
def test_single_changes_equal_torchvision(factor):
    x, n = noise(5, 3, 8, 8), torch.ones(5)
    zero = torch.zeros(5)
    for theirs, (b, c, s) in ((TV2.adjust_brightness, (factor, 1, 1)), (TV2.adjust_contrast, (1, factor, 1)),
                              (TV2.adjust_saturation, (1, 1, factor))):
        ours = V._apply_colour(x, V._colour_matrix(b * n, c * n, s * n, zero), (1 - c * n) * b)
        assert_close(ours, theirs(x, factor), atol=2e-4, rtol=0)   # torchvision's luma weights add up to 0.9999


@pytest.mark.parametrize("turn", [0.3, 0.1, -0.05, -0.5])
def test_hue_is_hsv_s_with_the_luma_kept(turn):
    x = noise(8, 3, 3, 3) * 0.2 + 0.4   # nothing is cut at 0 or 1
    n = torch.ones(8)
    ours, theirs = V._apply_colour(x, V._colour_matrix(n, n, n, turn * n)), TV2.adjust_hue(x, turn)
    luma = torch.tensor(V._LUMA)
    assert_close(luma @ ours.flatten(2), luma @ x.flatten(2), atol=1e-6, rtol=0)
    for a, b in zip(ours.movedim(1, -1).reshape(-1, 3).tolist(), theirs.movedim(1, -1).reshape(-1, 3).tolist()):
        apart = (colorsys.rgb_to_hsv(*a)[0] - colorsys.rgb_to_hsv(*b)[0] + 0.5) % 1 - 0.5
        assert abs(apart) < 2.4 / 360   # circle against hexagon: 1.2 degrees each way


def test_jitter_factors_are_uniform_and_independent():
    strengths, n = (0.4, 0.3, 0.2, 0.1), 20_000
    x = torch.zeros(1).expand(n, 3, 1, 1)
    matrix, lift = V._draw_jitter(x, strengths, 1.0, seeded())
    grey, chroma, quarter = (part.flatten() for part in V._colour_parts())
    gain, cos, sin = torch.linalg.lstsq(torch.stack([grey, chroma, quarter], 1), matrix.flatten(1).T).solution
    b = lift + gain   # lift = (1-c) b, gain = b c
    c, s, h = gain / b, torch.hypot(cos, sin) / gain, torch.atan2(sin, cos) / (2 * math.pi)
    unit = torch.stack([(v - m) / k for v, m, k in zip((b, c, s, h), (1, 1, 1, 0), strengths)])
    assert unit.abs().max() < 1.001
    for row in unit:
        counts = ((row + 1) * 5).floor().clamp(0, 9).long().bincount(minlength=10)
        assert chi_square(counts, n / 10) < 27.9   # 9 degrees of freedom, p = 0.001
    assert (torch.corrcoef(unit) - torch.eye(4)).abs().max() < 4.5 / n ** 0.5


def test_images_outside_p_are_left_alone_bit_for_bit():
    x = noise(400, 3, 4, 4)
    y = V.color_jitter(x, p=0.5, generator=seeded())
    same = (x == y).flatten(1).all(1).sum()
    assert 150 < same < 250
    grey = V.random_gray(x, 0.5, seeded())
    changed = (x != grey).flatten(1).any(1)
    assert 150 < changed.sum() < 250 and (grey[changed].std(1) < 1e-6).all()


@pytest.mark.parametrize("size", [1, 4, 5, 8, 40])
def test_cutout_equals_naive(size):
    H, W = 9, 12
    x = torch.ones(4_000, 1, H, W)
    holes = V.cutout(x, size, generator=seeded())[:, 0] == 0
    possible = set()
    for row in range(H):
        for col in range(W):
            hole = torch.zeros(H, W, dtype=torch.bool)
            hole[max(row - size // 2, 0):row - size // 2 + size, max(col - size // 2, 0):col - size // 2 + size] = True
            possible.add(hole.numpy().tobytes())
    assert {hole.numpy().tobytes() for hole in holes} == possible


# ---------------------------------------------------------------- mixtures

@pytest.mark.parametrize("height, width", [(32, 32), (16, 40), (7, 5)])
def test_cutmix_box_against_a_mask(height, width):
    for k in range(200):
        lam0 = float(noise(1, seed=k))
        mixed, lam = V.cutmix(torch.ones(1, 1, height, width), torch.zeros(1, 1, height, width), lam0, seeded(k))
        assert abs(float(mixed.double().mean()) - lam) < 1e-12 and lam0 - 1e-12 <= lam <= 1
        g = seeded(k)
        cy, cx = (int(torch.randint(n, (), generator=g)) for n in (height, width))
        h, w = math.floor(height * math.sqrt(1 - lam0)), math.floor(width * math.sqrt(1 - lam0))
        mask = torch.ones(height, width)
        for row in range(height):
            for col in range(width):
                if cy - h // 2 <= row < cy + h // 2 and cx - w // 2 <= col < cx + w // 2: mask[row, col] = 0
        assert mixed[0, 0].equal(mask)


def test_cutmix_mean_share():
    lams = [V.cutmix_box(32, 32, 0.75, g).lam for g in [seeded(4)] for _ in range(4_000)]
    assert abs(np.mean(lams) - 207 / 256) < 4.5 * np.std(lams) / 4_000 ** 0.5


def test_rescaled_box_keeps_the_share_where_it_can():
    box = V.box_around(224, 224, 0.75, 223, 223)
    small = V.rescale_box(box, (224, 224), (160, 160))
    assert (small.top, small.bottom) == (119, 160) and abs(small.lam - box.lam) < 0.01
    assert V.rescale_box(box, (224, 224), (224, 224)) == box


def test_mixtures_leave_their_inputs_alone():
    a, b = noise(4, 3, 8, 8), noise(4, 3, 8, 8, seed=1)
    copies = a.clone(), b.clone()
    V.cutmix(a, b, 0.3, seeded()), V.mixup(a, b, torch.rand(4))
    assert a.equal(copies[0]) and b.equal(copies[1])
    lam = torch.tensor([0.0, 1.0, 0.25, 0.5])
    naive = torch.stack([w * x + (1 - w) * y for w, x, y in zip(lam, a, b)])
    assert_close(V.mixup(a, b, lam), naive)


# ---------------------------------------------------------------- recipes

def chain(recipe, x, g):
    "The recipe as a chain of single views"
    x = V.to_float(x)
    if recipe.crop: x = (V.random_crop(x, recipe.crop[1], g, recipe.pad_mode) if recipe.crop[0] == "pad" else
                         V.random_resized_crop(x, recipe.size or tuple(x.shape[2:]), recipe.crop[1], generator=g))
    if recipe.flip: x = V.random_flip(x, 0.5, g)
    if recipe.affine: x = V.random_affine(x, *recipe.affine, g)
    if recipe.gray: x = V.random_gray(x, recipe.gray, g)
    if recipe.jitter: x = V.color_jitter(x, *recipe.jitter, recipe.jitter_p, g)
    x = V.standardize(x, recipe.mean, recipe.std)
    return V.cutout(x, recipe.cutout, generator=g) if recipe.cutout else x


RECIPES = {name: V.augment_for(name) for name in V.PRESETS} | {"strong": STRONG, "resized": RESIZED, "nothing": V.Augment(),
           "zeros": V.Augment(("pad", 4), pad_mode="zeros"), "flip": V.Augment(flip=True)}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_equals_chain(name):
    x = (noise(32, 3, 20, 18) * 255).byte()
    assert_close(RECIPES[name](x, seeded(9)), chain(RECIPES[name], x, seeded(9)), atol=2e-5, rtol=0)
    assert_close(RECIPES[name](V.to_float(x), seeded(9)), RECIPES[name](x, seeded(9)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_prints_pickles_and_compares(name):
    recipe = RECIPES[name]
    assert eval(repr(recipe), {"Augment": V.Augment}) == recipe == pickle.loads(pickle.dumps(recipe))


PHOTOGRAPHS = V.Augment(crop=("resized", (0.2, 1.0)), flip=True, gray=0.2, jitter=(0.4, 0.4, 0.4, 0.1),
                        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_presets_are_found_by_the_family_of_the_data():
    assert V.augment_for("digits-few:10") == V.Augment(
        affine=(12.0, 0.1, (0.85, 1.15)), jitter=(0.3, 0.3, 0, 0), mean=(0.305, 0.305, 0.305), std=(0.318, 0.318, 0.318))
    assert V.augment_for("cifar100-lt:100") == V.Augment(
        crop=("pad", 4), flip=True, jitter=(0.4, 0.4, 0.4, 0.1), cutout=8, mean=(0.5071, 0.4866, 0.4409), std=(0.2673, 0.2564, 0.2762))
    assert V.augment_for("cifar10") == V.augment_for("cifar10-lt:100") != V.augment_for("cifar100-few:50")
    for name in ("tiny-imagenet-50", "cub200-10", "imagenet-lt", "vipriors"): assert V.augment_for(name) == PHOTOGRAPHS


@pytest.mark.parametrize("name", ["digits-of-plates", "shapes2", "cifar10.1", "cifar1000", "my-own"])
def test_a_name_that_begins_like_a_known_one_is_no_known_set(name):
    assert V.augment_for(name) == PHOTOGRAPHS


def test_views_are_found_for_a_profile_and_for_a_set():
    assert V.augment_for(profile_of("shapes-fine")) == V.augment_for("shapes") == V.augment_for(make_shapes(2))
    unlike = replace(profile_of("cifar10"), mirror=False, mean=(0.1, 0.2, 0.3))
    assert V.augment_for(unlike) == replace(V.augment_for("cifar10"), flip=False, mean=(0.1, 0.2, 0.3))
