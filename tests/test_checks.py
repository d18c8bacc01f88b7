"The argument checks: one sentence per rule, numbers of every kind, no look at values that would cost a wait or a graph."
import inspect
import math

import numpy as np
import pytest
import torch
from torch import tensor

from arcbook import _checks as C

z, y = torch.ones(3, 4), tensor([0, 1, 2])
PROBS = z.softmax(1)

REFUSED = [
    (lambda: C.check_option("form", "L_in", ("in", "out")), "form must be one of in, out, got 'L_in'"),
    (lambda: C.check_option("form", None, ("in", 3)), "form must be one of in, 3, got None"),
    (lambda: C.check_reduction("avg"), """reduction must be "mean", "sum" or "none", got 'avg'"""),
    (lambda: C.check_number("alpha", -1, "finite and >= 0"), "alpha must be finite and >= 0, got -1"),
    (lambda: C.check_number("alpha", "0.1", "finite and >= 0"), "alpha must be finite and >= 0, got '0.1'"),
    (lambda: C.check_number("alpha", np.float64(-0.5), "finite and >= 0"), "alpha must be finite and >= 0, got -0.5"),
    (lambda: C.check_number("alpha", tensor(-0.5), "finite and >= 0"), "alpha must be finite and >= 0, got -0.5"),
    (lambda: C.check_number("alpha", z, "finite and >= 0"), "alpha must be one number without gradient, got torch.float32 [3, 4]"),
    (lambda: C.check_number("alpha", tensor(0.5, requires_grad=True), "finite"), "alpha must be one number without gradient, got torch.float32 []"),
    (lambda: C.check_share("p", 1.5), "p must be in [0, 1], got 1.5"),
    (lambda: C.check_temperature(0), "temperature must be > 0 and finite, got 0"),
    (lambda: C.check_temperature(math.inf), "temperature must be > 0 and finite, got inf"),
    (lambda: C.check_whole("padding", -1, 0), "padding must be >= 0, got -1"),
    (lambda: C.check_whole("epochs", 2.5), "epochs must be a whole number >= 1, got 2.5"),
    (lambda: C.check_whole("seed", 2**32, 0, 2**32 - 1), "seed must be in 0..4294967295, got 4294967296"),
    (lambda: C.check_count("k", 0), "k must be an integer > 0, got 0"),
    (lambda: C.check_count("k", True), "k must be an integer > 0, got True"),
    (lambda: C.check_count("dim", 9, 8), "dim must be an integer in 1..8, got 9"),
    (lambda: C.check_lam([0.5], 1), "lam must be a number or a tensor [1], got list"),
    (lambda: C.check_lam(-0.1, 1), "lam must be in [0, 1], got -0.1"),
    (lambda: C.check_lam(torch.rand(2), 3), "lam must be a number or [3], got [2]"),
    (lambda: C.check_lam(tensor([0.5, 3.0]), 2), "lam must be in [0, 1], got 3"),
    (lambda: C.check_tensor("x", None, ("B", 3)), "x must be a tensor [B, 3], got NoneType"),
    (lambda: C.check_tensor("x", z.to(torch.complex64), ("B", 4), "real numbers"), "x must be real numbers, got torch.complex64"),
    (lambda: C.check_tensor("x", y > 1, (3,), "integers"), "x must be integers, got torch.bool"),
    (lambda: C.check_tensor("x", z, ("B", 3)), "x must have shape [B, 3], got [3, 4]"),
    (lambda: C.check_finite("x", z / 0), "x must be finite, got NaN or inf"),
    (lambda: C.check_finite("x", z * math.nan), "x must be finite, got NaN or inf"),
    (lambda: C.check_range("x", y - 1, 0, 2), "x must lie in 0..2, got -1..1"),
    (lambda: C.check_embeddings("z1", z, 5, 3), "z1 must have shape [3, 5], got [3, 4]"),
    (lambda: C.check_embeddings("z1", z.long()), "z1 must be floating point, got torch.int64"),
    (lambda: C.check_labels("labels", y, 2), "labels must have shape [2], got [3]"),
    (lambda: C.check_labels("labels", y, 3, 2), "labels must lie in 0..1, got 0..2"),
    (lambda: C.check_stored("keys", z.long(), ("K", 4)), "keys must be a floating tensor [K, 4], got torch.int64 [3, 4]"),
    (lambda: C.check_stored("keys", [1.0], ("K", 4)), "keys must be a floating tensor [K, 4], got list"),
    (lambda: C.check_device(z, keys=z.to("meta")), "keys must be on cpu with the queries, got meta"),
    (lambda: C.check_logits("logits", z * math.inf), "logits must be finite or -inf, got NaN or inf"),
    (lambda: C.check_scores(z, z[:2]), "target must have the shape of logits [3, 4], got [2, 4]"),
    (lambda: C.check_scores(z, -z), "target must be finite and >= 0, got NaN, inf or a negative share"),
    (lambda: C.check_distributions("target", z), "target must hold class distributions: rows >= 0 that sum to 1, got NaN or others"),
    (lambda: C.check_distributions("target", PROBS * math.nan, or_zeros=True), "target must hold class distributions"),
    (lambda: C.check_images(z), "images must be a tensor [B, C, H, W], got [3, 4]"),
    (lambda: C.check_images(torch.zeros(1, 1, 2, 2), channels=3), "images must have 3 channels, got 1"),
    (lambda: C.check_images(torch.zeros(1, 1, 2, 2).byte(), floating=True), "images must be floating point in 0..1 (see to_float), got torch.uint8"),
    (lambda: C.check_pixels(height=3, width=0), "width must be >= 1, got 0"),
    (lambda: C.as_sides("size", (3, 0)), "size must be >= 1 in both directions, got (3, 0)"),
    (lambda: C.as_sides("size", 2.5), "size must be >= 1 in both directions, got 2.5"),
    (lambda: C.check_interval("scale", (0.5, 0.2), 1), "scale must be (low, high) with 0 < low <= high <= 1, got (0.5, 0.2)"),
    (lambda: C.as_labels([0.5]), "labels must be whole numbers of shape [N], got float64 [1]"),
    (lambda: C.as_labels([-1]), "labels must be >= 0, got -1"),
    (lambda: C.as_counts([1.0]), "counts must be whole numbers of shape [C], got torch.float32 [1]"),
    (lambda: C.as_counts([0, 0]), "counts must be >= 0 and one of them > 0, got [0, 0]"),
]


@pytest.mark.parametrize("call, sentence", REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_refusal_says_what_is_needed_and_what_it_got(call, sentence):
    with pytest.raises(ValueError) as error: call()
    assert sentence in str(error.value)


def test_every_check_has_a_refusal():
    used = {name for call, _ in REFUSED for name in call.__code__.co_names}
    checks = {name for name, f in inspect.getmembers(C, inspect.isfunction) if name.startswith(("check_", "as_"))}
    assert checks <= used, checks - used


@pytest.mark.parametrize("wanted", C.LIMITS)
@pytest.mark.parametrize("bad", [math.nan, None, "1", [1.0], 1j])
def test_what_is_no_number_is_within_no_limit(wanted, bad):
    with pytest.raises(ValueError, match="alpha must be"): C.check_number("alpha", bad, wanted)




@pytest.mark.parametrize("wanted", C.LIMITS)
def test_a_limit_is_what_its_words_say(wanted):
    low, high = -math.inf, math.inf
    text = wanted.removeprefix("in ").replace("finite and ", "").replace(" and finite", "")
    finite = "finite" in wanted
    for x in (low, -1e30, -1, -1e-9, 0, 1e-9, 0.3, 0.5, 0.7, 1, 1.5, 1e30, high):
        if text.startswith(("[", "(")):
            a, b = (float(v) for v in text[1:-1].split(","))
            sound = (x >= a if text[0] == "[" else x > a) and (x <= b if text[-1] == "]" else x < b)
        elif text == "finite": sound = True
        else: sound = {">": x > 0, ">=": x >= 0, "<": x < 0}[text.split()[0]]
        assert bool(C.LIMITS[wanted](x)) == (sound and not (finite and abs(x) == high)), x


@pytest.mark.parametrize("number", [0.25, np.float64(0.25), np.float32(0.25), np.float16(0.25), tensor(0.25), tensor(0.25, dtype=torch.bfloat16)])
def test_numbers_come_back_as_python_s_own(number):
    for value in (C.check_share("p", number), C.check_temperature(number), C.check_number("a", number, "finite"), C.check_lam(np.float32(0.25), 3)):
        assert type(value) is float and value == 0.25


@pytest.mark.parametrize("number", [1, np.int64(1), np.uint8(1), tensor(1)])
def test_whole_numbers_are_numbers_too(number):
    assert C.check_number("a", number, ">= 0") == 1 and type(C.check_number("a", number, ">= 0")) is int
    if not isinstance(number, torch.Tensor): assert type(C.check_count("k", number)) is type(C.check_whole("k", number)) is int


GOOD = {
    "embeddings": lambda z, y: C.check_embeddings("z", z, z.shape[1], z.shape[0]), "labels": lambda z, y: C.check_labels("y", y, len(y), 3),
    "stored": lambda z, y: C.check_stored("z", z, ("K", 4)), "device": lambda z, y: C.check_device(z, y=y, no=None),
    "scores": lambda z, y: C.check_scores(z, z), "distributions": lambda z, y: C.check_distributions("z", z / z.sum(1, keepdim=True)),
    "lam": lambda z, y: C.check_lam(z[:, 0], len(z)), "temperature": lambda z, y: C.check_temperature(z[0, 0]),
    "number": lambda z, y: C.check_share("p", 0.5), "finite": lambda z, y: C.check_finite("z", z), "range": lambda z, y: C.check_range("y", y, 0, 2),
    "images": lambda z, y: C.check_images(z[:, :, None, None].expand(-1, -1, 2, 2), True, 4)}


@pytest.mark.parametrize("check", GOOD.values(), ids=GOOD)
def test_no_value_is_read_where_that_is_not_free(check):
    "A tensor on the meta device has no values: reading one raises."
    check(z, y)
    check(z.to("meta"), y.to("meta"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, y: (check(z, y), z + 1)[1], fullgraph=True, backend="eager")
    for n in (3, 5, 7): compiled(torch.ones(n, 4), torch.arange(n) % 3)          # sizes become symbols: still one graph


def test_distributions_in_half_precision_and_rows_of_zeros():
    for dtype in (torch.float16, torch.bfloat16): C.check_distributions("p", torch.rand(50, 30).softmax(1).to(dtype))
    C.check_distributions("p", torch.cat([PROBS, torch.zeros(1, 4)]), or_zeros=True)
    C.check_distributions("p", torch.zeros(0, 4))
    with pytest.raises(ValueError, match="p must hold"): C.check_distributions("p", PROBS + 0.002)
    C.check_distributions("p", PROBS + 0.002, slack=2e-2)


def test_empty_tensors_have_nothing_to_look_at():
    C.check_embeddings("z", torch.zeros(0, 4))
    C.check_labels("y", torch.zeros(0, dtype=torch.long), 0, 5)
    C.check_scores(torch.zeros(0, 4), torch.zeros(0, 4))


def test_sides_of_squares_and_rectangles():
    assert C.as_sides("size", np.int64(8)) == (8, 8) and C.as_sides("size", [3, 5]) == C.as_sides("size", torch.Size([3, 5])) == (3, 5)
