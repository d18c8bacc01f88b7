"""VIPriors image classification: 50 training photographs for each of ImageNet's 1000 classes, nothing else allowed.

The data of the challenge that Attract-and-Repulse entered in 2021. The organisers hand out no photographs but three
lists for your own copy of ImageNet (see imagenet.py): `train` and `val`, 50 per class each and without overlap, both
from ImageNet's training set; `trainval` is both (the organisers allow training on `val`); `test` is all of ILSVRC's
validation set, in the organisers' order. Its labels follow from the lists: never tune on them.
`cvjena/deic` calls another subset (30 + 20 per class) "ImageNet" with 50 per class: not these data.

The lists are Python pickles, read without letting them run anything. Nobody publishes their hashes: the number of
photographs per class and that no two lists share one are checked instead.
"""
from collections import Counter

from _shared import IMAGENET, OWN, ImageNet, plain_pickle
from arcbook.archives import ArchiveError
from arcbook.download import command
from arcbook.prepare import File, Recipe

# 98e9539 is the state of January 2022; e037380 the commit that brought the lists
TOOLKIT = tuple(f"https://raw.githubusercontent.com/VIPriors/vipriors-challenges-toolkit/{commit}/image-classification/"
                for commit in ("98e9539", "e0373805bae76434f3a0e78ab4793f795343aa6a"))


def prepare(files, staging):
    own = ImageNet(files, staging)
    train, val, test = (plain_pickle(files[f"vipriors-{part}.pickle"]) for part in ("train", "val", "test"))
    train, val = ([("train", str(row[0]), str(row[1])) for row in rows] for rows in (train, val))
    test = [("val", *str(row).split("/")[-2:]) for row in test]
    for split, rows in {"train": train, "val": val, "test": test}.items():
        counts = Counter(wnid for _, wnid, _ in rows)
        if sorted(counts) != own.wnids or set(counts.values()) != {50}:
            raise ArchiveError(f"{split} does not name 50 photographs of every class")
        own.write(split, rows)
    if set(train) & set(val): raise ArchiveError("train and val share photographs")
    own.write("trainval", train + val)


RECIPES = (Recipe(
    "vipriors", "VIPriors image classification challenge, 50 photographs per class of ImageNet",
    citation="A. Lengyel et al., VIPriors 2: Visual Inductive Priors for Data-Efficient Deep Learning Challenges, "
             "arXiv:2201.08625, 2022; O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, "
             "International Journal of Computer Vision 115(3), 2015",
    files=(*OWN, *(File(f"vipriors-{part}.pickle", tuple(f"{base}{part}.pickle" for base in TOOLKIT))
                   for part in ("train", "val", "test"))),
    prepare=prepare, disk=30_000_000, splits={"train": 50_000, "val": 50_000, "trainval": 100_000, "test": 50_000},
    **IMAGENET),)

if __name__ == "__main__": command(*RECIPES)
