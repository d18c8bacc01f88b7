"Every script of data_scripts, end to end on small archives of the same structure; the real lists where they are"
import gzip, hashlib, io, json, os, pickle, re, shutil, struct, subprocess, sys, tarfile, zipfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from arcbook.datasets import load
from arcbook.download import command, obtain, recipes
from arcbook.photographs import read_list
from arcbook.store import state
from arcbook.sampling import few_per_class_indices
from server import Server

folder = Path(__file__).resolve().parents[1] / "data_scripts"
known = recipes()
lists = Path(os.environ.get("ARCBOOK_DATA", "/nowhere")) / "lists"
real_lists = pytest.mark.skipif(not (lists / "datasets").is_dir(), reason="ARCBOOK_DATA holds no lists")
ADNET = {"cub200": "CUB_200_2011", "cars": "Stanford Cars", "aircraft": "FGVC-Aircraft-2013"}
SPLITS = ("train_1i", "train_10", "train_15", "train_30", "train_50", "train_100", "test")


def obtain_small(name, root, served, splits, source=None, **changes):
    "Prepare a set from small files: those `served` by HTTP, the others the user's own"
    with Server(served) as server:
        files = []
        for file in known[name].files:
            data = served.get(file.name)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}" if data is not None and file.hash else None
            url = "" if data is None else server.url(file.name)
            files.append(replace(file, url=url, size=None if data is None else len(data), hash=digest))
        changes = dict(files=tuple(files), splits=splits, disk=0) | changes
        return obtain(replace(known[name], **changes), root, source, report=lambda text: None)


def refused(name, root, *words, served=None, splits=None, source=None, **changes):
    "The set is refused in one sentence, and nothing of it is left"
    with pytest.raises((ValueError, OSError)) as error: obtain_small(name, root, served, splits, source, **changes)
    assert all(word in str(error.value) for word in words), error.value
    assert state(name, root) == "missing" and {p.name for p in root.iterdir()} <= {"downloads"}


def jpeg(seed, size=(8, 8), mode="RGB"):
    "The bytes of a small photograph"
    pixels = np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "JPEG", quality=90)
    return out.getvalue()


def pixels_of(encoded): return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def tar(entries, mode="w:gz"):
    "The bytes of an archive with files name -> bytes"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def rows_of(path):
    paths, labels = read_list(path)
    return list(zip(paths, labels.tolist()))


# CIFAR ------------------------------------------------------------------------------------------

class Python2(pickle._Pickler):
    "Writes texts and bytes as the `str` of Python 2, as CIFAR's pickles hold them"
    dispatch = dict(pickle._Pickler.dispatch)
    def text(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)
    dispatch[str] = dispatch[bytes] = text


def python2(value):
    out = io.BytesIO()
    Python2(out, 2).dump(value)
    return out.getvalue().replace(b"numpy._core", b"numpy.core")


def batch(seed, count, labels):
    pixels = np.random.RandomState(seed).randint(0, 256, (count, 3072)).astype(np.uint8)
    return {"data": pixels, labels: [(seed + k) % 10 for k in range(count)], "filenames": ["a.png"] * count}


@pytest.mark.parametrize("name, parts, labels, meta", [
    ("cifar10", {**{f"data_batch_{k}": k for k in range(1, 6)}, "test_batch": 6}, "labels",
     ("batches.meta", "label_names")),
    ("cifar100", {"train": 1, "test": 2}, "fine_labels", ("meta", "fine_label_names"))])
def test_cifar(tmp_path, name, parts, labels, meta):
    batches = {part: batch(seed, 4, labels) for part, seed in parts.items()}
    if name == "cifar100":
        for content in batches.values(): content["coarse_labels"] = [99] * 4
    names = [f"class {k}" for k in range(10)]
    pickles = {part: python2(content) for part, content in batches.items()} | {meta[0]: python2({meta[1]: names})}
    assert b"numpy.core.multiarray" in pickles["test_batch" if name == "cifar10" else "test"]
    archive = tar({f"some-folder/{part}": data for part, data in pickles.items()})
    file, = known[name].files
    obtain_small(name, tmp_path, {file.name: archive}, {"train": 4 * (len(parts) - 1), "test": 4})
    train, test = (load(name, split, tmp_path) for split in ("train", "test"))
    ordered = list(batches.values())
    expected = np.concatenate([b["data"] for b in ordered[:-1]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), expected) and train.classes == names
    assert train.labels.tolist() == sum((b[labels] for b in ordered[:-1]), [])
    assert test.labels.tolist() == ordered[-1][labels]
    assert json.loads((tmp_path / name / "prepared.json").read_text())["licence"] == known[name].licence
    assert {p.name for p in (tmp_path / name).iterdir()} == {"train", "test", "classes.json", "prepared.json"}


class Attack:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("attack", ["os", "eval", "numpy"])
def test_hostile_pickles_run_nothing(tmp_path, attack):
    mark = tmp_path / "ran"
    evil = {"os": pickle.dumps(Attack(mark)),
            "eval": f"c__builtin__\neval\n(S'open(\"{mark}\", \"w\")'\ntR.".encode(),
            "numpy": f"cnumpy\nsave\n(S'{mark}'\nI1\ntR.".encode()}[attack]
    root = tmp_path / "root"
    served = {"cifar-100-python.tar.gz": tar({"f/train": evil, "f/test": evil, "f/meta": evil})}
    refused("cifar100", root, "wants to use", served=served, splits={"train": 1, "test": 1})
    assert not list(tmp_path.glob("ran*"))


def test_wrong_number_of_images_is_refused(tmp_path):
    pickles = {"f/train": python2(batch(0, 4, "fine_labels")), "f/test": python2(batch(1, 4, "fine_labels")),
               "f/meta": python2({"fine_label_names": list("abcdefghij")})}
    refused("cifar100", tmp_path, "4 images instead of 50000", served={"cifar-100-python.tar.gz": tar(pickles)},
            splits=known["cifar100"].splits)


# equal sizes ------------------------------------------------------------------------------------

def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(header + array.tobytes())


def test_fashion_mnist(tmp_path):
    draw = lambda *shape: np.random.RandomState(0).randint(0, 10, shape).astype(np.uint8)
    arrays = {f"{part}-{kind}-ubyte.gz": draw(count, *shape) for part, count in {"train": 7, "t10k": 3}.items()
              for kind, shape in {"images-idx3": (28, 28), "labels-idx1": ()}.items()}
    served = {name: idx(array) for name, array in arrays.items()}
    obtain_small("fashion_mnist", tmp_path, served, {"train": 7, "test": 3})
    test = load("fashion_mnist", "test", tmp_path)
    assert np.array_equal(test.images[:, 2], arrays["t10k-images-idx3-ubyte.gz"]) and test.classes[9] == "Ankle boot"
    assert test.labels.tolist() == arrays["t10k-labels-idx1-ubyte.gz"].tolist()
    assert len(load("fashion_mnist", "train", tmp_path)) == 7
    name = "t10k-images-idx3-ubyte.gz"
    served[name] = gzip.compress(gzip.decompress(served[name])[:-1])
    refused("fashion_mnist", tmp_path / "short", "no idx file", served=served, splits={"train": 7, "test": 3})


@pytest.fixture(scope="module")
def tiny_zip():
    "Three classes of 12 training and 4 validation images, one of them grey"
    wnids, out, base = ["n02000000", "n01000000", "n03000000"], io.BytesIO(), "tiny-imagenet-200/"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(base + "wnids.txt", "".join(f"{w}\n" for w in wnids))
        archive.writestr(base + "words.txt", "".join(f"{w}\tname {w[2]}, another\n" for w in [*wnids, "n09999999"]))
        for w in wnids:
            archive.writestr(f"{base}train/{w}/{w}_boxes.txt", "")
            for i in range(12):
                image = jpeg(int(w[1:]) + i, (64, 64), "L" if i == 3 else "RGB")
                archive.writestr(f"{base}train/{w}/images/{w}_{i}.JPEG", image)
        lines = [f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t9\t9\n" for i in range(12)]
        archive.writestr(base + "val/val_annotations.txt", "".join(lines))
        for i in range(12): archive.writestr(f"{base}val/images/val_{i}.JPEG", jpeg(i, (64, 64)))
    return out.getvalue()


def test_tiny_imagenet(tmp_path, tiny_zip):
    served = {"tiny-imagenet-200.zip": tiny_zip}
    obtain_small("tiny-imagenet", tmp_path, served, {"train": 36, "test": 12})
    train, test = (load("tiny-imagenet", split, tmp_path) for split in ("train", "test"))
    assert train.classes == ["name 1", "name 2", "name 3"] and train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    order = sorted(range(12), key=str)                               # 0, 1, 10, 11, 2, 3 ...
    assert np.array_equal(train.images[2].permute(1, 2, 0), pixels_of(jpeg(1000010, (64, 64))))
    assert np.array_equal(train.images[5].permute(1, 2, 0), pixels_of(jpeg(1000003, (64, 64), "L")))
    assert test.labels.tolist() == [[1, 0, 2][i % 3] for i in order]
    assert np.array_equal(test.images[2].permute(1, 2, 0), pixels_of(jpeg(10, (64, 64))))


def test_tiny_imagenet_50_is_the_documented_subset(tmp_path, tiny_zip):
    recipe = known["tiny-imagenet-50"]
    assert recipe.prepare.keywords == {"per_class": 50} and recipe.prepare.func is known["tiny-imagenet"].prepare
    small = partial(recipe.prepare.func, per_class=5)
    served = {"tiny-imagenet-200.zip": tiny_zip}
    obtain_small("tiny-imagenet", tmp_path, served, {"train": 36, "test": 12})
    obtain_small("tiny-imagenet-50", tmp_path, served, {"train": 15, "test": 12}, prepare=small)
    digest = lambda name, split: load(name, split, tmp_path).digest()
    assert digest("tiny-imagenet-50", "train") == digest("tiny-imagenet-few:5", "train")
    assert digest("tiny-imagenet-50", "test") == digest("tiny-imagenet", "test")


# AD-Net's sets ----------------------------------------------------------------------------------

def of_split(rows, split):
    "The rows of a list of a small set"
    return rows["test"] if split == "test" else rows["train"][:{"train_1i": 12, "train_10": 18}.get(split)]


def twelve(name, training=(0, 1), test=(2,)):
    "Rows of 12 classes from a function of image and class"
    return {part: [(name(i, k), k) for i in images for k in range(12)]
            for part, images in (("train", training), ("test", test))}


def adnet_files(name, rows, spoil=lambda text: text):
    "Lists as the authors have them: Windows line ends here, no newline at the end there; and their lengths"
    out = {}
    for i, split in enumerate(SPLITS):
        text = ("\r\n" if i % 2 else "\n").join(f"{path} {label}" for path, label in of_split(rows, split))
        out[f"{name}-{split}.txt"] = spoil(text).encode()
    return out, {split: len(of_split(rows, split)) for split in SPLITS}


def check_adnet(name, root, rows, photos, classes):
    home = root / name
    for split in SPLITS:
        assert rows_of(home / f"{split}.txt") == of_split(rows, split)
        assert (home / f"{split}.txt").read_bytes().endswith(b"\n")
    for path, data in photos.items(): assert (home / "images" / path).read_bytes() == data
    assert json.loads((home / "classes.json").read_text()) == classes
    for split, alias in (("test", name), ("train_10", f"{name}-10")):
        data = load(alias, "test" if split == "test" else "train", root, size=16)
        assert data.labels.tolist() == [label for _, label in of_split(rows, split)] and data.classes == classes
        assert data.batch([0, 1])[0].shape == (2, 3, 16, 16)


CUB_ROWS = twelve(lambda i, k: f"{k + 1:03}.Bird_{k}/Bird_{k}_{i:04}.jpg")


def cub_archive(rows=CUB_ROWS):
    photos = {path: jpeg(i, (20, 30)) for i, (path, _) in enumerate(rows["train"] + rows["test"])}
    numbered = lambda values: "".join(f"{i} {value}\n" for i, value in enumerate(values, 1)).encode()
    every = sorted(rows["train"] + rows["test"])
    return photos, tar({
        "attributes.txt": b"not of the set", **{f"CUB_200_2011/images/{path}": data for path, data in photos.items()},
        "CUB_200_2011/images.txt": numbered(path for path, _ in every),
        "CUB_200_2011/image_class_labels.txt": numbered(k + 1 for _, k in every),
        "CUB_200_2011/train_test_split.txt": numbered(int((path, k) in rows["train"]) for path, k in every),
        "CUB_200_2011/classes.txt": numbered(f"{k + 1:03}.Bird_{k}" for k in range(12))})


def test_cub(tmp_path):
    photos, archive = cub_archive()
    served, splits = adnet_files("cub200", CUB_ROWS)
    obtain_small("cub200", tmp_path, served | {"CUB_200_2011.tgz": archive}, splits)
    check_adnet("cub200", tmp_path, CUB_ROWS, photos, [f"Bird {k}" for k in range(12)])


@pytest.mark.parametrize("spoil, words", [
    (lambda text: text[:-1], "not labelled so"),                     # what the authors' own reader makes of `11`
    (lambda text: text.replace("0001.jpg", "0009.jpg"), "not labelled so"),
    (lambda text: text + "\n" + text, "twice"), (lambda text: text + "\nx", "line")])
def test_wrong_lists_are_refused(tmp_path, spoil, words):
    served, splits = adnet_files("cub200", CUB_ROWS, spoil)
    refused("cub200", tmp_path, words, served=served | {"CUB_200_2011.tgz": cub_archive()[1]}, splits=splits)


def test_listed_photographs_must_be_there(tmp_path):
    served, splits = adnet_files("cub200", CUB_ROWS)
    _, archive = cub_archive()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old: entries = {m.name: old.extractfile(m).read() for m in old}
    gone = f"CUB_200_2011/images/{CUB_ROWS['test'][3][0]}"
    del entries[gone]
    refused("cub200", tmp_path, "not among", served=served | {"CUB_200_2011.tgz": tar(entries)}, splits=splits)


def test_aircraft(tmp_path):
    variants = sorted(["707-320", "727-200", "Falcon 900", "F-A-18", "A330-200", "Yak-42", *"UVWXYZ"])
    rows = twelve(lambda i, k: f"{1000 * i + 37 * k:07}.jpg")
    photos = {path: jpeg(i, (20, 30)) for i, (path, _) in enumerate(rows["train"] + rows["test"])}
    annotation = lambda part: "".join(f"{path[:-4]} {variants[k]}\n" for path, k in rows[part]).encode()
    archive = tar({**{f"fgvc-aircraft-2013b/data/images/{path}": data for path, data in photos.items()},
                   "fgvc-aircraft-2013b/data/variants.txt": "\n".join(reversed(variants)).encode(),
                   "fgvc-aircraft-2013b/data/images_variant_trainval.txt": annotation("train"),
                   "fgvc-aircraft-2013b/data/images_variant_test.txt": annotation("test")})
    served, splits = adnet_files("aircraft", rows)
    obtain_small("aircraft", tmp_path, served | {"fgvc-aircraft-2013b.tar.gz": archive}, splits)
    check_adnet("aircraft", tmp_path, rows, photos, variants)
    assert variants[0] == "707-320" and variants.index("Yak-42") == 10


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    "Both layouts of one small set: 12 classes, two training and one test photograph each"
    from scipy.io import savemat
    home, stream = tmp_path_factory.mktemp("cars"), np.random.RandomState(3)
    rows = twelve(lambda i, k: f"{3 * k + i + 1:06}.jpg")
    every = sorted(rows["train"] + rows["test"])
    photos = {path: jpeg(i, (20, 30)) for i, (path, _) in enumerate(every)}
    box = {path: stream.randint(1, 300, 4) for path in photos}
    fields = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O"), ("class", "O")]
    merged = [(f"car_ims/{path}", *map(int, box[path]), k + 1, int((path, k) in rows["test"])) for path, k in every]
    merged = np.array(merged, [("relative_im_path", "O"), *fields, ("test", "O")])
    names = np.array([f"Car {k} 2012" for k in range(12)], dtype=object)
    official, mirror = home / "official", home / "mirror"
    official.mkdir(), mirror.mkdir()
    savemat(official / "cars_annos.mat", {"annotations": merged, "class_names": names})
    (official / "car_ims.tgz").write_bytes(tar({f"car_ims/{path}": data for path, data in photos.items()}))
    shutil.copy(official / "cars_annos.mat", mirror / "cars_annos.mat")
    for part, name in {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}.items():
        place = mirror / f"cars_{part}" / f"cars_{part}" if part == "test" else mirror / f"cars_{part}"
        place.mkdir(parents=True)
        order = [rows[part][i] for i in stream.permutation(len(rows[part]))]
        for i, (path, _) in enumerate(order, 1): (place / f"{i:05}.jpg").write_bytes(photos[path])
        table = [(*map(int, box[path]), k + 1, f"{i:05}.jpg") for i, (path, k) in enumerate(order, 1)]
        savemat(mirror / name, {"annotations": np.array(table, [*fields, ("fname", "O")])})
    return home, rows, photos, [f"Car {k} 2012" for k in range(12)]


@pytest.mark.parametrize("layout", ["official", "mirror"])
def test_cars_in_both_layouts(tmp_path, cars, layout):
    home, rows, photos, names = cars
    served, splits = adnet_files("cars", rows)
    obtain_small("cars", tmp_path, served, splits, source=home / layout)
    check_adnet("cars", tmp_path, rows, photos, names)


def test_cars_says_what_is_missing(tmp_path, cars):
    home, rows, *_ = cars
    served, splits = adnet_files("cars", rows)
    refused("cars", tmp_path / "a", "--from", "dead", served=served, splits=splits)
    only = home / "mirror" / "cars_annos.mat"
    refused("cars", tmp_path / "b", "either car_ims.tgz or", served=served, splits=splits, source=only)
    with pytest.raises(OSError, match="not the cars_annos.mat that is expected"):     # verified like a download
        obtain(known["cars"], tmp_path / "c", home / "official", report=lambda text: None)


# a user's ImageNet ------------------------------------------------------------------------------

@pytest.fixture(params=["folders", "flat"])
def imagenet(request, tmp_path, monkeypatch):
    "Three classes of 102 training and 50 validation photographs, and the lists that name them"
    monkeypatch.setattr(sys.modules["_shared"], "CLASSES", 3)
    home, photo, wnids = tmp_path / "ILSVRC2012", jpeg(0), ["n01440764", "n01443537", "n15075141"]
    train = {w: [f"{w}_{7 * i}.JPEG" for i in range(102)] for w in wnids}
    val = {w: [f"ILSVRC2012_val_{3 * i + k + 1:08}.JPEG" for i in range(50)] for k, w in enumerate(wnids)}
    for w in wnids:
        places = {home / "train" / w: train[w], home / "val" / (w if request.param == "folders" else ""): val[w]}
        for place, names in places.items():
            place.mkdir(parents=True, exist_ok=True)
            for name in names: (place / name).write_bytes(photo)
    (home / "train" / "notes").mkdir()
    test = "".join(f"val/{w}/{name} {k}\n" for k, w in enumerate(wnids) for name in val[w]).encode()
    path = (lambda w, name: f"val/{w}/{name}") if request.param == "folders" else (lambda w, name: f"val/{name}")
    return home, wnids, train, val, {"ImageNet_LT_test.txt": test}, path


def test_imagenet_and_its_subsets(tmp_path, imagenet):
    home, wnids, train, val, served, path = imagenet
    root = tmp_path / "root"
    test = [(path(w, name), k) for k, w in enumerate(wnids) for name in val[w]]
    obtain_small("imagenet", root, served, {"train": 306, "test": 150}, source=home)
    everything = [(f"train/{w}/{name}", k) for k, w in enumerate(wnids) for name in sorted(train[w])]
    assert rows_of(root / "imagenet" / "train.txt") == everything and rows_of(root / "imagenet" / "test.txt") == test
    links = [p for p in (root / "imagenet" / "images").iterdir()]
    assert all(p.is_symlink() for p in links)
    assert sum(p.stat().st_size for p in (root / "imagenet").glob("*.*")) < 60_000
    assert load("imagenet", "train", root, size=16).batch([0, 305])[1].tolist() == [0, 2]
    rows = {"train": [(w, n) for w, count in zip(wnids, (40, 9, 2)) for n in train[w][:count]],
            "val": [(w, n) for w in wnids for n in train[w][90:95]]}
    long_tail = {f"ImageNet_LT_{split}.txt": "".join(f"train/{w}/{n} {wnids.index(w)}\n" for w, n in part).encode()
                 for split, part in rows.items()}
    obtain_small("imagenet-lt", root, served | long_tail, {"train": 51, "val": 15, "test": 150}, source=home)
    assert load("imagenet-lt", "train", root).counts()[:3].tolist() == [40, 9, 2]
    assert len(load("imagenet-lt", "val", root)) == 15
    names = [f"{w}_{7 * i}.JPEG" for i in (5, 77) for w in reversed(wnids)]
    one = {"simclr-1percent.txt": "\n".join(names).encode()}
    obtain_small("imagenet-1pct", root, served | one, {"train": 6, "test": 150}, source=home)
    assert rows_of(root / "imagenet-1pct" / "train.txt") == [(f"train/{n[:9]}/{n}", wnids.index(n[:9])) for n in names]
    shutil.rmtree(home)
    assert state("imagenet", root) == "damaged"


def test_a_wrong_imagenet_is_refused(tmp_path, imagenet):
    home, wnids, train, val, served, _ = imagenet
    splits = {"train": 306, "test": 150}
    swapped = {"ImageNet_LT_test.txt": served["ImageNet_LT_test.txt"].replace(b" 2\n", b" 1\n")}
    refused("imagenet", tmp_path / "a", "place of its wnid", served=swapped, splits=splits, source=home)
    next((home / "val").rglob("*_00000003.JPEG")).unlink()
    refused("imagenet", tmp_path / "b", "not among", served=served, splits=splits, source=home)
    shutil.rmtree(home / "train" / wnids[1])
    refused("imagenet", tmp_path / "c", "2 class folders", served=served, splits=splits, source=home)
    refused("imagenet", tmp_path / "d", "--from", "image-net.org", served=served, splits=splits)


def test_vipriors(tmp_path, imagenet):
    home, wnids, train, val, _, path = imagenet
    rows = {"train": [[w, n] for w in wnids for n in train[w][:50]],
            "val": [(w, n) for w in wnids for n in train[w][50:100]]}
    shuffled = [f"{w}/{val[w][i]}" for i in range(50) for w in wnids]
    content = {**rows, "test": shuffled}
    served = {f"vipriors-{part}.pickle": pickle.dumps(value, protocol=3) for part, value in content.items()}
    splits = {"train": 150, "val": 150, "trainval": 300, "test": 150}
    root = tmp_path / "root"
    obtain_small("vipriors", root, served, splits, source=home)
    assert load("vipriors", "train", root).counts()[:3].tolist() == [50] * 3
    assert rows_of(root / "vipriors" / "val.txt") == [(f"train/{w}/{n}", wnids.index(w)) for w, n in rows["val"]]
    assert rows_of(root / "vipriors" / "test.txt") == [(path(*t.split("/")), wnids.index(t[:9])) for t in shuffled]
    overlap = served | {"vipriors-val.pickle": served["vipriors-train.pickle"]}
    refused("vipriors", tmp_path / "a", "share", served=overlap, splits=splits, source=home)
    uneven = served | {"vipriors-train.pickle": pickle.dumps(rows["train"][1:])}
    refused("vipriors", tmp_path / "b", "50 photographs of every class", served=uneven, splits=splits, source=home)
    assert not list((tmp_path / "b" / "downloads").glob("*.pickle")), "files without a published hash are fetched anew"
    obtain_small("vipriors", tmp_path / "b", served, splits, source=home)


def test_inat2018(tmp_path):
    species = [("Aves", 0), ("Plantae", 1), ("Aves", 2)]
    images = {split: [dict(id=100 * i + k, file_name=f"train_val2018/{sup}/{k}/{split}{i}.jpg")
                      for i in range(count) for sup, k in species] for split, count in {"train": 3, "val": 1}.items()}
    labels = {split: [dict(id=n, image_id=row["id"], category_id=row["id"] % 100) for n, row in enumerate(rows[::-1])]
              for split, rows in images.items()}
    categories = [dict(id=k, name=f"{k:03}", supercategory=sup) for sup, k in species]
    small = lambda name, value: tar({name: json.dumps(value).encode()})
    content = {s: dict(images=rows, annotations=labels[s], categories=categories) for s, rows in images.items()}
    served = {f"{split}2018.json.tar.gz": small(f"{split}2018.json", content[split]) for split in images}
    named = [c | {"name": f"Species {c['id']}"} for c in categories[::-1]]
    served["inat2018-categories.json.tar.gz"] = small("categories.json", named)
    photos = {row["file_name"]: jpeg(row["id"]) for rows in images.values() for row in rows}
    served["train_val2018.tar.gz"] = tar(photos)
    obtain_small("inat2018", tmp_path, served, {"train": 9, "test": 3})
    test = [(f"train_val2018/{sup}/{k}/val0.jpg", k) for sup, k in species]
    assert rows_of(tmp_path / "inat2018" / "test.txt") == test
    train = load("inat2018", "train", tmp_path)
    assert train.counts().tolist() == [3, 3, 3] and train.classes == ["Species 0", "Species 1", "Species 2"]
    served["inat2018-categories.json.tar.gz"] = small("categories.json", categories[:2])
    refused("inat2018", tmp_path / "a", "differently", served=served, splits={"train": 9, "test": 3})


# what recipes say -------------------------------------------------------------------------------

def test_recipes_are_complete():
    assert set(known) == {
        "cifar10", "cifar100", "fashion_mnist", "tiny-imagenet", "tiny-imagenet-50", "cub200", "cars", "aircraft",
        "imagenet", "imagenet-lt", "imagenet-1pct", "imagenet-10pct", "inat2018", "vipriors"}
    seen = {}
    for recipe in known.values():
        assert recipe.licence and recipe.citation and recipe.disk and recipe.homepage.startswith("http")
        assert {"test"} < set(recipe.splits)
        for file in recipe.files:
            assert all(re.match("https?://", url) for url in file.urls) and (file.urls or recipe.manual)
            assert file.hash is None or re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.hash)
            assert seen.setdefault(file.name, file) == file, "downloads share one folder"
    unknown = {name for name, file in seen.items() if file.urls and file.hash is None}
    lists = {f"vipriors-{part}.pickle" for part in ("train", "val", "test")}
    assert unknown == {"inat2018-categories.json.tar.gz"} | lists, "the README says which files nobody vouches for"


def test_readme_names_every_set():
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name, recipe in known.items():
        assert f"`{name}`" in text, name
        counts = recipe.splits.get("train", recipe.splits.get("train_100")), recipe.splits["test"]
        assert f"| {counts[0]:,} / {counts[1]:,}" in text, name
    for path in folder.glob("[!_]*.py"): assert f"data_scripts/{path.name}" in text, path


@pytest.mark.parametrize("path", sorted(folder.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_dry_run(path, tmp_path, capsys):
    module = sys.modules[f"arcbook_data_scripts_{path.stem}"]
    with pytest.raises(SystemExit) as end: command(*module.RECIPES, argv=["--dry-run", "--root", str(tmp_path / "new")])
    out, text = capsys.readouterr().out, path.read_text(encoding="utf-8")
    assert end.value.code == 0 and not (tmp_path / "new").exists()
    for recipe in module.RECIPES:
        urls = [url for file in recipe.files for url in file.urls]
        assert all(part in out for part in (recipe.licence, recipe.homepage, recipe.citation, *urls))
    assert max(map(len, text.splitlines())) <= 120 and text.count("\n") <= 100 and text.startswith('"""')


def test_help_from_a_clone_that_is_not_installed(tmp_path):
    shutil.copytree(folder, tmp_path / "data_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(folder.parent / "arcbook", tmp_path / "arcbook", ignore=shutil.ignore_patterns("__pycache__"))
    packages = Path(np.__file__).parents[1]         # -S: .pth files, and with them an installed clone, are not read
    done = subprocess.run([sys.executable, "-S", "data_scripts/cifar.py", "--help"], cwd=tmp_path, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True)
    assert done.returncode == 0 and "cifar100" in done.stdout and not done.stderr, done.stderr


# the real lists ---------------------------------------------------------------------------------

COUNTS = {"cub200": (200, 600, 1000, 1800, 3000, 5994, 5794), "cars": (196, 920, 1310, 2531, 4123, 8144, 8041),
          "aircraft": (100, 767, 1067, 2067, 3367, 6667, 3333)}
PER_CLASS = {"cub200": ((3, 3), (5, 5), (9, 9), (15, 15)), "cars": ((2, 9), (4, 11), (8, 21), (12, 34)),
             "aircraft": ((7, 8), (10, 11), (20, 21), (33, 34))}


@real_lists
@pytest.mark.parametrize("name", ADNET)
def test_adnet_lists_are_those_of_the_specification(name):
    home, files = lists / "datasets" / ADNET[name] / "low_data", {f.name: f for f in known[name].files}
    rows = {split: rows_of(home / f"{split}.txt") for split in SPLITS}
    assert tuple(len(rows[split]) for split in SPLITS) == COUNTS[name] == tuple(known[name].splits[s] for s in SPLITS)
    per_class = {split: Counter(label for _, label in rows[split]) for split in SPLITS}
    num_classes = {"cub200": 200, "cars": 196, "aircraft": 100}[name]
    assert all(sorted(counts) == list(range(num_classes)) for counts in per_class.values()), "199 must not become 19"
    ranges = [(min(per_class[s].values()), max(per_class[s].values())) for s in SPLITS[1:5]]
    assert tuple(ranges) == PER_CLASS[name] and set(per_class["train_1i"].values()) == {1}
    sets = {split: set(rows[split]) for split in SPLITS}
    nested = [("train_1i", "train_10"), ("train_10", "train_15"), ("train_15", "train_100")]
    if name != "aircraft": nested += [("train_15", "train_30"), ("train_30", "train_50"), ("train_50", "train_100")]
    assert all(sets[a] < sets[b] for a, b in nested) and not sets["train_100"] & sets["test"]
    if name == "aircraft": assert len(sets["train_10"] - sets["train_30"]) == 536
    assert {rows[split][-1][1] for split in SPLITS} == {{"cub200": 199, "cars": 98, "aircraft": 99}[name]}
    for split in SPLITS:
        data, file = (home / f"{split}.txt").read_bytes(), files[f"{name}-{split}.txt"]
        assert (file.size, file.hash) == (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
        assert all(unquote(url).endswith(f"datasets/{ADNET[name]}/low_data/{split}.txt") for url in file.urls)


@real_lists
def test_cub_lists_agree_with_the_publisher():
    second = lambda name: [line.split(" ", 1)[1] for line in (lists / name).read_text().splitlines()]
    photos, flags = second("cub200_images.txt"), second("cub200_train_test_split.txt")
    for split, flag in {"train_100": "1", "test": "0"}.items():
        rows = rows_of(lists / "datasets/CUB_200_2011/low_data" / f"{split}.txt")
        assert {path for path, _ in rows} == {path for path, own in zip(photos, flags) if own == flag}
        assert all(int(path[:3]) - 1 == label for path, label in rows)


@real_lists
def test_lists_of_imagenet_and_inaturalist():
    here = {"ImageNet_LT_val.txt": "ImageNet_LT_val.txt", "ImageNet_LT_test.txt": "ImageNet_LT_test.txt",
            "simclr-1percent.txt": "simclr_imagenet_1percent.txt",
            "simclr-10percent.txt": "simclr_imagenet_10percent.txt"}
    files = {f.name: f for name in ("imagenet-lt", "imagenet-1pct", "imagenet-10pct") for f in known[name].files}
    for name, path in here.items():
        data = (lists / path).read_bytes()
        assert (files[name].size, files[name].hash) == (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
    assert set(Counter(label for _, label in rows_of(lists / "ImageNet_LT_val.txt")).values()) == {20}
    test = rows_of(lists / "ImageNet_LT_test.txt")
    wnids = sorted({path.split("/")[1] for path, _ in test})
    assert len(wnids) == 1000 and all(wnids[label] == path.split("/")[1] for path, label in test)
    for percent in (1, 10):
        names = (lists / f"simclr_imagenet_{percent}percent.txt").read_text().split()
        assert len(set(names)) == known[f"imagenet-{percent}pct"].splits["train"]
        assert {name.split("_")[0] for name in names} == set(wnids)
    val = rows_of(lists / "iNaturalist18_val.txt")
    assert len(val) == known["inat2018"].splits["test"] and set(Counter(label for _, label in val).values()) == {3}
    assert all(path.startswith("train_val2018/") and path.split("/")[2] == str(label) for path, label in val)
