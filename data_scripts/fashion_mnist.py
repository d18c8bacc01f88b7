"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, 10 classes, 60,000 for training.

By Zalando Research, MIT licence. Four gzipped files in the idx format of MNIST; the grey value is written to all three
channels. md5 and addresses are torchvision's, sizes those of TensorFlow Datasets.
"""
import gzip

import numpy as np

import _shared    # finds arcbook in a clone that is not installed
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_arrays, write_classes

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS = {"train": "train", "test": "t10k"}
MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
           "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/")


def read_idx(path, ndim, limit=10 ** 8):
    "uint8 array of a gzipped idx file. `ValueError` where header and contents do not fit"
    with gzip.open(path) as file: content = file.read(limit)
    shape = np.frombuffer(content, ">i4", ndim, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if content[:4] != bytes([0, 0, 8, ndim]) or shape.prod(dtype=np.int64) != len(values):
        raise ValueError(f"{path} is no idx file of bytes with {ndim} axes")
    return values.reshape(shape)


def prepare(files, staging):
    for split, part in PARTS.items():
        images = read_idx(files[f"{part}-images-idx3-ubyte.gz"], 3)
        labels = read_idx(files[f"{part}-labels-idx1-ubyte.gz"], 1)
        write_arrays(staging, split, np.repeat(images[..., None], 3, axis=3), labels)
    write_classes(staging, CLASSES)


RECIPES = (Recipe(
    "fashion_mnist", "Fashion-MNIST, 28 x 28 grey pictures of 10 kinds of clothes",
    homepage="https://github.com/zalandoresearch/fashion-mnist", licence="MIT",
    citation="Han Xiao, Kashif Rasul and Roland Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking "
             "Machine Learning Algorithms, arXiv:1708.07747, 2017",
    files=tuple(File(name, tuple(mirror + name for mirror in MIRRORS), size, f"md5:{md5}") for name, size, md5 in (
        ("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"))),
    prepare=prepare, disk=170_000_000, splits={"train": 60_000, "test": 10_000}),)

if __name__ == "__main__": command(*RECIPES)
