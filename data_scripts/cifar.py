"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32 x 32 pixels, 50,000 for training, in 10 and 100 classes.

Alex Krizhevsky labelled them out of the 80 Million Tiny Images (which its makers withdrew in 2020). The page states no
licence. Images keep the official order, on which index lists such as those of CIFAR-100-LT rest; CIFAR-100 gets its 100
fine labels. The archives hold Python pickles: they are read without letting them run anything.
Sizes and md5 are those of torchvision and of the publisher's page.
"""
import numpy as np

from _shared import plain_pickle, unpacked
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_arrays, write_classes


def prepare(archive, batches, labels, meta, names):
    "A function that turns `archive` into the prepared form; `batches` maps a split to its pickles"
    def prepare(files, staging):
        with unpacked(files[archive], staging, limit=10 ** 9) as folder:
            folder, = folder.iterdir()
            for split, parts in batches.items():
                content = [plain_pickle(folder / part) for part in parts]
                pixels = np.concatenate([part["data"] for part in content]).reshape(-1, 3, 32, 32)
                write_arrays(staging, split, pixels.transpose(0, 2, 3, 1), sum((part[labels] for part in content), []))
            write_classes(staging, plain_pickle(folder / meta)[names])
    return prepare


ABOUT = dict(
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated by the publisher",
    citation="Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009",
    disk=400_000_000, splits={"train": 50_000, "test": 10_000})

RECIPES = (
    Recipe("cifar10", "CIFAR-10, 32 x 32 photographs of 10 classes", files=(
        File("cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 170_498_071,
             "md5:c58f30108f718f92721af3b95e74349a"),), prepare=prepare(
        "cifar-10-python.tar.gz", {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]},
        "labels", "batches.meta", "label_names"), **ABOUT),
    Recipe("cifar100", "CIFAR-100, 32 x 32 photographs of 100 classes", files=(
        File("cifar-100-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", 169_001_437,
             "md5:eb9058c3a382ffc7106e4002c42a8d85"),), prepare=prepare(
        "cifar-100-python.tar.gz", {"train": ["train"], "test": ["test"]}, "fine_labels", "meta", "fine_label_names"),
        **ABOUT))

if __name__ == "__main__": command(*RECIPES)
