"What the scripts of this folder share: careful unpickling, AD-Net's lists, a user's own ImageNet."
import os, pickle, re, shutil, sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

try: import arcbook
except ImportError: sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # a clone that is not installed
from arcbook.archives import ArchiveError, unpack
from arcbook.prepare import File, write_classes, write_list


# files ------------------------------------------------------------------------------------------

def read_rows(path):
    "(path, label) of every line of somebody's list file, whatever its line ends"
    from arcbook.photographs import read_list    # needs torch, which asking for help should not
    paths, labels = read_list(path)
    return list(zip(paths, labels.tolist()))


@contextmanager
def unpacked(archive, staging, limit):
    "A folder with the contents of an archive, removed afterwards: what is to stay is moved out of it"
    folder = staging.parent / "unpacked"
    unpack(archive, folder, limit)
    try: yield folder
    finally: shutil.rmtree(folder, ignore_errors=True)


# pickles ----------------------------------------------------------------------------------------

class _Plain(pickle.Unpickler):
    "Lists, dicts, texts, numbers and NumPy arrays of numbers; anything else could run code and is refused"
    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return np.zeros(1).__reduce__()[0] if name == "_reconstruct" else np.float64(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"): return getattr(np, name)
        raise pickle.UnpicklingError(f"it wants to use {module}.{name}")


def plain_pickle(path):
    "What a pickle of plain data holds, texts of Python 2 as latin-1. `ArchiveError` where it wants to run code"
    with open(path, "rb") as file:
        try: return _Plain(file, encoding="latin1").load()
        except Exception as error:            # the bytes are not trusted: a damaged stream can raise anything
            raise ArchiveError(f"{path} is refused: {' '.join(str(error).split()) or type(error).__name__}") from error


# AD-Net's fixed low-data lists ------------------------------------------------------------------

# 43d635a is the authors' last commit; 7c09db2 the one that brought the lists
ADNET = tuple(f"https://raw.githubusercontent.com/demidovd98/fgic_lowd/{commit}/datasets/"
              for commit in ("43d635a", "7c09db28310ae15a9a6bf49cee8d80ef2b4f4906"))


def adnet_lists(name, folder, lists):
    "A `File` for each of AD-Net's lists; `lists` maps a split to its (bytes, sha256)"
    return tuple(File(f"{name}-{split}.txt", tuple(f"{base}{folder}/low_data/{split}.txt" for base in ADNET), size,
                      f"sha256:{digest}") for split, (size, digest) in lists.items())


def write_adnet_lists(files, staging, name, truth):
    "The lists of a set, with every label compared with `truth`: {split of the publisher: {path: label}}"
    for file in [f for f in files if f.startswith(f"{name}-")]:
        split = file.removeprefix(f"{name}-").removesuffix(".txt")
        rows, official = read_rows(files[file]), truth["test" if split == "test" else "train"]
        wrong = [path for path, label in rows if official.get(path) != label]
        if wrong: raise ValueError(f"{file}: {wrong[0]} is not labelled so by the publisher of the photographs")
        write_list(staging, split, rows, 1 + max(official.values()))


# a user's own ImageNet --------------------------------------------------------------------------

IMAGENET = dict(
    homepage="https://image-net.org/download-images",
    licence="ImageNet's terms of access, which you must have accepted yourself: non-commercial research and education",
    manual="ask for access at https://image-net.org/download-images, fetch ILSVRC2012_img_train.tar (147.9 GB, md5 "
           "1d675b47d978889d74fa0da5fadfb00e) and ILSVRC2012_img_val.tar (6.7 GB, md5 "
           "29b22e2961454d5413ddabcf34fc5622), unpack them to FOLDER/train/<wnid>/*.JPEG and FOLDER/val/ (flat or one "
           "folder per class; torchvision.datasets.ImageNet does both), then add --from FOLDER")
OWN = (File("train", note="a folder of yours: 1000 folders of photographs"), File("val", note="a folder of yours"))
CLASSES = 1000


class ImageNet:
    "The photographs of a user, linked, not copied: `images/train` and `images/val` lead to where they are"
    def __init__(self, files, staging):
        self.folders = {part: Path(files[part]).resolve() for part in ("train", "val")}
        (staging / "images").mkdir()
        for part, folder in self.folders.items(): (staging / "images" / part).symlink_to(folder)
        self.staging, self.names = staging, {}
        self.wnids = sorted(e.name for e in os.scandir(self.folders["train"]) if re.fullmatch(r"n\d{8}", e.name))
        if len(self.wnids) != CLASSES:
            raise ValueError(f"{self.folders['train']} holds {len(self.wnids)} class folders instead of {CLASSES}")
        self.label = {wnid: k for k, wnid in enumerate(self.wnids)}
        self.flat = not (self.folders["val"] / self.wnids[0]).is_dir()
        write_classes(staging, imagenet_classes())

    def content(self, part, wnid=""):
        "Names of the photographs in a folder, read once"
        if (part, wnid) not in self.names:
            found = os.scandir(self.folders[part] / wnid)
            self.names[part, wnid] = {e.name for e in found if e.name.lower().endswith((".jpeg", ".jpg"))}
        return self.names[part, wnid]

    def path(self, part, wnid, name): return f"val/{name}" if part == "val" and self.flat else f"{part}/{wnid}/{name}"

    def present(self, path):
        part, *wnid, name = path.split("/")
        return name in self.content(part, *wnid)

    def write(self, split, named):
        "A list from triples (train or val, wnid, file name)"
        rows = [(self.path(*triple), self.label[triple[1]]) for triple in named]
        write_list(self.staging, split, rows, CLASSES, self.present)

    def write_list(self, split, path):
        "A list from one with lines `train/<wnid>/<name> <label>`, whose labels must be places in the order of wnids"
        rows = [(path.split("/"), label) for path, label in read_rows(path)]
        wrong = [triple for triple, label in rows if self.label.get(triple[1]) != label]
        if wrong: raise ValueError(f"{path}: {'/'.join(wrong[0])} has a label that is not the place of its wnid")
        self.write(split, [triple for triple, _ in rows])


def imagenet_classes():
    "The 1000 names in the order of wnids, as torchvision has them"
    from torchvision.models import ResNet18_Weights
    return ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
