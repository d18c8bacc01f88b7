"""iNaturalist 2018: 437,513 training photographs of 8,142 species, a real long tail (1000 to 2 per class).

WARNING: the archive has 120 GB, and its photographs need as much again; have 250 GB free, a night and a good line.
From the competition's bucket of Amazon's open data, for non-commercial research and education; the photographs must not
be handed on. `test` is the official validation set, 24,426 photographs, 3 per class, as the long-tailed literature uses
it (labels of the real test set were never published). Labels are the competition's category numbers. The one result
known of ICCL, +2.8 points, is on these data.

md5 of archive and annotations: the competition's page. The species' names come from a file without published hash,
whose numbers must be those of the annotations. The exact size of the archive is not published either.
"""
import json

from _shared import unpacked
from arcbook.archives import ArchiveError
from arcbook.download import command
from arcbook.prepare import File, Recipe, write_classes, write_list

BUCKET = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018/"
ARCHIVE = File("train_val2018.tar.gz", BUCKET + "train_val2018.tar.gz", None, "md5:b1c6952ce38f31868cc50ea72d066cc3",
               "about 120 GB")
PARTS = {"train": File("train2018.json.tar.gz", BUCKET + "train2018.json.tar.gz", None,
                       "md5:bfa29d89d629cbf04d826a720c0a68b0", "about 26 MB"),
         "test": File("val2018.json.tar.gz", BUCKET + "val2018.json.tar.gz", None,
                      "md5:f2ed8bfe3e9901cdefceb4e53cd3775d", "about 26 MB")}
NAMES = File("inat2018-categories.json.tar.gz", BUCKET + "categories.json.tar.gz")


def read_json(archive, staging):
    "The one JSON file inside of a small archive"
    with unpacked(archive, staging, limit=10 ** 9) as folder:
        path, = folder.rglob("*.json")
        return json.loads(path.read_text(encoding="utf-8"))


def prepare(files, staging):
    content = {split: read_json(files[file.name], staging) for split, file in PARTS.items()}
    names = {row["id"]: row["name"] for row in read_json(files[NAMES.name], staging)}
    numbers = [sorted(names), sorted(row["id"] for row in content["train"]["categories"])]
    if numbers != 2 * [list(range(len(names)))]:
        raise ArchiveError(f"{NAMES.name} and {PARTS['train'].name} number the species differently")
    with unpacked(files[ARCHIVE.name], staging, limit=200 * 10 ** 9) as folder:
        folder.rename(staging / "images")
    for split, part in content.items():
        label = {row["image_id"]: row["category_id"] for row in part["annotations"]}
        write_list(staging, split, [(row["file_name"], label[row["id"]]) for row in part["images"]], len(names))
    write_classes(staging, [names[k] for k in range(len(names))])


RECIPES = (Recipe(
    "inat2018", "iNaturalist 2018, photographs of 8,142 species: 120 GB to fetch",
    homepage="https://github.com/visipedia/inat_comp/tree/master/2018",
    licence="iNaturalist's terms; non-commercial research and education only; the photographs must not be handed on",
    citation="G. Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018",
    files=(ARCHIVE, *PARTS.values(), NAMES), prepare=prepare, disk=250_000_000_000,
    splits={"train": 437_513, "test": 24_426}),)

if __name__ == "__main__": command(*RECIPES)
