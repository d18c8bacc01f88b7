"""CUB-200-2011: 11,788 photographs of 200 kinds of birds, with AD-Net's fixed low-data lists.

From CaltechDATA, for non-commercial research and education only; the photographers keep their rights. AD-Net trains on
lists that its authors published, never on a fresh draw: `train_10`, `_15`, `_30`, `_50`, `_100` (3, 5, 9, 15 and about
30 images per class; `train_10` is 3 per class, not 10 % of anything exact), `train_1i` (one image per class) and the
official `test`. They are nested, labels are the number of the folder minus one. Some have Windows line ends and most no
newline at the end (the authors' own reader then cuts `199` to `19`): they are rewritten plainly and every label is
compared with the publisher's. md5: CaltechDATA's and that of many loaders; the lists' sha256: of the files themselves.
"""
from _shared import adnet_lists, unpacked, write_adnet_lists
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_classes


def table(path):
    "The second column of one of CUB's numbered text files"
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines() if line]


def prepare(files, staging):
    with unpacked(files["CUB_200_2011.tgz"], staging, limit=3 * 10 ** 9) as folder:
        folder = folder / "CUB_200_2011"
        photos, labels = table(folder / "images.txt"), [int(k) - 1 for k in table(folder / "image_class_labels.txt")]
        parts = ["train" if flag == "1" else "test" for flag in table(folder / "train_test_split.txt")]
        write_classes(staging, [name.split(".", 1)[1].replace("_", " ") for name in table(folder / "classes.txt")])
        (folder / "images").rename(staging / "images")
    truth = {part: {p: k for p, k, own in zip(photos, labels, parts) if own == part} for part in ("train", "test")}
    write_adnet_lists(files, staging, "cub200", truth)


RECIPES = (Recipe(
    "cub200", "CUB-200-2011, photographs of 200 kinds of birds",
    homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    licence="non-commercial research and education only; the photographers keep their rights",
    citation="C. Wah, S. Branson, P. Welinder, P. Perona and S. Belongie, The Caltech-UCSD Birds-200-2011 Dataset, "
             "technical report CNS-TR-2011-001, California Institute of Technology, 2011",
    files=(File("CUB_200_2011.tgz", "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                1_150_585_339, "md5:97eceeb196236b17998738112f37df78"),
           *adnet_lists("cub200", "CUB_200_2011", {
               "train_1i": (11_257, "4720e664bc1c030fc4799bc2102016cd81f7d1a0cb17aeb21cd1f1cb72251f9f"),
               "train_10": (34_376, "a40854499cf604e0816cf1ab2c9b4eee1a15c3bab6c124001aacd9532d194051"),
               "train_15": (56_294, "c8ad3256d220001f93dbd021cd39c1005bb4eee6e45a369db38279e6ff41bebc"),
               "train_30": (101_316, "aebfdf42831f685d710a9dc05cb2a10318124bc07901046bf9b0e63bded319e9"),
               "train_50": (168_872, "a8c203e9a0c62b57ce06ce08817deba61071e0e7b67e7f1db32ec7154aa6a8d0"),
               "train_100": (337_398, "19c52b11c9c76cfa0429b862243ab932229b40cffd214d7be5fdd2b0b3a627a7"),
               "test": (326_011, "159809050a39f78ff12179d7befd8bcc7225363f680ff06e3394175d9e28a57a")})),
    prepare=prepare, disk=1_300_000_000, splits={"train_1i": 200, "train_10": 600, "train_15": 1000, "train_30": 1800,
                                                 "train_50": 3000, "train_100": 5994, "test": 5794}),)

if __name__ == "__main__": command(*RECIPES)
