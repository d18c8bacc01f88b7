"""How fast do the loaders feed training, and does their memory grow? One table from one run on this machine.

    python benchmarks/loaders.py [equal_sized] [photographs] [photographs_jitter] [--workers 2] [--batch 256] [--repeats 5] [--epochs 10] [--device cpu]

`equal_sized`: CIFAR-100 (from ARCBOOK_DATA; without it 50,000 images of noise of the same size) through arcbook's loader and batched views,
and through torchvision's CIFAR100 with a DataLoader and its per-image transforms; both crop from 4 pixels of padding, flip, normalise.
Both get the same cores: torchvision that many worker processes, arcbook that many threads. Rates are medians over alternating epochs.

`photographs`, `photographs_jitter`: 512 JPEG files of 500 x 375 through arcbook's PhotoSet (decoder: torchvision's decode_jpeg) with batched
views, and through torchvision's ImageFolder (decoder: Pillow) with a DataLoader and its per-image transforms; both with that many workers,
both cut a random box to 224, flip, jitter if asked, and normalise, in batches of at most 32, as fine-tuning uses.
"""
import argparse, json, os, pickle, platform, statistics, sys, tempfile, time
from pathlib import Path
from typing import NamedTuple

if "torch" not in sys.modules: os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")   # as `arcbook` does: threads that wait, sleep

import numpy as np
import torch

from arcbook.datasets import data_root, load, read_prepared
from arcbook.images import ImageSet, _with
from arcbook.photographs import PhotoSet
from arcbook.profiles import PROFILES
from arcbook.views import IMAGENET, Augment

MEAN, STD = PROFILES["cifar100"].mean, PROFILES["cifar100"].std


class Row(NamedTuple):
    loader: str
    rate: float       # images per second, median
    slowest: float
    fastest: float
    growth: float     # MB of memory that the last epoch uses more than the second, with all worker processes


def memory() -> float:
    "MB in use by this process and its children: proportional set size on Linux, so that shared pages count once"
    def family(pid):
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [pid] + [c for child in (children.read_text().split() if children.exists() else []) for c in family(int(child))]
    def size(pid):
        try: return next(int(line.split()[1]) for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:")) / 1024
        except (OSError, StopIteration): return 0.0
    return sum(map(size, family(os.getpid())))


def measure(loaders: dict, repeats: int, epochs: int, device="cpu") -> list:
    "Rows for `{name: epoch}`, where `epoch(number)` runs one epoch and returns how many images it delivered"
    rates, growth = {name: [] for name in loaders}, {}
    for name, epoch in loaders.items(): epoch(0)                            # warm-up: files cached, workers started
    for number in range(1, repeats + 1):
        for name, epoch in loaders.items():                                 # alternating: a busy minute hits all alike
            started = time.perf_counter()
            images = epoch(number)
            if torch.device(device).type == "cuda": torch.cuda.synchronize()
            rates[name].append(images / (time.perf_counter() - started))
    for name, epoch in loaders.items():
        used = [(epoch(number), memory())[1] for number in range(repeats, repeats + max(epochs, 2))]
        growth[name] = used[-1] - used[1 if len(used) > 2 else 0]
    return [Row(name, statistics.median(r), min(r), max(r), growth[name]) for name, r in rates.items()]


def table(rows: list, against: str) -> str:
    "Rates, their ratio to the row called `against`, and growth of memory"
    base = next(row.rate for row in rows if row.loader == against)
    lines = [f"{'loader':<44}{'images/s':>12}{'slowest':>11}{'fastest':>11}{'ratio':>8}{'growth':>10}"]
    for row in rows:
        lines.append(f"{row.loader:<44}{row.rate:>12,.0f}{row.slowest:>11,.0f}{row.fastest:>11,.0f}"
                     f"{row.rate / base:>8.2f}{row.growth:>7.1f} MB")
    return "\n".join(lines)


def machine() -> str:
    import torchvision
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line] if Path("/proc/cpuinfo").exists() else []
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{gpu}; {torch.get_num_threads()} threads; Python "
            f"{platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}")


# equal-sized images -----------------------------------------------------------------------------

def noise(folder: Path, count: int, size=32, classes=100) -> Path:
    "A set of noise in prepared form, for machines without CIFAR-100; returns its data root"
    place = folder / "noise" / "train"
    place.mkdir(parents=True)
    stream = np.random.RandomState(0)
    np.save(place / "images.npy", stream.randint(0, 256, (count, size, size, 3), dtype=np.uint8))
    np.save(place / "labels.npy", np.arange(count) % classes)
    (folder / "noise" / "classes.json").write_text(json.dumps([f"class {k}" for k in range(classes)]))
    return folder


def torchvision_cifar100(data: ImageSet, folder: Path, transform):
    "torchvision's own CIFAR100 on the images of `data`: its pickled files are written to `folder` first"
    from torchvision.datasets import CIFAR100
    class Local(CIFAR100):                       # the same code; the files are ours, so their hashes are not the published ones
        train_list, test_list = [["train", None]], [["test", None]]
        meta = dict(CIFAR100.meta, md5=None)
    place = folder / CIFAR100.base_folder
    place.mkdir(parents=True, exist_ok=True)
    pixels = data.images.reshape(len(data), -1).numpy()          # a row is red, green, blue
    content = {"data": pixels, "fine_labels": data.labels.tolist()}
    for name, values in {"train": content, "test": content, "meta": {"fine_label_names": data.classes}}.items():
        with open(place / name, "wb") as file: pickle.dump(values, file)
    return Local(folder, train=True, transform=transform)


def transforms(random: bool):
    from torchvision import transforms as t
    chance = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()] if random else []
    return t.Compose([*chance, t.ToTensor(), t.Normalize(MEAN, STD)])


def check_same(data: ImageSet, dataset, plain) -> None:
    "Without chance both sides deliver the same numbers"
    index = torch.arange(0, len(data), max(1, len(data) // 64))
    images, labels = data.batch(index)
    theirs = [dataset[int(i)] for i in index]
    assert labels.tolist() == [label for _, label in theirs]
    assert torch.allclose(plain(images), torch.stack([image for image, _ in theirs]), atol=1e-5)


def equal_sized(workers=2, batch=256, repeats=5, epochs=10, device="cpu", root=None, count=None) -> list:
    "Rows for arcbook, mapped and whole in memory (or on the device), and for torchvision with a DataLoader"
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        if not root and (data_root() / "cifar100").is_dir(): mapped = load("cifar100", "train")
        else: mapped = read_prepared("noise", "train", noise(home, count or 50_000))
        if count: mapped = mapped.subset(slice(0, count))
        whole = ImageSet(mapped.images.contiguous(), mapped.labels, mapped.classes).to(device)
        if torch.device(device).type != "cpu": mapped = _with(mapped, feeds=torch.device(device))   # as if it did not fit
        check_same(mapped, torchvision_cifar100(mapped, home, transforms(False)), Augment(mean=MEAN, std=STD).plain)
        theirs = torchvision_cifar100(mapped, home, transforms(True))
        loader = torch.utils.data.DataLoader(theirs, batch, shuffle=True, drop_last=True, num_workers=workers,
                                             persistent_workers=workers > 0, pin_memory=torch.device(device).type == "cuda")
        augment = Augment(crop=("pad", 4), flip=True, pad_mode="zeros", mean=MEAN, std=STD)

        def ours(data):
            def epoch(number):
                generator = torch.Generator(device).manual_seed(number)
                steps = len(data) // batch
                order = torch.randperm(len(data), generator=torch.Generator().manual_seed(number))[:steps * batch].view(steps, batch)
                for images, labels in data.batches(order): augment(images, generator)
                return order.numel()
            return epoch

        def dataloader(number):
            images = 0
            for x, y in loader: images += len(x.to(device, non_blocking=True))
            return images

        name = f"torchvision CIFAR100, DataLoader, {workers} workers"
        return measure({name: dataloader, "arcbook, memory-mapped, read ahead": ours(mapped),
                        f"arcbook, whole set in memory ({device})": ours(whole)}, repeats, epochs, device)


# photographs ------------------------------------------------------------------------------------

def write_photographs(folder: Path, count: int, wide=500, high=375) -> tuple:
    "JPEG files of the size of ImageNet's, random parts of scikit-learn's two real photographs; paths and labels"
    from PIL import Image
    from sklearn.datasets import load_sample_image
    stream, paths = np.random.RandomState(0), []
    for i in range(count):
        name, part = ("china", "flower")[i % 2], stream.uniform(0.5, 1)
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        w, h = round(photo.width * part), round(photo.height * part)
        left, top = stream.randint(0, photo.width - w + 1), stream.randint(0, photo.height - h + 1)
        paths.append(f"{name}/{i:04d}.jpg")
        (folder / name).mkdir(exist_ok=True)
        photo.crop((left, top, left + w, top + h)).resize((wide, high) if i % 3 else (high, wide)).save(folder / paths[-1], quality=90)
    return paths, torch.arange(count) % 2


def photo_transforms(jitter):
    "torchvision's usual recipe; `Augment` does what follows the crop for the whole batch"
    from torchvision import transforms as t
    colour = [t.ColorJitter(*jitter)] if jitter else []
    return t.Compose([t.RandomResizedCrop(224, (0.2, 1.0)), t.RandomHorizontalFlip(), *colour, t.ToTensor(), t.Normalize(*IMAGENET.values())])


def photographs(workers=2, batch=64, repeats=5, epochs=10, device="cpu", jitter=None, count=512) -> list:
    "Rows for torchvision's ImageFolder with a DataLoader and for PhotoSet: decode, random box to 224, flip, colours, normalise"
    from torchvision.datasets import ImageFolder
    with tempfile.TemporaryDirectory() as temporary:
        paths, labels = write_photographs(Path(temporary), count)
        data = PhotoSet(temporary, paths, labels, ["china", "flower"], crop="resized", workers=workers).to(device)
        files, batch = ImageFolder(temporary, photo_transforms(jitter)), min(batch, 32, count)
        loader = torch.utils.data.DataLoader(files, batch, shuffle=True, drop_last=True, num_workers=workers,
                                             persistent_workers=workers > 0, pin_memory=torch.device(device).type == "cuda")
        augment = Augment(flip=True, jitter=jitter, jitter_p=1.0, **IMAGENET)

        def ours(number):
            generator, steps = torch.Generator(device).manual_seed(number), count // batch
            order = torch.randperm(count, generator=torch.Generator().manual_seed(number))[:steps * batch].view(steps, batch)
            for images, _ in data.batches(order, number): augment(images, generator)
            return order.numel()

        def theirs(number): return sum(len(images.to(device, non_blocking=True)) for images, _ in loader)

        return measure({f"torchvision ImageFolder (Pillow), {workers} workers": theirs,
                        f"arcbook PhotoSet (decode_jpeg), {workers} workers": ours}, repeats, epochs, device)


def photographs_jitter(**options) -> list:
    "The same with colour jitter on every image"
    return photographs(jitter=(0.4, 0.4, 0.4, 0.1), **options)


BENCHMARKS = {"equal_sized": equal_sized, "photographs": photographs, "photographs_jitter": photographs_jitter}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    for name, default in (("workers", 2), ("batch", 256), ("repeats", 5), ("epochs", 10)): parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, help="use only so many images")
    given = parser.parse_args(argv)
    torch.set_num_threads(max(given.workers, 1))
    print(machine())
    for name in given.which or BENCHMARKS:
        rows = BENCHMARKS[name](workers=given.workers, batch=given.batch, repeats=given.repeats, epochs=given.epochs, device=given.device,
                                **({"count": given.count} if given.count else {}))
        print(f"\n{name}\n{table(rows, rows[0].loader)}", flush=True)


if __name__ == "__main__": main()
