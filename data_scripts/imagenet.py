"""ImageNet (ILSVRC 2012) from your own copy, and its fixed subsets: long-tailed, 1 % and 10 %.

Nobody may hand ImageNet on: ask image-net.org for access, unpack the two archives, and name the folder with --from. No
photograph is copied: the prepared sets hold lists, and links to where your photographs are (do not move them later).
Labels are the places of the 1000 WordNet numbers in alphabetical order. `test` is always ILSVRC's validation set, 50
per class (labels of its real test set were never published); it may lie flat or in class folders.

- `imagenet`: 1,281,167 training photographs. CLIM pre-trains on it without labels; CoNe trains on it.
- `imagenet-lt` (Liu et al. 2019): 115,846 photographs, 1280 to 5 per class; `val` (20 per class) is cut from ImageNet's
  training set, too. The usual long-tailed benchmark; whether ICCL reports on it is not known.
- `imagenet-1pct`, `imagenet-10pct`: SimCLR's published lists (file names only: the label is the name's first part),
  12,811 and 128,116 photographs. CLIM's 59.3 % is a fine-tuning on 1 %; that it used these lists is our reading.

sha256 of lists: of the files themselves, the long-tailed training list by TensorFlow Datasets and two others.
VIPriors' subset has a script of its own, vipriors.py.
"""
from _shared import IMAGENET, OWN, ImageNet
from arcbook.download import command
from arcbook.prepare import File, Recipe

GITHUB = "https://raw.githubusercontent.com/"
LT = (GITHUB + "facebookresearch/classifier-balancing/f162adef63fdf592d0b8a0f6e52bc481fc08785f/data/ImageNet_LT/",
      GITHUB + "Vanint/SADE-AgnosticLT/cba11b8b0fb91711eeffd5e45311f321f8a88680/data_txt/ImageNet_LT/")
SIMCLR = GITHUB + "google-research/simclr/be133b38fb21abb77403391dc6db3412edfe92f2/imagenet_subsets/"


def lt_list(split, size, sha256):
    name = f"ImageNet_LT_{split}.txt"
    return File(name, tuple(base + name for base in LT), size, f"sha256:{sha256}")


TRAIN = lt_list("train", 4_658_674, "efdbdad4f050237c310b2f354cf95a8b1d7c8d57a63c4ea4bb6bf2bcb012f37f")
VAL = lt_list("val", 804_172, "9af7ba688acf9532ff5845a8fb14a1e97fdc4c51ac48bc72c08ea9c3f7ff142e")
TEST = lt_list("test", 2_344_500, "d1590191cf8a71fada7b1aaedaa2d139a2aea93ff2f1b755319d0bd8dbaa55d5")


def prepare(files, staging):
    own = ImageNet(files, staging)
    own.write("train", [("train", wnid, name) for wnid in own.wnids for name in sorted(own.content("train", wnid))])
    own.write_list("test", files[TEST.name])


def prepare_lt(files, staging):
    own = ImageNet(files, staging)
    for split in ("train", "val", "test"): own.write_list(split, files[f"ImageNet_LT_{split}.txt"])


def prepare_share(files, staging):
    own = ImageNet(files, staging)
    names, = (path.read_text().split() for name, path in files.items() if name.startswith("simclr"))
    own.write("train", [("train", name.split("_")[0], name) for name in names])
    own.write_list("test", files[TEST.name])


RUSSAKOVSKY = ("O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, International Journal of "
               "Computer Vision 115(3), 2015")
LIU = "Z. Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019"
CHEN = "T. Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020 (lists)"


def share(percent, count, size, sha256):
    list_file = File(f"simclr-{percent}percent.txt", f"{SIMCLR}{percent}percent.txt", size, f"sha256:{sha256}")
    return Recipe(f"imagenet-{percent}pct", f"{percent} % of ImageNet, SimCLR's list",
                  citation=f"{RUSSAKOVSKY}; {CHEN}", files=(*OWN, list_file, TEST), prepare=prepare_share,
                  disk=20_000_000, splits={"train": count, "test": 50_000}, **IMAGENET)


RECIPES = (
    Recipe("imagenet", "ImageNet (ILSVRC 2012), 1000 classes", citation=RUSSAKOVSKY, files=(*OWN, TEST),
           prepare=prepare, disk=100_000_000, splits={"train": 1_281_167, "test": 50_000}, **IMAGENET),
    Recipe("imagenet-lt", "ImageNet-LT, long-tailed", citation=f"{RUSSAKOVSKY}; {LIU}", files=(*OWN, TRAIN, VAL, TEST),
           prepare=prepare_lt, disk=20_000_000, splits={"train": 115_846, "val": 20_000, "test": 50_000}, **IMAGENET),
    share(1, 12_811, 260_323, "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17"),
    share(10, 128_116, 2_603_168, "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091"))

if __name__ == "__main__": command(*RECIPES)
