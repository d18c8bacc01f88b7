"""Stanford Cars: 16,185 photographs of 196 models of cars, with AD-Net's fixed low-data lists.

The publisher's addresses (https://ai.stanford.edu/~jkrause/cars/car_dataset.html) are dead and nothing else is
official, so you need a copy: put it into a folder and name that with --from. Two layouts are known.

1. `car_ims.tgz` and `cars_annos.mat`: all photographs, numbered 000001 to 016185, which is how AD-Net's lists name
   them. Both are compared with md5 sums that many public loaders agree on.
2. As most mirrors have it: folders `cars_train` and `cars_test` (numbered 00001 to 08144 and 00001 to 08041, another
   order!), with `cars_train_annos.mat` (of the publisher's car_devkit.tgz), `cars_test_annos_withlabels.mat` and
   `cars_annos.mat`. The latter alone labels these folders wrongly. Class and box of every photograph in both
   annotations tell which number it has in the other layout; boxes must match without remainder. Where two photographs
   of a class and part have one box, they are taken in order: labels and parts are right in any case.

For non-commercial research; the photographers keep their rights. Lists: see cub.py; labels are the official numbers
minus one. `train_10` has 2 to 9 per class. Lists 1i, 10, 15, 30, 50 and 100 are nested.
"""
import shutil
from collections import defaultdict

from _shared import adnet_lists, unpacked, write_adnet_lists
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_classes

BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")
MIRROR = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def read_mat(path):
    from scipy.io import loadmat
    return loadmat(str(path), squeeze_me=True)


def place(row):
    "Part and file name of a row of cars_annos.mat"
    return "test" if row["test"] else "train", row["relative_im_path"].split("/")[-1]


def copy_mirror(files, staging, annotations):
    "Copy `cars_train` and `cars_test` to the numbers of car_ims, found by part, class and box"
    missing = [name for name in ("cars_train", "cars_test", *MIRROR.values()) if name not in files]
    if missing: raise ValueError(f"either car_ims.tgz or {missing[0]} is needed beside cars_annos.mat")
    numbers = defaultdict(list)
    for row in annotations:
        part, name = place(row)
        numbers[(part, *(int(row[k]) for k in BOX))].append(name)
    (staging / "images").mkdir()
    for part, name in MIRROR.items():
        folder = files[f"cars_{part}"]
        folder = folder / folder.name if (folder / folder.name).is_dir() else folder
        for row in read_mat(files[name])["annotations"]:
            same = numbers[(part, *(int(row[k]) for k in BOX))]
            if not same: raise ValueError(f"{name}: class and box of {row['fname']} are not in cars_annos.mat")
            shutil.copyfile(folder / row["fname"], staging / "images" / same.pop(0))


def prepare(files, staging):
    content = read_mat(files["cars_annos.mat"])
    annotations, truth = content["annotations"], {"train": {}, "test": {}}
    if "car_ims.tgz" in files:
        with unpacked(files["car_ims.tgz"], staging, limit=4 * 10 ** 9) as folder:
            (folder / "car_ims").rename(staging / "images")
    else: copy_mirror(files, staging, annotations)
    for row in annotations:
        part, name = place(row)
        truth[part][name] = int(row["class"]) - 1
    write_classes(staging, [str(name) for name in content["class_names"]])
    write_adnet_lists(files, staging, "cars", truth)


HOME = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
RECIPES = (Recipe(
    "cars", "Stanford Cars, photographs of 196 models", homepage=HOME,
    licence="non-commercial research only; the photographers keep their rights",
    citation="J. Krause, M. Stark, J. Deng and L. Fei-Fei, 3D Object Representations for Fine-Grained Categorization, "
             "4th IEEE Workshop on 3D Representation and Recognition (3dRR-13), Sydney, 2013",
    manual=f"the publisher's address {HOME} is dead; find a copy of car_ims.tgz and cars_annos.mat (or of the layout "
           "cars_train, cars_test that data_scripts/README.md describes)",
    files=(File("cars_annos.mat", hash="md5:b407c6086d669747186bd1d764ff9dbc"),
           File("car_ims.tgz", hash="md5:d5c8f0aa497503f355e17dc7886c3f14", optional=True),
           File("cars_train", note="a folder, instead of car_ims.tgz", optional=True),
           File("cars_test", note="a folder, instead of car_ims.tgz", optional=True),
           File(MIRROR["train"], note="instead of car_ims.tgz", optional=True),
           File(MIRROR["test"], size=185_758, note="instead of car_ims.tgz", optional=True,
                hash="sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05"),
           *adnet_lists("cars", "Stanford%20Cars", {
               "train_1i": (2_830, "bd851b891893fdb1294b08ba39d39b38a67f2331810c4a0999c7fc0b88e59a40"),
               "train_10": (14_208, "94c2aac2dd245ed72239022ae96867366e15a097eb22d1d5b14a3c956e150564"),
               "train_15": (18_921, "f8919a5c6360acaacb5e5d3d3525431282c5cd7a15ea67bfa1a47377e7921a08"),
               "train_30": (36_558, "091d41ec01fb0b1cd2a39f482ad8cf620ad605fec94bad35e62633e005a027e0"),
               "train_50": (59_552, "2567fedcc260cd9ff4d71ff33419ed1c39c1c184dedee0da2b0f00ea7ea913da"),
               "train_100": (117_640, "1afe10cbb0d1cdd5a361cb77aa61df860109ba92d0880581d65afb4298f0caab"),
               "test": (116_149, "78362a07908ad72074bfa7f6a1c9a2be4df019d551b1cb8f996d505c9465b2db")})),
    prepare=prepare, disk=2_100_000_000, splits={"train_1i": 196, "train_10": 920, "train_15": 1310, "train_30": 2531,
                                                 "train_50": 4123, "train_100": 8144, "test": 8041}),)

if __name__ == "__main__": command(*RECIPES)
