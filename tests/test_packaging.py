"The package as a newcomer gets it: metadata, extras, commands, versions, README."
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from email.parser import Parser
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from readme import readme_text

root = Path(__file__).resolve().parents[1]
tracked = ["settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "LICENSE-TEXT",
           "CHANGELOG.md", "CITATION.cff"]
main_job = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[book]' && arcbook run attract-repulse"
tests_job = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[dev]' && nbdev_test && pytest"


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root/"settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirement_names(text):
    return {re.split(r"[<>=!~;\[ ]", requirement)[0].lower() for requirement in text.split()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "A source archive built from a copy, unpacked, and the metadata that setup.py writes inside it."
    copy = tmp_path_factory.mktemp("package")
    for name in tracked: shutil.copy(root/name, copy/name)
    for name in ("arcbook", "data_scripts"):
        shutil.copytree(root/name, copy/name, ignore=shutil.ignore_patterns("__pycache__"))
    run = lambda where, *args: subprocess.run([sys.executable, "setup.py", "-q", *args], cwd=where, check=True,
                                              capture_output=True, text=True, timeout=120)
    run(copy, "sdist")
    archive, = (copy/"dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar: tar.extractall(copy/"unpacked", **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    unpacked, = (copy/"unpacked").iterdir()
    result = run(unpacked, "egg_info")
    assert "Deprecat" not in result.stderr, result.stderr
    return unpacked/"arcbook.egg-info"


@pytest.fixture(scope="module")
def metadata(built):
    return Parser().parsestr((built/"PKG-INFO").read_text(encoding="utf-8"))


def test_every_dynamic_field_is_supplied(metadata, built):
    dynamic = set(re.search(r"^dynamic = \[(.*?)\]", (root/"pyproject.toml").read_text(), re.M | re.S)[1]
                  .replace('"', "").replace(",", " ").split())
    # a field that setup.py leaves out is silently empty in the wheel
    field = {"keywords": "Keywords", "description": "Summary", "version": "Version", "dependencies": "Requires-Dist",
             "optional-dependencies": "Provides-Extra", "readme": "Description-Content-Type", "license": "License",
             "authors": "Author-email", "classifiers": "Classifier", "urls": "Project-URL"}
    files = {"entry-points": "[nbdev]", "scripts": "[console_scripts]"}
    assert dynamic <= field.keys() | files.keys(), "nbdev declares a field that this test does not know"
    missing = [name for name in dynamic & field.keys() if not metadata.get_all(field[name])]
    entry_points = (built/"entry_points.txt").read_text()
    missing += [name for name in dynamic & files.keys() if files[name] not in entry_points]
    assert not missing
    assert metadata.get_payload().strip() == (root/"README.md").read_text(encoding="utf-8").strip()
    assert {"LICENSE", "LICENSE-TEXT"} <= set(metadata.get_all("License-File"))


def test_python_versions(metadata, settings):
    assert metadata["Requires-Python"] == f">={settings['min_python']}"
    assert f'requires-python=">={settings["min_python"]}"' in (root/"pyproject.toml").read_text().replace(" ", "")
    named = {c.rsplit(" ", 1)[1] for c in metadata.get_all("Classifier") if c.startswith("Programming Language")}
    workflow = yaml.safe_load((root/".github/workflows/test.yml").read_text())
    assert named == set(workflow["jobs"]["newest"]["strategy"]["matrix"]["python"]), "classifiers are what is tested"


def unparsable(files, version):
    "What ruff's parser refuses as syntax of that Python: one line a fault. It reads notebooks too, cell by cell."
    command = ["check", "--isolated", "--no-cache", "--quiet", "--select", "E9", "--output-format", "concise",
               "--target-version", "py" + version.replace(".", "")]
    done = subprocess.run([sys.executable, "-m", "ruff", *command, *map(str, files)], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def test_syntax_of_the_oldest_python(settings):
    "Every source file and notebook cell parses on the oldest Python that is promised, whichever runs this test."
    folders = ("arcbook", "benchmarks", "data_scripts", "nbs", "tests")
    files = [path for name in folders for kind in ("*.py", "*.ipynb") for path in sorted((root/name).rglob(kind))]
    files = [path for path in files if not any(part[0] == "." for part in path.relative_to(root).parts)]
    assert {"contrast.py", "test_packaging.py", "01_attract_repulse.ipynb", "index.ipynb"} <= {path.name for path in files}
    assert not unparsable([root/"setup.py", *files], settings["min_python"])


@pytest.mark.parametrize("newer,since", [
    ("x = {}\nx[:, *(1, 2)]\n", "3.11"), ("try: x = 1\nexcept* ValueError: x = 2\n", "3.11"), ("type Row = list\n", "3.12"),
    ("def first[T](x: T): return x\n", "3.12"), ("""x = {"a": 1}\nf"{x["a"]}"\n""", "3.12")])
def test_newer_syntax_is_seen(newer, since, tmp_path):
    "The fault that chapters 1 and 5 had, and its like; in a module and in a cell."
    cell = dict(cell_type="code", execution_count=None, id="newer", metadata={}, outputs=[], source=newer)
    (tmp_path/"newer.py").write_text(newer, encoding="utf-8")
    (tmp_path/"newer.ipynb").write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)), encoding="utf-8")
    for path in tmp_path.iterdir(): assert len(unparsable([path], "3.10")) == 1 and not unparsable([path], since)


def test_extras(metadata, settings):
    base, book, dev = (requirement_names(settings[key]) for key in ("requirements", "book_requirements", "dev_requirements"))
    assert {"torch", "torchvision", "numpy", "scikit-learn", "accelerate"} <= base
    assert {"jupyterlab", "matplotlib", "seaborn", "umap-learn", "pandas"} <= book
    assert {"pytest", "hypothesis", "pytorch-metric-learning"} <= dev
    capped = {"fastcore"}                                   # the extra that holds nbdev caps it; the base must not
    assert base & (book | dev) == capped and not book & dev, "each requirement has one place"
    extra = lambda name: requirement_names(" ".join(r.split(";")[0].strip().replace(" ", "") for r in
                                                    metadata.get_all("Requires-Dist") if f'extra == "{name}"' in r))
    assert extra("book") == book
    assert extra("dev") == book | dev, "dev includes book"


def test_oldest_torch_is_the_one_tested(settings):
    oldest = (root/".github/oldest.txt").read_text()
    for name in ("torch", "torchvision"):
        supported = re.search(rf"(?:^| ){name}>=([\d.]+)", settings["requirements"])[1]
        assert re.search(rf"^{name}=={re.escape(supported)}\.\*$", oldest, re.M), name


def test_console_script():
    done = subprocess.run([shutil.which("arcbook", path=Path(sys.executable).parent) or "arcbook", "--help"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout and "list" in done.stdout and "open" in done.stdout


def test_console_script_is_declared(built):
    assert "arcbook = arcbook.cli:main" in (built/"entry_points.txt").read_text()


def test_scripts_are_found_in_a_clone_and_in_a_wheel(built, tmp_path):
    names = {path.name for path in (root/"data_scripts").glob("*.py")}
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)], cwd=built.parent, check=True,
                   capture_output=True, timeout=120)
    assert names and {path.name for path in (tmp_path/"arcbook"/"data_scripts").glob("*.py")} == names
    code = "from arcbook.download import recipes, script_folder; print(script_folder(), *recipes())"
    found = [subprocess.run([sys.executable, "-c", code], cwd=where, env={**os.environ, "PYTHONPATH": str(where)}, check=True,
                            capture_output=True, text=True, timeout=120).stdout.split() for where in (tmp_path, root)]
    assert [line[0] for line in found] == [str(tmp_path/"arcbook"/"data_scripts"), str(root/"data_scripts")]
    assert "cifar10" in found[0] and found[0][1:] == found[1][1:]


def test_one_version(settings, metadata):
    changelog = re.search(r"^## (\d\S*)", (root/"CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    citation = yaml.safe_load((root/"CITATION.cff").read_text(encoding="utf-8"))["version"]
    versions = {settings["version"], import_module("arcbook").__version__, str(citation), changelog, metadata["Version"]}
    assert len(versions) == 1, versions


def test_citation():
    citation = yaml.safe_load((root/"CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    assert citation["authors"] and all("name" in author or "family-names" in author for author in citation["authors"])


def test_readme_is_the_home_page():
    expected = readme_text()
    actual = (root/"README.md").read_text(encoding="utf-8")
    assert actual == expected, "run `python tests/readme.py`"


def test_readme_reads_outside_of_the_site():
    text = (root/"README.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
    assert re.match(r"# \S.*\n\n> \S", text), "title and description first"
    assert "{." not in prose and "{#" not in prose and ":::" not in prose and "@" not in prose, "Quarto syntax"
    images = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", prose)
    assert images and all(alt.strip() for alt, _ in images), "a picture with alt text"
    assert "nbs/images/five.png" in text and "five-narrow" not in text, "one opening picture"
    for target in re.findall(r"\]\((?!#|[a-z]+:)([^)\s#]+)", prose):
        assert (root/target).exists(), target


def test_readme_commands():
    lines = (root/"README.md").read_text(encoding="utf-8").splitlines()
    assert lines.count(main_job) == 1 and lines.count(tests_job) == 1, "each alone on its line, once"


def test_ci_runs_the_readme_command():
    script = (root/".ci/run").read_text()
    assert os.access(root/".ci/run", os.X_OK)
    pattern = re.search(r'grep -o "(.*?)" README.md', script)[1]
    assert re.findall(pattern, (root/"README.md").read_text(encoding="utf-8")) == [tests_job]
    assert "pip install" not in script, "the command stands in the README and nowhere else"


def test_licences():
    assert "Apache License" in (root/"LICENSE").read_text()[:200]
    text = (root/"LICENSE-TEXT").read_text(encoding="utf-8")
    assert "Attribution 4.0 International" in text and all(f"Section {n} -- " in text for n in range(1, 9))
