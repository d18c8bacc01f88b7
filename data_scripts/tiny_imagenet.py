"""Tiny ImageNet: 200 classes of ImageNet at 64 x 64 pixels, 500 training images each; and a fixed subset of 50 each.

Made for Stanford's course CS231n; ImageNet's terms hold. The labels of its own test images were never published, so
`test` here is the official validation set (50 images per class), as in most papers. Images are in the order of their
file names, read as text, class by class for training (`n01443537_0, n01443537_1, n01443537_10, ...`). Classes are in
the order of their WordNet numbers, with the first name that words.txt gives them.

`tiny-imagenet-50` holds the same images as `tiny-imagenet-few:50`: `few_per_class_indices(labels, 50, seed=0)`. It is
the nearest freely available thing to the VIPriors challenge (50 images per class, trained from scratch). Subsets of the
same name that others made may hold other images; the digest of the split in a run's record tells them apart.
The md5 is one that many public loaders agree on; the publisher states none.
"""
from functools import partial

import numpy as np

from _shared import unpacked
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_arrays, write_classes

ZIP = File("tiny-imagenet-200.zip", ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                                     "https://cs231n.stanford.edu/tiny-imagenet-200.zip"),
           248_100_043, "md5:90528d7ca1a48142e341f4ef8d21d0de")


def read_images(paths):
    "uint8 [N, 64, 64, 3]; some of the files are grey"
    from PIL import Image
    out = np.empty((len(paths), 64, 64, 3), np.uint8)
    for i, path in enumerate(paths):
        with Image.open(path) as image: out[i] = image.convert("RGB")
    return out


def prepare(files, staging, per_class=None):
    from arcbook.sampling import few_per_class_indices
    with unpacked(files[ZIP.name], staging, limit=10 ** 9) as folder:
        folder = folder / "tiny-imagenet-200"
        wnids = sorted((folder / "wnids.txt").read_text().split())
        places = [folder / "train" / wnid / "images" for wnid in wnids]
        train = [(path, k) for k, place in enumerate(places) for path in sorted(place.iterdir())]
        if per_class: train = [train[i] for i in few_per_class_indices([k for _, k in train], per_class, seed=0)]
        lines = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
        test = [(folder / "val" / "images" / line[0], wnids.index(line[1])) for line in sorted(lines)]
        for split, rows in {"train": train, "test": test}.items():
            paths, labels = zip(*rows)
            write_arrays(staging, split, read_images(paths), labels)
        words = dict(line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
        write_classes(staging, [words[wnid].split(",")[0] for wnid in wnids])


ABOUT = dict(
    homepage="http://cs231n.stanford.edu/", licence="ImageNet's terms: non-commercial research and education",
    citation="Ya Le and Xuan Yang, Tiny ImageNet Visual Recognition Challenge, CS231n course report, Stanford, 2015",
    files=(ZIP,), disk=2_500_000_000)

RECIPES = (
    Recipe("tiny-imagenet", "Tiny ImageNet, 64 x 64 photographs of 200 classes", prepare=prepare,
           splits={"train": 100_000, "test": 10_000}, **ABOUT),
    Recipe("tiny-imagenet-50", "Tiny ImageNet with 50 training images per class",
           prepare=partial(prepare, per_class=50), splits={"train": 10_000, "test": 10_000}, **ABOUT))

if __name__ == "__main__": command(*RECIPES)
