"""FGVC-Aircraft 2013b: 10,000 photographs of 100 variants of aircraft, with AD-Net's fixed low-data lists.

From the Visual Geometry Group, Oxford, for non-commercial research only; the photographers keep their rights. Each
photograph ends in a banner of about 20 rows with its author: crop it away before a network can read it. AD-Net's lists
(see cub.py) use the file names of the archive; labels count the variants in alphabetical order (707-320 = 0, Yak-42 =
99). `train_100` is the official trainval. Lists 1i, 10, 15 and 100 are nested; 30 and 50 are draws of their own.
Several independent public loaders agree on the md5 (the publisher's own page is said to name an older file's); the
lists' sha256: of the files themselves.
"""
from _shared import adnet_lists, unpacked, write_adnet_lists
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_classes


def prepare(files, staging):
    with unpacked(files["fgvc-aircraft-2013b.tar.gz"], staging, limit=6 * 10 ** 9) as folder:
        folder = folder / "fgvc-aircraft-2013b" / "data"
        variants = sorted(line.strip() for line in (folder / "variants.txt").read_text().splitlines() if line.strip())
        truth = {}
        for part, name in {"train": "trainval", "test": "test"}.items():
            lines = (folder / f"images_variant_{name}.txt").read_text().splitlines()
            rows = [line.strip().split(" ", 1) for line in lines]
            truth[part] = {f"{photo}.jpg": variants.index(variant) for photo, variant in rows}
        (folder / "images").rename(staging / "images")
    write_classes(staging, variants)
    write_adnet_lists(files, staging, "aircraft", truth)


RECIPES = (Recipe(
    "aircraft", "FGVC-Aircraft 2013b, photographs of 100 variants of aircraft",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    licence="non-commercial research only; the photographers keep their rights",
    citation="S. Maji, J. Kannala, E. Rahtu, M. Blaschko and A. Vedaldi, Fine-Grained Visual Classification of "
             "Aircraft, arXiv:1306.5151, 2013",
    files=(File("fgvc-aircraft-2013b.tar.gz",
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                2_753_340_328, "md5:d4acdd33327262359767eeaa97a4f732"),
           *adnet_lists("aircraft", "FGVC-Aircraft-2013", {
               "train_1i": (1_588, "dfb1d17b460a0ad04a00ef0b1e970da19d7879fadc812cb0bae36aaf5f5618a8"),
               "train_10": (12_193, "2d7265fbb0b7912f77e430014d5ff3da97d4b2c200b2537cfd9bdd41c21920a3"),
               "train_15": (15_898, "00ebd7785c5d1b656452e264e22fb82bf7e6114cb5a934579f5d8ed8566261b3"),
               "train_30": (30_798, "883330f0c85236c99187169bf63dda9ff0a03aa9255ee6a979254ded041379f7"),
               "train_50": (50_168, "01ae7cb0ad8c45413d238886ddbb3f2aa3cf536960b736c6e2d715301cf042a7"),
               "train_100": (99_338, "58ca403c6695688474abd71db97777beb6a28a5e0a194292f7906485206453ba"),
               "test": (49_661, "4e533ced9fdcbee7fd8621ca314345619e01d3b22b081324bcb350e00da561ae")})),
    prepare=prepare, disk=3_000_000_000, splits={"train_1i": 100, "train_10": 767, "train_15": 1067, "train_30": 2067,
                                                 "train_50": 3367, "train_100": 6667, "test": 3333}),)

if __name__ == "__main__": command(*RECIPES)
