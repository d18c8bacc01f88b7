"List files, decoding of every kind of file, and worker processes: same bits, one sentence per fault, no process left"
import io, json, os, signal, subprocess, sys, textwrap, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from torchvision import transforms

from arcbook import photographs
from arcbook.images import ImageSet
from arcbook.photographs import (PhotoSet, centre_crop, decode, photo_classes, photo_splits, random_box, read_list,
                                 read_photo, read_photographs, resize)
from arcbook.store import data_root
from arcbook.views import Augment


def picture(width=60, height=40, seed=0):
    "A smooth colour picture: JPEG keeps it almost"
    few = np.random.RandomState(seed).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    return Image.fromarray(few).resize((width, height), Image.BICUBIC)


def encoded(photo, kind="JPEG", **options):
    file = io.BytesIO()
    photo.save(file, kind, **{**({"quality": 95} if kind == "JPEG" else {}), **options})
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    "Ten photographs of different sizes in two classes"
    folder = tmp_path / "birds" / "images"
    paths = [f"{'a b' if i < 5 else 'c'}/{i}.jpg" for i in range(10)]
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encoded(picture(50 + 7 * i, 90 - 3 * i, i)))
    return PhotoSet(folder, paths, torch.arange(10) // 5, ["a b", "c"], "birds", size=24, crop="resized", workers=2)


def refusal(kind, call, *words):
    with pytest.raises(kind) as error: call()
    text = str(error.value)
    assert "\n" not in text and all(str(word) in text for word in words), text


def children(): return {p for p in psutil.Process().children(recursive=True) if "tracker" not in " ".join(p.cmdline())}


# lists ------------------------------------------------------------------------------------------

name = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(lambda s: s.strip())
relative = st.lists(name.map(lambda s: s.replace("/", "_")).filter(lambda s: s != ".."), min_size=1, max_size=3).map("/".join)
entries = st.lists(st.tuples(relative, st.integers(0, 999)), min_size=1, max_size=8)
BROKEN = ("a.jpg", "a.jpg x", "a.jpg -1", "a.jpg 1.0", "a.jpg +1", "a.jpg 1_0", "a.jpg ٣", " 7", "", "/etc/a.jpg 1", "../a.jpg 1",
          "x/../a.jpg 1", "a\rb.jpg 1", "a\0b.jpg 1", "a.jpg 1234567890")


@settings(max_examples=150, deadline=None)
@given(entries, st.sampled_from(("\n", "\r\n")), st.sampled_from(("", " ", "   ", "\t")),
       st.sampled_from(("", "\n", "\r\n", "\n\n")), st.booleans())
def test_any_list_is_read_right(tmp_path_factory, lines, newline, trailing, end, bom):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    text = newline.join(f"{p} {label}{trailing}" for p, label in lines) + end
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    paths, labels = read_list(path)
    assert paths == [p for p, _ in lines] and labels.tolist() == [label for _, label in lines]
    assert labels.dtype == torch.int64


@settings(max_examples=60, deadline=None)
@given(entries, st.sampled_from(BROKEN), st.data())
def test_malformed_lines_are_refused_with_their_number(tmp_path_factory, lines, broken, data):
    path, at = tmp_path_factory.getbasetemp() / "broken.txt", data.draw(st.integers(0, len(lines) - 1))
    texts = [f"{p} {label}" for p, label in lines]
    texts.insert(at, broken)
    path.write_bytes("\n".join(texts).encode())
    refusal(ValueError, lambda: read_list(path), path, f"line {at + 1}:")


def test_label_bound_empty_list_and_odd_bytes(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.jpg 4\nb.jpg 5\n")
    assert read_list(path, 6)[1].tolist() == [4, 5]
    refusal(ValueError, lambda: read_list(path, 5), "line 2", "below 5")
    for empty in (b"", b"\n\r\n", b"\xef\xbb\xbf", b"  \t\n"):
        path.write_bytes(empty)
        refusal(ValueError, lambda: read_list(path), path, "empty")
    path.write_bytes(b"caf\xe9/\xff.jpg 3\n")                       # Latin-1: the file system takes any bytes
    assert os.fsencode(read_list(path)[0][0]) == b"caf\xe9/\xff.jpg"
    with pytest.raises(FileNotFoundError): read_list(tmp_path / "none.txt")


def test_last_label_of_the_authors_lists(tmp_path):
    "Bug B1 of AD-Net's reader: it cuts the last character of every line before it parses the label"
    path, text = tmp_path / "train_10.txt", "a/1.jpg 98\r\nb/2.jpg 99\r\nc/3.jpg 199"
    path.write_bytes(text.encode())
    with open(path) as file: theirs = [int(line[:-1].rsplit(" ", 1)[1]) for line in file]
    with open(path, newline="") as file: twice = [int(line[:-2].rsplit(" ", 1)[1]) for line in file]
    assert theirs == [98, 99, 19] and twice == [98, 99, 1]
    assert read_list(path)[1].tolist() == [98, 99, 199]


# one photograph ---------------------------------------------------------------------------------

def test_jpeg_equals_pillow(monkeypatch):
    for photo in (picture(), picture().convert("L"), picture(61, 33)):
        for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
            data = encoded(photo, **options)
            expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
            assert torch.equal(read_photo(data), expected)
            with monkeypatch.context() as patch:                     # a torchvision without decoder
                patch.setitem(sys.modules, "torchvision.io", None)
                assert torch.equal(read_photo(data), expected)


def test_every_kind_becomes_rgb():
    photo, grey = picture(), picture().convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    for data in (encoded(photo), encoded(photo, "PNG"), encoded(photo, "BMP"), encoded(photo, "TIFF"), encoded(photo, "WEBP", lossless=True),
                 encoded(photo.convert("CMYK")), encoded(photo.quantize(256), "PNG"), encoded(photo.convert("RGBA"), "PNG")):
        pixels = read_photo(data)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 40, 60)
        gap = pixels.permute(1, 2, 0).int() - torch.from_numpy(np.array(photo)).int()
        assert gap.abs().float().mean() < 10
    wide = np.asarray(grey).astype(np.int32) * 257
    for data in (encoded(grey, "PNG"), encoded(grey.convert("LA"), "PNG"), encoded(Image.fromarray(deep), "PNG"),
                 encoded(Image.fromarray(deep), "TIFF"), encoded(Image.fromarray(wide), "TIFF")):
        assert torch.equal(read_photo(data), torch.from_numpy(np.array(grey)).expand(3, -1, -1))
    assert read_photo(encoded(grey.point(lambda v: 255 * (v > 127)).convert("1"), "PNG")).unique().tolist() == [0, 255]
    refusal(ValueError, lambda: read_photo(encoded(grey.convert("F"), "TIFF")), "floating-point")


def test_transparency_shows_white():
    black = Image.new("RGBA", (4, 4), (0, 0, 0, 0)); black.putpixel((1, 1), (200, 0, 0, 255)); black.putpixel((2, 2), (0, 0, 0, 128))
    pixels = read_photo(encoded(black, "PNG"))
    assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 1, 1].tolist() == [200, 0, 0] and pixels[0, 2, 2] in (126, 127, 128)
    palette = Image.new("P", (4, 4), 1); palette.putpalette([9, 9, 9, 50, 60, 70]); palette.putpixel((0, 0), 0)
    assert read_photo(encoded(palette, "PNG", transparency=0))[:, 0].T.tolist()[:2] == [[255] * 3, [50, 60, 70]]
    grey = Image.new("L", (4, 4), 7); grey.putpixel((0, 0), 8)
    assert read_photo(encoded(grey, "PNG", transparency=7))[0, 0].tolist() == [8, 255, 255, 255]
    assert read_photo(encoded(Image.new("LA", (4, 4), (9, 0)), "PNG")).min() == 255


@pytest.mark.parametrize("kind", ("JPEG", "PNG"))
def test_orientation(kind):
    for orientation in range(1, 9):
        exif = Image.Exif(); exif[0x0112] = orientation
        data = encoded(picture(), kind, exif=exif)
        expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        assert torch.equal(read_photo(data), torch.from_numpy(expected).permute(2, 0, 1))
        assert read_photo(data, upright=False).shape == (3, 40, 60)
    for odd in (0, 9, 77):
        exif = Image.Exif(); exif[0x0112] = odd
        assert read_photo(encoded(picture(), kind, exif=exif)).shape == (3, 40, 60)


def test_damaged_exif_is_ignored(recwarn):
    exif = Image.Exif(); exif[0x0112] = 6
    data = encoded(picture(), exif=exif)
    at = data.index(b"Exif\0\0") + 6
    broken = data[:at + 4] + b"\xff\xff\xff\x7f" + data[at + 8:]         # the directory lies beyond the file
    assert read_photo(broken).shape in ((3, 40, 60), (3, 60, 40)) and not recwarn.list


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_escapes_as_anything_else(data):
    photo = encoded(picture(), data.draw(st.sampled_from(("JPEG", "PNG", "GIF", "TIFF", "WEBP"))))
    cut = photo[:data.draw(st.integers(0, len(photo)))]
    spoilt = bytearray(cut)
    for at in data.draw(st.lists(st.integers(0, max(0, len(cut) - 1)), max_size=4)):
        if cut: spoilt[at] ^= data.draw(st.integers(1, 255))
    try: pixels = read_photo(bytes(spoilt))
    except ValueError as error: assert "is damaged (" in str(error) and "\n" not in str(error)
    else: assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3


def test_truncated_jpeg_is_refused(tmp_path):
    data = encoded(picture(300, 200))
    for keep in (0, 1, 2, 20, len(data) // 2, len(data) - 60):
        (tmp_path / "cut.jpg").write_bytes(data[:keep])
        refusal(ValueError, lambda: read_photo(tmp_path / "cut.jpg"), tmp_path / "cut.jpg", "is damaged")


def test_a_bomb_is_refused():
    data = bytearray(encoded(picture()))
    at = data.index(b"\xff\xc0") + 5
    data[at:at + 4] = b"\xff\xdc\xff\xdc"                                # 65500 x 65500
    refusal(ValueError, lambda: read_photo(bytes(data)), "is damaged", "decompression bomb")


def test_unreadable_paths(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    refusal(ValueError, lambda: read_photo(tmp_path / "empty.jpg"), "empty.jpg", "0 bytes")
    refusal(ValueError, lambda: read_photo(tmp_path / "page.jpg"), "page.jpg", "no picture")
    refusal(OSError, lambda: read_photo(tmp_path / "loop.jpg"), "loop.jpg", "cannot be read")
    refusal(IsADirectoryError, lambda: read_photo(tmp_path), tmp_path, "cannot be read")
    refusal(FileNotFoundError, lambda: read_photo(tmp_path / "none.jpg"), "none.jpg is missing")


# crops ------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 80), st.sampled_from(("centre", "resized", "whole")), st.integers(0, 9))
def test_any_photograph_becomes_a_square(width, height, size, crop, seed):
    pixels = decode(encoded(picture(width, height)), size, crop, seed)
    assert pixels.shape == (3, size, size) and pixels.dtype == torch.uint8


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (256, 256), (333, 222), (224, 700), (60, 40)])
def test_crops_equal_torchvision(shape):
    photo = picture(*shape)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    centre = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(photo)
    whole = transforms.Resize((224, 224))(photo)
    for ours, theirs in ((centre_crop(pixels, 224), centre), (resize(pixels, 224, 224), whole)):
        assert (ours.permute(1, 2, 0).int() - torch.from_numpy(np.array(theirs)).int()).abs().max() <= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22))
def test_boxes_lie_inside(height, width, draws):
    top, left, h, w = random_box(height, width, draws)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0


def test_layout_of_memory_does_not_matter():
    pixels = torch.from_numpy(np.array(picture(333, 251))).permute(2, 0, 1)
    for size in ((224, 224), (40, 300), (251, 333)): assert torch.equal(resize(pixels, *size), resize(pixels.contiguous(), *size))


def test_seeded_boxes_stay_the_same():
    "A change of the numbers would silently change every recorded run"
    boxes = [random_box(375, 500, photographs._draws(seed, b"", 1)[0]) for seed in (0, 1, 2 ** 62)]
    assert boxes == BOXES


BOXES = [(31, 151, 304, 344), (25, 122, 322, 263), (114, 107, 243, 313)]


def test_wrong_arguments(photos):
    data = encoded(picture())
    for options, word in (({"size": 0}, "size"), ({"size": 9.5}, "size"), ({"crop": "center"}, "crop"), ({"scale": (0.5, 0.2)}, "scale"),
                          ({"scale": (0.0, 1.0)}, "scale"), ({"ratio": (0, 1)}, "ratio"), ({"workers": -1}, "workers")):
        refusal(ValueError, lambda: replace(photos, **options), word)
        if word != "workers": refusal(ValueError, lambda: decode(data, **options), word)
    for options, word in (({"labels": torch.zeros(9, dtype=torch.int64)}, "labels"), ({"labels": torch.zeros(10)}, "labels"),
                          ({"labels": torch.full((10,), 2)}, "labels"), ({"classes": []}, "classes"),
                          ({"paths": [], "labels": torch.zeros(0, dtype=torch.int64)}, "paths")):
        refusal(ValueError, lambda: replace(photos, **options), word)


# a set ------------------------------------------------------------------------------------------

def stack(data, order, seed=0): return torch.stack([images for images, _ in data.batches(order, seed)])


ORDER = torch.tensor([[[0, 7], [3, 3]], [[9, 1], [5, 2]], [[4, 4], [8, 6]]])


def test_any_number_of_workers_gives_the_same_bits(photos):
    alone = stack(replace(photos, workers=0), ORDER, 5)
    assert alone.shape == (3, 2, 2, 3, 24, 24) and alone.is_contiguous()
    for workers in (1, 2): assert torch.equal(stack(replace(photos, workers=workers), ORDER, 5), alone)
    assert torch.equal(stack(photos, ORDER[1:], 5), alone[1:])                       # resumed
    assert torch.equal(photos.batch(ORDER[2], 5)[0], alone[2])
    assert torch.equal(stack(photos, list(ORDER), 5), alone)
    assert not torch.equal(stack(photos, ORDER, 6), alone)
    assert not torch.equal(alone[0, 1, 0], alone[0, 1, 1])                           # one photograph, two boxes
    for row, (_, labels) in zip(ORDER, photos.batches(ORDER)): assert torch.equal(labels, photos.labels[row])


def test_a_fresh_process_gives_the_same_bits(photos):
    code = f"""
        import torch
        from arcbook.photographs import PhotoSet
        data = PhotoSet({str(photos.root)!r}, {[os.fsdecode(p) for p in photos.paths]!r}, torch.arange(10) // 5, ["a b", "c"], size=24,
                        crop="resized", workers=1)
        if __name__ == "__main__":
            torch.multiprocessing.set_start_method("spawn")
            print(sum(int(images.long().sum()) for images, _ in data.batches(torch.arange(10).view(5, 2), 2 ** 62)))
    """
    path = photos.root / "spawn.py"
    path.write_text(textwrap.dedent(code))
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert int(result.stdout) == sum(int(images.long().sum()) for images, _ in photos.batches(torch.arange(10).view(5, 2), 2 ** 62))


def test_subset_counts_digest(photos):
    assert photos.counts().tolist() == [5, 5] and len(photos) == 10 and photos.num_classes == 2
    mask = torch.zeros(10, dtype=torch.bool); mask[[2, 7]] = True
    for pick in (torch.tensor([2, 7]), [2, 7], mask, slice(2, 10, 5)):
        part = photos.subset(pick)
        assert part.labels.tolist() == [0, 1] and [part.path(i).name for i in (0, 1)] == ["2.jpg", "7.jpg"]
    assert torch.equal(part.batch([1])[0].shape and replace(part, crop="whole").batch([1])[0], replace(photos, crop="whole").batch([7])[0])
    digest = photos.digest()
    assert digest == replace(photos, name="x", workers=0).digest() == photos.subset(slice(None)).digest() and len(digest) == 12
    others = [photos.subset([0, 1]), photos.subset([1, 0]), replace(photos, size=25), replace(photos, crop="whole"),
              replace(photos, labels=1 - photos.labels)]
    assert len({digest, *(other.digest() for other in others)}) == 6
    (photos.root / "c" / "7.jpg").write_bytes(b"short")
    assert digest == photos.digest() != replace(photos).digest()                     # asked once per object
    (photos.root / "c" / "7.jpg").unlink()
    refusal(FileNotFoundError, replace(photos, repair="arcbook data birds").digest, "7.jpg is missing", "run `arcbook data birds`")


def test_indices_outside_are_refused_at_once(photos):
    for wrong in ([10], [-11], [[0, 10]]):
        with pytest.raises(IndexError, match="below 10"): photos.batch(wrong)
        with pytest.raises(IndexError, match="below 10"): photos.batches([wrong])
    refusal(ValueError, lambda: photos.batch(torch.zeros(2)), "indices")
    assert torch.equal(replace(photos, crop="centre").batch([-1])[0], replace(photos, crop="centre").batch([9])[0])


def test_in_memory(photos):
    data = replace(photos, crop="centre").in_memory()
    assert isinstance(data, ImageSet) and data.images.shape == (10, 3, 24, 24) and data.classes == photos.classes
    assert torch.equal(data.batch(ORDER[0])[0], replace(photos, crop="centre").batch(ORDER[0])[0])
    photos.in_memory()


def test_device(photos):
    assert photos.to("cpu") is photos
    if torch.cuda.is_available():
        moved = photos.to("cuda")
        for (here, _), (there, labels) in zip(photos.batches(ORDER, 1), moved.batches(ORDER, 1)):
            assert there.device.type == labels.device.type == "cuda" and torch.equal(there.cpu(), here)


# worker processes -------------------------------------------------------------------------------

def gone(processes, seconds=5): return not psutil.wait_procs(list(processes), timeout=seconds)[1]


def test_workers_stay_for_the_next_epoch_and_go_with_the_set(photos):
    before, data = children(), replace(photos)
    stack(data, ORDER)
    workers = children() - before
    assert len(workers) == 2
    for epoch in range(3): stack(data, ORDER, epoch)
    for _ in data.batches(ORDER): break                              # left early
    assert torch.equal(stack(data, ORDER, 1), stack(replace(photos, workers=0), ORDER, 1))
    assert children() - before == workers
    del data
    assert gone(workers) and children() <= before


def test_two_streams_at_once(photos):
    before, alone = children(), replace(photos, workers=0)
    pairs = list(zip(photos.batches(ORDER, 1), photos.batches(ORDER, 2)))
    assert torch.equal(torch.stack([a[0] for a, _ in pairs]), stack(alone, ORDER, 1))
    assert torch.equal(torch.stack([b[0] for _, b in pairs]), stack(alone, ORDER, 2))
    assert len(children() - before) <= 2


def test_a_damaged_photograph_is_one_sentence(photos):
    before, broken = children(), photos.root / "a b" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    for data in (photos, replace(photos, workers=0)):
        refusal(ValueError, lambda: stack(data, ORDER), broken, "is damaged", "put the file back")
    refusal(ValueError, lambda: stack(replace(photos, repair="arcbook data birds"), ORDER), broken, "run `arcbook data birds` to restore it")
    assert gone(children() - before)
    broken.unlink()
    refusal(FileNotFoundError, lambda: stack(photos, ORDER), broken, "is missing")
    broken.write_bytes((photos.root / "a b" / "2.jpg").read_bytes())
    assert stack(photos, ORDER).shape[0] == 3                        # repaired: goes on


def test_a_killed_worker_is_one_sentence(photos):
    before, stream = children(), photos.batches(ORDER[:1].repeat(200, 1, 1))
    next(stream)
    for process in children() - before: process.kill()
    refusal(RuntimeError, lambda: list(stream), "has died", "workers=0")
    assert stack(photos, ORDER).shape[0] == 3


def test_a_set_with_running_workers_can_be_copied(photos):
    import copy, pickle
    stack(photos, ORDER)
    for other in (copy.deepcopy(photos), pickle.loads(pickle.dumps(photos))):
        assert torch.equal(other.batch(ORDER[0])[0], photos.batch(ORDER[0])[0])


def test_ctrl_c_leaves_no_process(photos):
    code = f"""
        import sys, torch, psutil
        from arcbook.photographs import PhotoSet
        data = PhotoSet({str(photos.root)!r}, {[os.fsdecode(p) for p in photos.paths]!r}, torch.arange(10) // 5, ["a b", "c"], workers=2)
        try:
            for i, _ in enumerate(data.batches(torch.zeros(10 ** 5, 8, dtype=torch.int64))):
                if i == 3: print(*[p.pid for p in psutil.Process().children()], flush=True)
        except KeyboardInterrupt: sys.exit(9)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    os.killpg(process.pid, signal.SIGINT)                            # as a terminal does: to all of them
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 9
    assert not errors or "resource_sharer" in errors, errors         # a thread of Python's own may die talking
    assert len(workers) == 2 and gone(workers)


def test_memory_does_not_grow(photos):
    "In a process of its own: parent and workers after many epochs hold what they held after a few"
    code = f"""
        import os, psutil, torch
        from arcbook.photographs import PhotoSet
        from arcbook.views import Augment
        data = PhotoSet({str(photos.root)!r}, {[os.fsdecode(p) for p in photos.paths]!r}, torch.arange(10) // 5, ["a b", "c"],
                        size=160, crop="resized", workers=2)
        order, augment, me = torch.arange(10).repeat(10).view(5, 20), Augment(flip=True), psutil.Process()
        for epoch in range(25):
            for images, _ in data.batches(order, epoch): augment(images)
            print(sum(p.memory_full_info().uss for p in (me, *me.children(recursive=True))) / 1e6)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120)
    sizes = [float(size) for size in done.stdout.split()]
    assert len(sizes) == 25 and max(sizes[15:]) - max(sizes[3:8]) < 15, [round(s) for s in sizes]


# sets on disk -----------------------------------------------------------------------------------

@pytest.fixture
def root(photos):
    folder = photos.root.parent
    write = lambda split, index: (folder / f"{split}.txt").write_text("\r\n".join(f"{os.fsdecode(photos.paths[i])} {i // 5}" for i in index))
    write("train_10", [0, 1, 2, 5, 6, 7]), write("train_1i", [0, 5]), write("test", [3, 4, 8])
    (folder / "official_README.txt").write_text("not a list\n"), (folder / "classes.txt").write_text("1 a\n")
    return folder.parent


def test_names_and_splits(root):
    assert photo_splits(root / "birds") == ["train_10", "train_1i", "test"]
    assert photo_splits(root / "nothing") == [] and photo_classes(root / "birds") == ["a b", "c"]
    for name, split, found, n in (("birds", "train", "birds-10", 6), ("birds-10", "train", "birds-10", 6), ("birds", "test", "birds", 3),
                                  ("birds-1i", "train", "birds-1i", 2), ("birds", "train_1i", "birds-1i", 2), ("birds-1i", "test", "birds", 3)):
        data = read_photographs(name, split, root, size=16, workers=0)
        assert (data.name, len(data), data.size) == (found, n, 16) and data.batch([0])[0].shape == (1, 3, 16, 16)
    (root / "birds" / "train_100.txt").write_text("a b/0.jpg 0")
    assert read_photographs("birds", root=root).name == "birds-100"
    (root / "birds" / "train.txt").write_text("a b/0.jpg 0\nc/5.jpg 1")
    assert read_photographs("birds", root=root).name == "birds"


def test_missing_sets_and_splits(root):
    refusal(FileNotFoundError, lambda: read_photographs("cars", root=root), "'cars' is missing", root / "cars" / "train.txt", "ARCBOOK_DATA")
    refusal(FileNotFoundError, lambda: read_photographs("cars-10", root=root, repair="arcbook data cars"), "run `arcbook data cars`")
    refusal(ValueError, lambda: read_photographs("birds", "val", root), "no split 'val'", "train_10, train_1i, test")
    refusal(FileNotFoundError, lambda: read_photographs("birds-77", root=root), "'birds-77' is missing")
    (root / "birds" / "train_1i.txt").write_text("a b/0.jpg 0\nbroken\n")
    refusal(ValueError, lambda: read_photographs("birds-1i", root=root), "train_1i.txt", "line 2")


def test_class_names(root):
    folder = root / "birds"
    (folder / "classes.json").write_text(json.dumps(["gull", "wren", "unseen"]))
    assert read_photographs("birds", root=root).classes == ["gull", "wren", "unseen"]
    (folder / "classes.json").write_text(json.dumps(["gull"]))
    refusal(ValueError, lambda: read_photographs("birds", root=root), "train_10.txt", "line 4", "below 1")
    (folder / "classes.json").unlink()
    (folder / "test.txt").write_text("c/5.jpg 0\n")                     # one folder, two classes
    assert photo_classes(folder) == ["0", "1"]
    (folder / "test.txt").write_text("5.jpg 4\n")                       # no folder; classes 2 and 3 without photograph
    assert photo_classes(folder) == ["0", "1", "2", "3", "4"]


@pytest.mark.skipif(not photo_splits(data_root() / "cub50"), reason="cub50 is not there")
def test_cub50():
    birds, one, test = read_photographs("cub50"), read_photographs("cub50-1i"), read_photographs("cub50", "test")
    assert birds.name == "cub50-10" and birds.counts().tolist() == [3] * 50 and one.counts().tolist() == [1] * 50
    assert len(test) == 1389 and test.num_classes == 50 and test.classes[49] == "050.Eared_Grebe"
    assert birds.labels[-1] == 49                                    # bug B1 makes it 4
    images = torch.cat([images for images, _ in replace(birds, size=96, workers=2).batches(torch.arange(150).view(3, 50))])
    assert images.shape == (150, 3, 96, 96) and 80 < images.float().mean() < 160
