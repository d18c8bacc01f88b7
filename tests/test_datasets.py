"Prepared sets and their faults, the digits' split, and what the generated shapes promise"
import importlib.util, json, math, os, subprocess, sys, threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from arcbook import datasets, glyphs, images as container
from arcbook.datasets import DATASETS, ImageSet, available, data_root, load, make_shapes, twelve, twelve_embeddings
from arcbook.profiles import PROFILES, profile_of
from arcbook.sampling import few_per_class_indices, long_tail_counts, long_tail_indices


@pytest.fixture
def root(tmp_path):
    "A prepared set `mini`: 3 classes of 20 training and 5 test images, 8 x 6 pixels"
    write(tmp_path, "mini", "train", 20)
    write(tmp_path, "mini", "test", 5)
    return tmp_path


def write(root, name, split, per_class, classes=("a", "b", "c")):
    folder = root / name / split
    folder.mkdir(parents=True)
    stream, labels = np.random.RandomState(per_class), np.repeat(np.arange(len(classes)), per_class)
    np.save(folder / "images.npy", stream.randint(0, 256, (len(labels), 8, 6, 3)).astype(np.uint8))
    np.save(folder / "labels.npy", labels.astype(np.int64))
    (root / name / "classes.json").write_text(json.dumps(classes))


def refusal(kind, call, *words):
    with pytest.raises(kind) as error: call()
    text = str(error.value)
    assert "\n" not in text and all(str(word) in text for word in words), text


# prepared sets ----------------------------------------------------------------------------------

def test_prepared_set(root):
    train = load("mini", "train", root)
    pixels = np.load(root / "mini" / "train" / "images.npy")
    assert train.images.shape == (60, 3, 8, 6) and train.images.dtype == torch.uint8
    assert train.classes == ["a", "b", "c"]
    assert np.array_equal(train.images.permute(0, 2, 3, 1), pixels) and train.counts().tolist() == [20, 20, 20]
    images, labels = train.batch(torch.tensor([[59, 0], [1, 59]]))
    assert images.shape == (2, 2, 3, 8, 6) and images.is_contiguous() and labels.tolist() == [[2, 0], [0, 2]]
    assert np.array_equal(images[0, 0].permute(1, 2, 0), pixels[59])


def test_endings_cut_the_training_split_only(root):
    assert load("mini-few:4", "train", root).counts().tolist() == [4, 4, 4]
    assert load("mini-lt:10", "train", root).counts().tolist() == long_tail_counts(3, 20, 10).tolist() == [20, 6, 2]
    for name in ("mini-few:4", "mini-lt:10"):
        assert load(name, "test", root).digest() == load("mini", "test", root).digest()
        assert load(name, "train", root).name == name
    whole = load("mini", "train", root)
    assert load("mini-few:4", "train", root).digest() == whole.subset(few_per_class_indices(whole.labels, 4)).digest()


SEEDED = ("digits-few:10", "digits-lt:5", "shapes-few:7", "shapes-lt:100", "mini-few:4", "mini-lt:10")


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_draws_other_images(root, name):
    "Seed 0 is the draw that the name means; others differ, keep the name and the counts, and leave the test split alone"
    base, _, form = name.rpartition("-")
    kind, value = form.split(":")
    whole = load(base, "train", root)
    draw = few_per_class_indices if kind == "few" else long_tail_indices
    for seed in (0, 1, 7):
        data = load(name, "train", root, seed=seed)
        wanted = whole.subset(draw(whole.labels, float(value) if kind == "lt" else int(value), seed))
        assert data.digest() == wanted.digest() and data.name == name and data.counts().tolist() == wanted.counts().tolist()
        assert load(name, "test", root, seed=seed).digest() == load(base, "test", root).digest()
    assert load(name, "train", root, 0).digest() == load(name, "train", root).digest()
    digests = {load(name, "train", root, seed=seed).digest() for seed in range(4)}
    assert len(digests) == 4


# what recorded runs were trained on
DRAWN = {"digits-few:10": "c9af32d31b09", "digits-few:40": "d7b1e5c9a36b", "digits-lt:20": "c1e3dab67e5d", "shapes": "1fff661a2a3a",
         "shapes-few:200": "7a89d0e4dd0e", "shapes-fine-few:5": "f4e175dd440a", "shapes-lt:20": "4093ba39ccb7",
         "shapes-lt:100": "015601fda5c8", "cifar100-few:50": "1a6cbd45e661", "cifar100-lt:100": "cd1856f45dc2"}


@pytest.mark.parametrize("name", DRAWN)
def test_seed_0_gives_the_images_of_the_records(name):
    if name.startswith("cifar"): real("cifar100")
    assert load(name).digest() == DRAWN[name]


def test_a_set_without_a_form_has_nothing_to_draw(root):
    assert load("mini", "train", root, seed=5).digest() == load("mini", "train", root).digest()
    refusal(ValueError, lambda: load("mini-few:4", "train", root, seed=-1), "'mini-few:4'", "seed", -1)


def test_images_are_mapped_and_the_file_is_safe(root):
    path = root / "mini" / "train" / "images.npy"
    before = path.read_bytes()
    train = load("mini", "train", root)
    assert isinstance(datasets._open_array(path, np.uint8, 4), np.memmap)
    train.images.zero_(); train.labels.zero_()
    del train
    assert path.read_bytes() == before


def test_root(root, monkeypatch):
    monkeypatch.setenv("ARCBOOK_DATA", str(root))
    assert data_root() == root and len(load("mini")) == 60
    assert data_root("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("ARCBOOK_DATA")
    assert data_root().name == "arcbook" and "~" not in str(data_root())


def test_available(root):
    write(root, "cifar10", "train", 2)
    rows = {row.name: row for row in available(root)}
    assert set(DATASETS) | {"mini"} == set(rows)
    assert {name for name, row in rows.items() if row.found} == {"digits", "shapes", "shapes-fine", "mini", "cifar10"}
    assert rows["mini"].where == str(root / "mini")
    assert {row.name for row in available(root / "nothing") if row.found} == {"digits", "shapes", "shapes-fine"}


def test_names(root):
    refusal(FileNotFoundError, lambda: load("cifar100", "train", root), root / "cifar100", f"arcbook data cifar100 --root {root}")
    refusal(ValueError, lambda: load("cifar1000", "train", root), "cifar1000", "cifar100", root)
    refusal(ValueError, lambda: load("mini", "val", root), "val", "train, test", root)
    refusal(ValueError, lambda: load("digits", "dev"), "split must be train, val or test for 'digits', got 'dev'")
    refusal(ValueError, lambda: load("mini-few:21", "train", root), "per_class must be at most 20", "class 0", 21)
    refusal(ValueError, lambda: load("mini-lt:21", "train", root), "imbalance must be between 1 and 20")
    for name in "mini-few: mini-few:x mini-few:2.5 mini-lt:-1 mini-few:2-lt:3 ../mini /etc . a/b".split() + [""]:
        refusal(ValueError, lambda: load(name, "train", root), repr(name))
    for split in ("../train", "", ".", "train/"):
        refusal(ValueError, lambda: load("mini", split, root), repr(split))


def test_any_folder_name_will_do(root):
    for name in ("my set", "日本", "a.b", "x-few", "a,b"):
        write(root, name, "train", 2)
        assert load(name, "train", root).name == name and load(f"{name}-few:1", "train", root).counts().tolist() == [1] * 3
    for name in ("a-lt:3", ".hidden", "-x"): write(root, name, "train", 2)      # cannot be asked for, so they are not offered
    assert {row.name for row in available(root)} == set(DATASETS) | {"mini", "my set", "日本", "a.b", "x-few", "a,b"}


def test_names_that_are_nearly_right(root):
    refusal(ValueError, lambda: load("CIFAR-100", "train", root), "(did you mean 'cifar100'?)")
    refusal(ValueError, lambda: load("minni", "train", root), "(did you mean 'mini'?)")
    refusal(ValueError, lambda: load("mini-few:５", "train", root), "name must be that of a data set")


def test_a_folder_without_a_set(root):
    (root / "half").mkdir()
    refusal(FileNotFoundError, lambda: load("half", "train", root), f"there is nothing in {root / 'half'}")
    (root / "half" / "notes").write_text("none yet")
    refusal(FileNotFoundError, lambda: load("half", "train", root), root / "half", "holds no prepared set")
    write(root, "other", "train", 2)
    (root / "other" / "train" / "images.npy").unlink()
    refusal(FileNotFoundError, lambda: load("other", "train", root), root / "other" / "train" / "images.npy", "is missing")
    np.savez(open(root / "mini" / "train" / "images.npy", "wb"), a=np.zeros(3))
    assert {row.name: row.state for row in available(root)}["mini"] == "damaged"


def test_the_repairing_command_can_be_pasted(root):
    refusal(FileNotFoundError, lambda: load("cifar10", "train", root / "my data"), f"run `arcbook data cifar10 --root '{root / 'my data'}'` to get it")


FAULTS = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-7]), "no header": lambda f: f.write_bytes(b"\x93NUMPY"),
    "empty": lambda f: f.write_bytes(b""), "text": lambda f: f.write_text("404: Not Found"),
    "pickle": lambda f: np.save(f, np.array([{}, {}], dtype=object), allow_pickle=True),
    "archive": lambda f: np.savez(open(f, "wb"), a=np.zeros(3)),
    "floats": lambda f: np.save(f, np.zeros((60, 8, 6, 3), np.float32)),
    "bytes": lambda f: np.save(f, np.zeros((60, 1), np.int8)), "swapped": lambda f: np.save(f, np.zeros(60, ">i8")),
    "scalar": lambda f: np.save(f, np.uint8(3)), "folder": lambda f: (f.unlink(), f.mkdir())}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", ["images.npy", "labels.npy"])
def test_damaged_arrays(root, fault, file):
    path = root / "mini" / "train" / file
    FAULTS[fault](path)
    refusal((ValueError, FileNotFoundError), lambda: load("mini", "train", root), path)
    assert len(load("mini", "test", root)) == 15


def test_missing_files(root):
    (root / "mini" / "train" / "labels.npy").unlink()
    refusal(FileNotFoundError, lambda: load("mini", "train", root), root / "mini" / "train" / "labels.npy")
    (root / "mini" / "classes.json").unlink()
    refusal(FileNotFoundError, lambda: load("mini", "test", root), root / "mini" / "classes.json")


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", '"abc"', "[1, 2]", "[" * 5000])
def test_damaged_classes(root, text):
    (root / "mini" / "classes.json").write_text(text)
    refusal(ValueError, lambda: load("mini", "train", root), root / "mini" / "classes.json")


def test_wrong_contents(root):
    folder = root / "mini" / "train"
    np.save(folder / "labels.npy", np.arange(60))
    refusal(ValueError, lambda: load("mini", "train", root), folder, "labels must be in 0..2 (3 classes), got 0..59")
    np.save(folder / "labels.npy", np.zeros(59, np.int64))
    refusal(ValueError, lambda: load("mini", "train", root), folder, "labels must be as many as the 60 images, got 59")
    np.save(folder / "images.npy", np.zeros((60, 3, 8, 8), np.uint8))
    refusal(ValueError, lambda: load("mini", "train", root), folder / "images.npy", "[N, H, W, 3]", "[60, 3, 8, 8]")
    np.save(folder / "images.npy", np.zeros((0, 8, 8, 3), np.uint8))
    refusal(ValueError, lambda: load("mini", "train", root), folder)


def test_random_damage_is_told_or_harmless(root):
    path, stream = root / "mini" / "train" / "images.npy", np.random.RandomState(0)
    whole = path.read_bytes()
    for _ in range(150):   # bytes of the header, where damage is not just another picture
        broken = bytearray(whole)
        for place in stream.randint(0, 128, stream.randint(1, 4)): broken[place] = stream.randint(256)
        path.write_bytes(bytes(broken))
        try: assert load("mini", "train", root).images.shape[1] == 3
        except ValueError as error: assert str(root) in str(error)


# subsets, batches, placement --------------------------------------------------------------------

PICKS = {"numbers": torch.tensor([59, 3, 3, 20]), "mask": torch.arange(60) % 7 == 0, "slice": slice(5, 50, 9), "list": [1, 0]}


@pytest.mark.parametrize("pick", PICKS)
def test_a_subset_of_a_mapped_set_reads_nothing(root, pick, monkeypatch):
    mapped, pick, read = load("mini", "train", root), PICKS[pick], []
    eager = ImageSet(mapped.images.clone(), mapped.labels, mapped.classes)
    real = container._gather
    monkeypatch.setattr(container, "_gather", lambda stored, i: read.append(len(i)) or real(stored, i))
    lazy, same = mapped.subset(pick), eager.subset(pick)
    assert not read and len(lazy) == len(same) and lazy.counts().tolist() == same.counts().tolist()
    images, labels = lazy.batch([1, 0])
    assert read == [2] and torch.equal(images, same.images[[1, 0]]) and torch.equal(labels, same.labels[[1, 0]])
    again = lazy.subset([1])
    assert again.digest() == same.subset([1]).digest() and lazy.digest() == same.digest()
    assert lazy.where[1] is not None and torch.equal(lazy.images, same.images) and lazy.where[1] is None
    assert lazy.digest() == same.digest() and torch.equal(lazy.batch([1, 0])[0], images)


def test_subsets_of_mapped_sets_refuse_what_others_refuse(root):
    mapped = load("mini", "train", root)
    refusal(ValueError, lambda: mapped.subset(mapped.labels == 7), "images must be at least one image, got 0")
    with pytest.raises(IndexError): mapped.subset([60])
    with pytest.raises(IndexError): mapped.subset([5]).batch([1])


def test_a_large_file_is_not_read_to_cut_a_few(tmp_path):
    folder = tmp_path / "large" / "train"
    folder.mkdir(parents=True)
    shape = (20_000, 100, 100, 3)                    # 600 MB of zeros that take no room on the disk
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    np.save(folder / "labels.npy", np.arange(shape[0]) % 4)
    (tmp_path / "large" / "classes.json").write_text('["a", "b", "c", "d"]')
    used = lambda: sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(("RssAnon", "RssFile")))
    if not Path("/proc/self/status").exists(): pytest.skip("needs Linux")
    before, few = used(), load("large-few:40", "train", tmp_path)
    for images, _ in few.batches(torch.randint(160, (20, 32))): assert images.shape == (32, 3, 100, 100)
    assert used() - before < 60_000, "kB for 160 images of 30 kB"


def layouts(root):
    mapped = load("mini", "train", root)
    nhwc = ImageSet(mapped.images.clone(), mapped.labels, mapped.classes)
    odd = torch.empty(60, 8, 3, 6, dtype=torch.uint8).transpose(1, 2).copy_(nhwc.images)
    return {"mapped": mapped, "rows": nhwc, "planes": replace(nhwc, images=nhwc.images.contiguous()),
            "odd": replace(nhwc, images=odd), "subset": mapped.subset(torch.arange(60)),
            "sent": container._with(nhwc, feeds=torch.device("cpu")), "sent from file": container._with(mapped, feeds=torch.device("cpu"))}


@pytest.mark.parametrize("layout", ["mapped", "rows", "planes", "odd", "subset", "sent", "sent from file"])
def test_batches_are_the_same_wherever_images_lie(root, layout):
    data, reference = layouts(root)[layout], layouts(root)["rows"]
    for order in (torch.randint(60, (7, 5)), torch.randint(60, (3, 2, 4)), torch.randint(60, (0, 5))):
        batches = list(data.batches(order, seed=3))
        assert len(batches) == len(order)
        for row, (images, labels) in zip(order, batches):
            assert images.dtype == torch.uint8 and images.is_contiguous()
            assert torch.equal(images, reference.images[row]) and torch.equal(labels, reference.labels[row])
    mask = reference.labels == 1
    assert torch.equal(data.batch(mask)[0], reference.images[mask])
    assert torch.equal(data.batch(torch.tensor(7))[0], reference.images[7])
    with pytest.raises(IndexError): data.batch([60])


def test_the_reader_ends_with_its_iterator(root):
    data, threads = load("mini", "train", root), threading.active_count()
    batches = data.batches(torch.randint(60, (50, 5)))
    next(batches)
    assert threading.active_count() == threads + 1
    batches.close()
    assert threading.active_count() == threads
    order, got = torch.tensor([[1, 2], [3, 4], [5, 60], [6, 7]]), []
    with pytest.raises(IndexError): got.extend(labels for _, labels in data.batches(order))
    assert threading.active_count() == threads


def test_placement(root, monkeypatch):
    "The device `meta` stands in for a GPU: it holds shapes, no numbers"
    whole, mapped = layouts(root)["rows"], load("mini", "train", root)
    monkeypatch.setattr(container, "_check", lambda data: None)
    assert whole.place("cpu").images.device.type == "cpu" and mapped.place("cpu").where[0] is mapped.where[0]
    size = 60 * 3 * 8 * 6
    monkeypatch.setattr(container, "_free_memory", lambda device: size / container.SHARE)
    for data in (whole, mapped, mapped.subset(slice(0, 30))):
        assert data.place("meta").images.device.type == "meta" and data.place("meta").feeds is None
    monkeypatch.setattr(container, "_free_memory", lambda device: size / container.SHARE - 1)
    for data in (whole, mapped):
        sent = data.place("meta")
        assert sent.where[0].device.type == "cpu" and sent.feeds.type == "meta" and sent.digest() == data.digest()
        for images, labels in [sent.batch([1, 2]), *sent.batches(torch.arange(6).view(2, 3))]:
            assert images.device.type == labels.device.type == "meta"
        assert sent.to("cpu").feeds is None


# photographs and the registry -------------------------------------------------------------------

@pytest.fixture
def photographs(tmp_path):
    "A set `birds` of 3 classes with the lists train_10 and test"
    from PIL import Image
    stream = np.random.RandomState(0)
    (tmp_path / "birds" / "images" / "a b").mkdir(parents=True)
    lines = []
    for i in range(12):
        pixels = stream.randint(0, 256, (30 + i, 50 - i, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "birds" / "images" / "a b" / f"{i}.png")
        lines.append(f"a b/{i}.png {i % 3}")
    for name, part in {"train_10": lines[:9], "train_1i": lines[:3], "test": lines[9:]}.items():
        (tmp_path / "birds" / f"{name}.txt").write_text("\r\n".join(part))
    (tmp_path / "birds" / "classes.json").write_text('["crow", "wren", "rook"]')
    return tmp_path


def test_photographs_load_by_name_and_by_list(photographs):
    data = load("birds-10", "train", photographs, size=20, workers=0)
    assert len(data) == 9 and data.name == "birds-10" and data.batch([0, 8])[0].shape == (2, 3, 20, 20)
    assert data.counts().tolist() == [3, 3, 3] and len(load("birds-10", "test", photographs)) == 3
    assert len(load("birds-1i", "train", photographs)) == 3 == len(load("birds", "train_1i", photographs))
    few = load("birds-10-few:2", "train", photographs)
    assert few.counts().tolist() == [2, 2, 2] and few.name == "birds-10-few:2"
    draws = [load("birds-10-few:2", "train", photographs, seed=seed) for seed in range(3)]
    assert draws[0].digest() == few.digest() and len({tuple(draw.paths.tolist()) for draw in draws}) > 1
    assert {draw.name for draw in draws} == {"birds-10-few:2"} and {draw.counts().max().item() for draw in draws} == {2}
    rows = {row.name: row for row in available(photographs)}
    assert rows["birds"].found and not rows["cub200"].found
    refusal(ValueError, lambda: load("birds-7", "train", photographs), "birds", "train_7", "train_10")
    refusal(ValueError, lambda: load("digits", size=20), "'digits' holds no photographs: it takes no size")
    refusal(FileNotFoundError, lambda: load("cub200-10", "train", photographs), "'cub200-10'", f"arcbook data cub200 --root {photographs}")


@pytest.mark.parametrize("file, content", [("train_10.txt", b""), ("train_10.txt", b"a b/0.png\n"), ("classes.json", b"[")])
def test_damaged_lists_name_the_repair(photographs, file, content):
    (photographs / "birds").rename(photographs / "cub200")
    (photographs / "cub200" / file).write_bytes(content)
    refusal(ValueError, lambda: load("cub200-10", "train", photographs), photographs / "cub200" / file,
            f"run `arcbook data cub200 --root {photographs}` to restore it")


def test_every_set_on_disk_has_a_recipe():
    from arcbook.download import recipes
    assert {name for name, source in DATASETS.items() if source.kind == "on disk"} == set(recipes())


def test_profiles_say_what_the_sets_are():
    from arcbook.download import recipes
    known = recipes()
    assert set(DATASETS) <= set(PROFILES)
    for name, source in DATASETS.items():
        profile = profile_of(name)
        if source.kind == "built in":
            data = load(name)
            assert data.shape == (3, profile.side, profile.side)
            assert (len(data), data.num_classes) == (profile.num_images, profile.num_classes)
        else:
            splits = known[name].splits
            assert profile.num_images == splits.get("train", splits.get("train_100")), name
            assert (source.read is datasets._read_photographs) == (profile.side is None), name


def test_messages_name_the_set_and_the_repair(root, monkeypatch):
    write(root, "cifar10", "train", 3)
    path = root / "cifar10" / "train" / "images.npy"
    path.write_bytes(path.read_bytes()[:-9])
    refusal(ValueError, lambda: load("cifar10", "train", root), path, "is damaged", f"run `arcbook data cifar10 --root {root}` to restore it")
    monkeypatch.setenv("ARCBOOK_DATA", str(root))
    refusal(ValueError, lambda: load("cifar10-few:1"), path, "run `arcbook data cifar10` to restore it")
    assert {row.name: row.state for row in available()}["cifar10"] == "damaged"
    refusal(ValueError, lambda: load("mini-few:0"), "'mini-few:0': per_class must be >= 1, got 0")
    refusal(ValueError, lambda: load("mini-lt:30"), "'mini-lt:30': imbalance must be between 1 and 20", "smallest class")


def real(name):
    if not (data_root() / name).is_dir(): pytest.skip(f"{name} is not under ARCBOOK_DATA")


def test_cifar100():
    real("cifar100")
    train, test = load("cifar100", "train"), load("cifar100", "test")
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert set(train.counts().tolist()) == {500} and set(test.counts().tolist()) == {100}
    assert train.classes == test.classes and len(set(train.classes)) == 100 and "crab" in train.classes
    pixels = train.images.permute(0, 2, 3, 1).numpy().reshape(-1, 3)
    mean = pixels.mean(0, dtype=np.float64) / 255
    square = sum(np.square(part, dtype=np.float32).sum(0, dtype=np.float64) for part in np.array_split(pixels, 50)) / 255 ** 2
    assert np.allclose(mean, (0.5071, 0.4866, 0.4409), atol=5e-5)
    assert np.allclose(np.sqrt(square / len(pixels) - mean ** 2), (0.2673, 0.2564, 0.2762), atol=5e-5)
    assert len(load("cifar100-lt:100")) == 10_847 and load("cifar100-few:50").counts().tolist() == [50] * 100


def test_cub50():
    real("cub50")
    train, test = load("cub50-10", "train", size=64, workers=0), load("cub50", "test")
    assert len(train) == 150 and len(test) == 1389 and train.counts().tolist() == [3] * 50 and len(load("cub50-1i")) == 50
    assert train.classes == test.classes and "albatross" in train.classes[0].lower().replace("_", " ")
    assert train.batch([0, 149])[0].shape == (2, 3, 64, 64)


def test_tiny_imagenet_50():
    real("tiny-imagenet-50")
    train, test = load("tiny-imagenet-50"), load("tiny-imagenet-50", "test")
    assert train.counts().tolist() == test.counts().tolist() == [50] * 200 and train.shape == (3, 64, 64)


# benchmark --------------------------------------------------------------------------------------

def test_the_loader_benchmark_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("loaders", Path(__file__).parent.parent / "benchmarks" / "loaders.py")
    loaders = importlib.util.module_from_spec(spec)
    sys.modules["loaders"] = loaders                # dataclasses look their module up
    spec.loader.exec_module(loaders)
    rows = loaders.equal_sized(workers=0, batch=64, repeats=1, epochs=2, count=256, root=tmp_path)
    text = loaders.table(rows, rows[0].loader)
    assert len(rows) == 3 and all(row.rate > 0 for row in rows) and "1.00" in text and "torchvision" in text


# ImageSet ---------------------------------------------------------------------------------------

GOOD = dict(images=torch.zeros(4, 3, 5, 5, dtype=torch.uint8), labels=torch.tensor([0, 1, 1, 0]), classes=["x", "y"])


@pytest.mark.parametrize("change, words", [
    (dict(images=torch.zeros(4, 3, 5, 5)), ["images must be uint8 of shape [N, 3, H, W]", "float32 [4, 3, 5, 5]"]),
    (dict(images=torch.zeros(4, 5, 5, 3, dtype=torch.uint8)), ["images", "[4, 5, 5, 3]"]),
    (dict(images=torch.zeros(4, 5, 5, dtype=torch.uint8)), ["images", "[4, 5, 5]"]),
    (dict(images=np.zeros((4, 3, 5, 5), np.uint8)), ["images", "ndarray"]),
    (dict(images=None), ["images", "NoneType"]),
    (dict(images=GOOD["images"][:0], labels=GOOD["labels"][:0]), ["images must be at least one image"]),
    (dict(labels=torch.tensor([0, 1, 1, 0], dtype=torch.int32)), ["labels must be int64 of shape [N]", "int32"]),
    (dict(labels=torch.zeros(4, 2).long()), ["labels", "[4, 2]"]),
    (dict(labels=[0, 1, 1, 0]), ["labels", "list"]),
    (dict(labels=torch.tensor([0, 1])), ["labels must be as many as the 4 images, got 2"]),
    (dict(labels=torch.tensor([0, 1, 2, 0])), ["labels must be in 0..1 (2 classes), got 0..2"]),
    (dict(labels=torch.tensor([0, 1, -1, 0])), ["labels must be in 0..1", "-1..1"]),
    (dict(classes=[]), ["classes must be a list of names, got []"]),
    (dict(classes=[0, 1]), ["classes"]),
    (dict(truth={"pose": torch.zeros(3)}), ["pose must be as many as the 4 images, got 3"]),
])
def test_unsound_sets(change, words):
    refusal(ValueError, lambda: ImageSet(**{**GOOD, **change}), *words)


def test_subset_digest_and_moves():
    data = make_shapes(6)
    mask = data.labels == 2
    for pick in (mask, mask.nonzero().flatten(), mask.nonzero().flatten().tolist(), slice(12, 18)):
        part = data.subset(pick)
        assert len(part) == 6 and torch.equal(part.truth["angle"], data.truth["angle"][12:18])
        assert part.digest() == data.subset(slice(12, 18)).digest()
    images = data.images.clone(); images[0, 0, 0, 0] ^= 1
    labels = data.labels.clone(); labels[0] = 1
    others = replace(data, images=images), replace(data, labels=labels), data.subset(range(35, -1, -1))
    assert len({d.digest() for d in (data, *others)}) == 4 and data.to("cpu").digest() == data.digest()
    assert replace(data, images=data.images.contiguous(memory_format=torch.channels_last)).digest() == data.digest()


# digits -----------------------------------------------------------------------------------------

def test_digits():
    parts = {split: load("digits", split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [797, 400, 600]
    assert parts["val"].counts().unique().tolist() == [40] and parts["test"].counts().unique().tolist() == [60]
    assert torch.cat([part.truth["index"] for part in parts.values()]).sort().values.tolist() == list(range(1797))
    # the same bytes on every machine
    assert [part.digest() for part in parts.values()] == ["a5af0b659aa2", "b493f3952623", "11d0f90520ce"]
    images = parts["test"].images
    assert images.shape == (600, 3, 16, 16) and images.min() == 0 and images.max() == 255
    assert torch.equal(images[:, 0], images[:, 2])
    assert load("digits-few:10").counts().tolist() == [10] * 10


def test_enlargement_keeps_the_mean_and_flat_areas():
    flat = torch.full((1, 8, 8), 16)
    assert (datasets.enlarge_digits(flat) == 255).all()
    grey = torch.randint(0, 17, (5, 8, 8), generator=torch.Generator().manual_seed(0))
    grey[:, [0, -1]] = 0; grey[:, :, [0, -1]] = 0   # an empty border: nothing is repeated at the edge
    mean = datasets.enlarge_digits(grey).double().mean() * 16 / 255
    assert abs(mean - grey.double().mean()) < 0.02


def test_twelve():
    data = twelve()
    assert data.images.shape == (12, 3, 16, 16) and data.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    train = load("digits")
    where = [train.truth["index"].tolist().index(i) for i in data.truth["index"].tolist()]
    assert torch.equal(train.images[where], data.images)
    assert [train.classes[c] for c in train.labels[where]] == [data.classes[c] for c in data.labels]
    z = twelve_embeddings(dim=24)
    assert z.shape == (12, 24) and z.dtype == torch.float32 and torch.equal(z, twelve_embeddings(dim=24))
    assert torch.allclose(z.norm(dim=1), torch.ones(12))
    near, far = ((twelve_embeddings(24, noise) * z).sum(1) for noise in (.1, .8))
    assert (near > .99).all() and (far < near).all() and torch.equal(twelve_embeddings(24, 0.0), z)


# shapes -----------------------------------------------------------------------------------------

def test_shapes_are_reproducible_and_labelled():
    data = make_shapes(9, num_classes=10, subclasses=5, size=24, seed=3)
    assert data.images.shape == (90, 3, 24, 24) and data.counts().tolist() == [9] * 10 and len(set(data.classes)) == 10
    assert torch.equal(data.labels, data.truth["label"]) and data.truth["shift"].shape == (90, 2)
    assert [int(n) for n in data.truth["subclass"][:9].bincount()] == [2, 2, 2, 2, 1]
    assert data.digest() == make_shapes(9, num_classes=10, subclasses=5, size=24, seed=3).digest()
    assert data.digest() != make_shapes(9, num_classes=10, subclasses=5, size=24, seed=4).digest()


def test_shapes_splits_differ():
    parts = [load("shapes", split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3000, 600, 1800]
    flat = [set(map(bytes, part.images.flatten(1).numpy())) for part in parts]
    assert not (flat[0] & flat[1] or flat[0] & flat[2] or flat[1] & flat[2])


@pytest.mark.parametrize("share", [0, 0.1, 0.37, 1])
def test_flips_are_exact_and_touch_nothing_else(share):
    clean, noisy = make_shapes(25, num_classes=4), make_shapes(25, num_classes=4, flip_labels=share)
    assert torch.equal(clean.images, noisy.images) and torch.equal(noisy.truth["label"], clean.labels)
    assert (noisy.labels != clean.labels).sum() == round(share * 100)


def test_long_tailed_shapes():
    data = make_shapes(60, long_tail=20)
    assert torch.equal(data.counts(), long_tail_counts(6, 60, 20))


class Still:
    "A stream without chance: no slope, black specks in the corner, no noise"
    def uniform(self, low=0., high=1., size=None): return np.full(size, low)
    def standard_normal(self, size): return np.zeros(size)


def glyph(outline, size=64, scale=.25, angle=0., shift=(0., 0.), mark=0):
    "Coverage [size, size] of one white glyph on black; a mark is black"
    nuisances = dict(angle=np.array([angle]), scale=np.array([scale]), shift=np.array([shift]), ground=np.zeros((1, 3)),
                     glyph=np.ones((1, 3)), mark=np.zeros((1, 3)))
    image = glyphs._draw_block(np.array([glyphs.OUTLINES[outline]]), np.array([mark]), nuisances, size, Still())
    return image[0, 0] / 255


@pytest.mark.parametrize("outline", glyphs.OUTLINES)
def test_truth_describes_the_picture(outline):
    "Area, centre and symmetry of what is drawn are those that the truth names"
    x = (np.arange(64) + .5) / 64 - .5
    for scale in (.15, .2):
        image = glyph(outline, scale=scale, shift=(.06, -.1), angle=.7)
        assert abs(image.mean() / (math.pi * scale ** 2) - 1) < .03
        centre = [(image.mean(axis) * x).sum() / image.mean(axis).sum() for axis in (0, 1)]
        assert np.allclose(centre, [.06, -.1], atol=.004)
    tips = glyphs.OUTLINES[outline][0]
    assert np.abs(glyph(outline, angle=.3) - glyph(outline, angle=.3 + 2 * math.pi / tips)).max() < 1e-6
    turned = glyph(outline, angle=.3 + math.pi / tips)
    if outline != "disc": assert np.abs(glyph(outline, angle=.3) - turned).mean() > .004


def test_marks_differ_and_are_small():
    pictures = [glyph("square", mark=m) for m in range(5)]
    for i in range(5):
        for j in range(i): assert .005 < np.abs(pictures[i] - pictures[j]).mean() < .06
    assert np.array_equal(glyph("square"), pictures[0])


def test_class_and_nuisances_are_independent():
    data = make_shapes(400)
    for name in ("angle", "scale", "colour"):
        values = data.truth[name].view(6, 400)
        assert (values.mean(1) - values.mean()).abs().max() < 4.5 * values.std() / 20, name
    level = data.images.float().mean((1, 2, 3)).view(6, 400)
    assert (level.mean(1) - level.mean()).abs().max() < 4.5 * level.std() / 20


@pytest.mark.parametrize("argument, value", [
    ("num_per_class", 0), ("num_classes", 11), ("num_classes", 0), ("subclasses", 6), ("size", 4), ("flip_labels", 1.5),
    ("flip_labels", -.1), ("seed", -1)])
def test_bad_shapes(argument, value):
    refusal(ValueError, lambda: make_shapes(**{"num_per_class": 5, argument: value}), argument, value)
    refusal(ValueError, lambda: make_shapes(5, num_classes=1, flip_labels=.5), "at least 2 classes")
    refusal(ValueError, lambda: make_shapes(5, long_tail=9), "imbalance must be between 1 and 5")


def small_network(w=16):
    block = lambda i, o: [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*block(3, w), nn.MaxPool2d(2), *block(w, 2 * w), nn.MaxPool2d(2), *block(2 * w, 4 * w),
                         nn.MaxPool2d(2), *block(4 * w, 4 * w), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4 * w, 6))


def test_a_small_network_learns_shapes_but_not_perfectly():
    torch.manual_seed(0)
    net, train, test, steps = small_network(), load("shapes-few:50"), load("shapes", "test"), 450
    x, held_out = train.images / 127.5 - 1, test.images / 127.5 - 1
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(x), (32,))
        images = torch.rot90(x[pick], int(torch.randint(4, ())), (2, 3))
        images = images.roll(torch.randint(-3, 4, (2,)).tolist(), (2, 3))
        if step % 2: images = images.flip(3)
        optimizer.zero_grad()
        F.cross_entropy(net(images), train.labels[pick]).backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad(): accuracy = (net(held_out).argmax(1) == test.labels).float().mean().item()
    assert .55 < accuracy < .95, accuracy   # 0.67 to 0.8 by training seed and width; pixel neighbours 0.3


# imports ----------------------------------------------------------------------------------------

def test_import_is_light():
    heavy = ["sklearn", "matplotlib", "scipy", "pandas", "nbdev", "torchvision"]
    code = f"import sys, arcbook.datasets; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
