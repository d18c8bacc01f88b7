"""The site as Quarto will get it: every page is processed by nbdev in a copy of the repository, then walked. What can be
seen without Quarto is checked here: front matter, outputs, alt text, links, cross-references, citations, sources."""
import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest
import yaml

root = Path(__file__).resolve().parents[1]
nbs = root/"nbs"
notebooks = sorted(p.relative_to(nbs).as_posix() for p in nbs.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(nbs).parts))
every_notebook = pytest.mark.parametrize("name", notebooks)
bibliography = set(re.findall(r"^@\w+\{([^,\s]+),", (nbs/"references.bib").read_text(encoding="utf-8"), re.M))
grades = {"paper", "code", "ref", "2nd", "derived", "reading"}
refresh_and_process = """
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
if __name__ == "__main__":
    refresh_quarto_yml()
    proc_nbs(n_workers=0)
"""


def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(root/"settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Folder of the processed pages; the working tree stays untouched."
    copy = tmp_path_factory.mktemp("site")
    for name in ("settings.ini", "_quarto.yml", "README.md"): shutil.copy(root/name, copy/name)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "arcbook"): shutil.copytree(root/name, copy/name, ignore=ignore)
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-c", refresh_and_process], cwd=copy, env=environment, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (copy/"warnings.txt").write_text(done.stderr, encoding="utf-8")
    return copy/"_proc"


class Page:
    "A processed notebook: what Quarto renders."
    def __init__(self, site, name):
        self.name = name
        self.cells = json.loads((site/name).read_text(encoding="utf-8"))["cells"]
        for cell in self.cells: cell["source"] = "".join(cell["source"])
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]
        front = self.cells[0]["source"] if self.cells[0]["cell_type"] == "raw" else "---\n{}\n---"
        self.front = yaml.safe_load(front.strip().strip("-"))
        self.html = join(dirname(name), self.front.get("output-file", ""))

    def markdown(self):
        "Text of the page, outputs in Markdown included."
        for cell in self.cells:
            if cell["cell_type"] == "markdown": yield cell["source"]
            for output in cell.get("outputs", []):
                if "text/markdown" in output.get("data", {}): yield "".join(output["data"]["text/markdown"])

    def prose(self):
        "Text without code and formulas, where `@` and `[...](...)` mean something."
        for text in self.markdown():
            text = re.sub(r"^(```|~~~).*?^\1[ ]*$", "", text, flags=re.M | re.S)
            text = re.sub(r"(`+).+?\1", "", text, flags=re.S)
            text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
            yield re.sub(r"(?<!\\)\$(?!\s)[^$\n]+?(?<!\s)\$", "", text)

    def explicit_ids(self):
        found = [i for text in self.markdown() for i in re.findall(r"\{[^}\n]*#([\w.:-]+)[^}\n]*\}", re.sub(r"`[^`\n]*`", "", text))]
        found += [i for text in self.markdown() for i in re.findall(r'\bid="([^"]+)"', text)]
        return found + [i for cell in self.code for i in re.findall(r"^#\|\s*label:\s*[\"']?([\w-]+)", cell["source"], re.M)]

    def ids(self):
        ids = set(self.explicit_ids())
        for text in self.markdown():
            text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            for heading in re.findall(r"^#{1,6}\s+(.+?)\s*$", text, re.M): ids.add(heading_id(heading))
        return ids


def heading_id(heading):
    "The identifier that Pandoc gives to a heading without one."
    text = re.sub(r"\{[^}]*\}\s*$", "", heading)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[^\w\s.-]", "", text.lower())
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text.strip())) or "section"


@pytest.fixture(scope="module")
def pages(site):
    return {name: Page(site, name) for name in notebooks}


def links(page):
    for text in page.prose(): yield from re.findall(r"(?<!!)\[[^\]]*\]\(\s*<?([^)\s>]+)", text)


def options(cell):
    "Quarto's `#| key: value` lines of a code cell."
    found = {}
    for line in re.findall(r"^#\|\s*([\w-]+:.*)$", cell["source"], re.M):
        try: found |= yaml.safe_load(line)
        except yaml.YAMLError: pass  # reported by test_cell_options_are_yaml
    return found


def images(cell):
    for output in cell.get("outputs", []):
        for kind, data in output.get("data", {}).items():
            if kind.startswith("image/"): yield kind, "".join(data)


# the configuration

def leaves(contents):
    for item in contents:
        if isinstance(item, str): yield item
        elif "href" in item: yield item["href"]
        if not isinstance(item, str): yield from leaves(item.get("contents", item.get("menu", [])))


def test_one_configuration():
    config = yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))
    html, website = config["format"]["html"], config["website"]
    assert config["project"]["type"] == "website"
    assert website["title"] == settings()["title"] and website["description"] == settings()["description"]
    assert set(html["theme"]) == {"light", "dark"}
    assert website["navbar"]["search"] and html["toc"] and html["code-copy"] and html["code-tools"]
    for name in (html["css"], config["bibliography"], website["favicon"], *leaves(website["navbar"]["left"])):
        assert (nbs/name).exists(), f"_quarto.yml names {name}, which is not under nbs/"
    # only pulls in; paths start at nbs/, and at its processed copy beside it
    inner = yaml.safe_load((nbs/"_quarto.yml").read_text(encoding="utf-8"))
    assert inner == {"metadata-files": ["../_quarto.yml", "nbdev.yml", "sidebar.yml"]}


def test_nbdev_undoes_nothing(site):
    for name in ("nbdev.yml", "_quarto.yml", "sidebar.yml"):
        assert (site.parent/"nbs"/name).read_text() == (nbs/name).read_text(), f"nbdev rewrites nbs/{name}"
        assert (site/name).exists(), f"nbdev does not hand {name} to Quarto"
    # nbdev_docs would let Quarto overwrite README.md from such a notebook
    assert not (nbs/settings()["readme_nb"]).exists()


def test_sidebar_lists_every_page():
    sidebar = yaml.safe_load((nbs/"sidebar.yml").read_text())["website"]["sidebar"]
    listed = list(leaves(sidebar["contents"]))
    assert sorted(listed) == sorted(set(listed)), "a page is listed twice"
    assert set(listed) == set(notebooks)


def test_every_grade_has_a_style():
    css = (nbs/"styles.css").read_text()
    for grade in grades:
        assert f".grade-{grade} " in css and f"body.quarto-dark .grade-{grade} " in css, grade


# the pages

@every_notebook
def test_front_matter(pages, name):
    front = pages[name].front
    assert front.get("title") and front.get("description"), "first cell: `# Title` and `> description`"
    assert front["output-file"].endswith(".html")


def paragraphs(cells):
    """Markdown cells, cut at blank lines. Brackets and targets of links are left out, because nbdev makes links of names
    in backticks, and so is what the author hides: cells under `#| hide` and its kind, headings that end with a dash."""
    for cell in cells:
        text = "".join(cell["source"])
        directives, text = re.match(r"((?:[ \t]*#[ \t]*\|.*\n?)*)(.*)", text, re.S).groups()
        if cell["cell_type"] != "markdown" or re.search(r"\|\s*(?:hide|exporti?|default_exp)\b", directives): continue
        if re.fullmatch(r"#.* -\s*", text): continue
        for paragraph in re.split(r"\n\s*\n", re.sub(r"\]\([^)\s]*\)|[\[\]]", "", text)):
            if paragraph.strip(): yield " ".join(paragraph.split())


@every_notebook
def test_no_text_is_lost(pages, site, name):
    "Each paragraph of the notebook is on its page as often; title and quote, which become front matter, aside."
    cells = json.loads((site.parent/"nbs"/name).read_text(encoding="utf-8"))["cells"]
    head = next(c for c in cells if c["cell_type"] == "markdown" and re.search(r"^#\s+\S", "".join(c["source"]), re.M))
    for line in (r"^#\s+\S.*$", r"^>\s+\S.*$"):
        head["source"] = re.sub(line, "", "".join(head["source"]), count=1, flags=re.M)
    lost = Counter(paragraphs(cells)) - Counter(paragraphs(pages[name].cells))
    assert not lost, "nbdev drops the rest of the cell that holds the title: only title and quote may stand there"


def test_addresses_are_unique(pages):
    assert not [html for html, n in Counter(page.html for page in pages.values()).items() if n > 1]


def test_no_cell_mixes_imports_with_other_code(site):
    # nbdev runs the import cells of a page while rendering; other code in them would run too, out of context
    warnings = (site.parent/"warnings.txt").read_text(encoding="utf-8")
    mixed = re.findall(r"imports and other code. See FAQ.\n---\n(.*?)\n---\n", warnings, re.S)
    assert not mixed


@every_notebook
def test_outputs_are_clean(pages, name):
    for cell in pages[name].code:
        for output in cell.get("outputs", []):
            where = f"cell {cell.get('id')}: {cell['source'][:80]!r}"
            assert output["output_type"] != "error", f"{where} stores an error"
            assert output.get("name") != "stderr", f"{where} shows a warning or a progress bar: {''.join(output['text'])[:200]}"


@every_notebook
def test_every_picture_has_alt_text(pages, name):
    missing = []
    for cell in pages[name].code:
        alt = options(cell).get("fig-alt")
        described = isinstance(alt, str) and len(alt.strip()) >= 10
        html = "".join("".join(output.get("data", {}).get("text/html", "")) for output in cell.get("outputs", []))
        bare = [tag for tag in re.findall(r"<img\b[^>]*>", html) if not re.search(r"""\balt=(["'])\s*[^"'\s].*?\1""", tag, re.S)]
        moving = re.search(r"<(video|canvas|svg)\b", html) and not described
        if (any(images(cell)) and not described) or bare or moving: missing.append((cell.get("id"), cell["source"][:80]))
    for text in pages[name].markdown():
        text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        missing += [target for alt, target, more in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)(\{[^}]*\})?", text)
                    if not alt.strip() and "fig-alt=" not in more]
    assert not missing


@every_notebook
def test_links_resolve(pages, site, name):
    config = settings()
    address = config["doc_host"] + config["doc_baseurl"]
    by_html = {page.html: page for page in pages.values()}
    blob = f"{config['git_url']}/blob/{config['branch']}/"
    broken = []
    for target in links(pages[name]):
        path, _, anchor = target.partition("#")
        if path.startswith(address):  # nbdev links names in backticks; a method's link may end at its class
            page = by_html.get(path[len(address):].strip("/") or "index.html")
            if page is None or anchor and not {anchor, anchor.split(".")[0]} & page.ids(): broken.append(target)
        elif path.startswith(blob):
            if not (root/path[len(blob):]).exists(): broken.append(target)
        elif re.match(r"https?:|mailto:", path): continue
        elif path:
            file = normpath(join(dirname(name), path))
            page = pages.get(file) or by_html.get(file)
            if page is None and not (site/file).is_file() or page and anchor and anchor not in page.ids(): broken.append(target)
        elif anchor not in pages[name].ids(): broken.append(target)
    assert not broken


@every_notebook
def test_pictures_in_text_exist(pages, site, name):
    targets = [t for text in pages[name].prose() for t in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)]
    missing = [t for t in targets if not t.startswith("http") and not (site/normpath(join(dirname(name), t))).is_file()]
    assert not missing


@every_notebook
def test_cross_references_resolve(pages, name):
    page = pages[name]
    explicit = page.explicit_ids()
    assert not [i for i, n in Counter(explicit).items() if n > 1], "an id is given twice"
    used = {i for text in page.prose() for i in re.findall(r"@((?:eq|fig|tbl|sec|lst)-[\w-]*\w)", text)}
    missing = used - set(explicit)
    assert not missing, "a reference to nothing"
    for text in page.markdown():
        text = re.sub(r"`[^`\n]*`", "", text)
        for before, i in re.findall(r"(.{0,3})\{#(eq-[\w-]+)", text, re.S):
            assert before.rstrip(" ").endswith("$$"), f"{i}: Quarto numbers `$$ ... $$ {{#{i}}}` only"
    for cell in page.code:
        label = options(cell).get("label", "")
        if re.match("fig-|tbl-", label): assert options(cell).get(f"{label[:3]}-cap"), f"{label} has no caption, so no number"


@every_notebook
def test_citations_exist(pages, name):
    cited = {key for text in pages[name].prose() for key in re.findall(r"(?<![\w@/])@([A-Za-z][\w:-]*\w)", text)}
    unknown = {key for key in cited if not re.match("(eq|fig|tbl|sec|lst)-", key)} - bibliography
    assert not unknown


@every_notebook
def test_grades_are_of_the_six(pages, name):
    for text in pages[name].markdown():
        text = re.sub(r"`[^`\n]*`", "", text)
        for label, grade in re.findall(r"\[([^\]]*)\]\{\.grade-([\w-]+)\}", text): assert label == grade and grade in grades


@every_notebook
def test_cell_options_are_yaml(pages, name):
    for cell in pages[name].code:
        for line in re.findall(r"^#\|\s*([\w-]+:.*)$", cell["source"], re.M):
            try: yaml.safe_load(line)
            except yaml.YAMLError as error: pytest.fail(f"cell {cell.get('id')}: {line}: {error}")


@every_notebook
def test_exported_definitions_are_shown(pages, name):
    source = "".join("".join(c["source"]) + "\n" for c in json.loads((nbs/name).read_text(encoding="utf-8"))["cells"]
                     if c["cell_type"] == "code")
    module = re.search(r"^#\|\s*default_exp\s+([\w.]+)", source, re.M)
    if not module: pytest.skip("not a module")
    tree = ast.parse((root/"arcbook"/(module[1].replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    names = next((ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"), [])
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))} & set(names)
    seen = set()
    for cell in pages[name].code:
        seen |= set(re.findall(r"^show_doc\((\w+)\)", cell["source"], re.M))
        if options(cell).get("echo") is not False: seen |= set(re.findall(r"^(?:def|class)\s+(\w+)", cell["source"], re.M))
    hidden = defined - seen
    assert not hidden


@every_notebook
def test_pages_are_light(name):
    assert (nbs/name).stat().st_size <= 1_500_000
    for cell in json.loads((nbs/name).read_text(encoding="utf-8"))["cells"]:
        for kind, data in images(cell):
            size = len(base64.b64decode(data)) if kind != "image/svg+xml" else len(data)
            assert size <= 130_000, f"cell {cell.get('id')}: {kind} of {size} bytes"


def test_no_machine_paths():
    listing = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True)
    if listing.returncode: pytest.skip("not a git checkout")
    # put together here so that this file does not find itself
    pattern = re.compile("|".join(["/" + "work/", "/" + "root/", "/" + r"home/\w", "/" + r"Users/\w", "/" + r"tmp/\w", "site-" + "packages/"]))
    found = []
    for name in listing.stdout.decode().split("\0"):
        path = root/name
        if not path.is_file() or path.stat().st_size > 5_000_000: continue
        try: text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError: continue
        found += [f"{name}:{text.count(chr(10), 0, m.start()) + 1}: {text[m.start()-20:m.end()+20]!r}" for m in pattern.finditer(text)]
    assert not found


def test_the_shelf_has_a_row_and_an_example_for_every_loss():
    from arcbook import losses
    text = ["".join(c["source"]) for c in json.loads((nbs/"losses.ipynb").read_text(encoding="utf-8"))["cells"]]
    table = "\n".join(line for cell in text for line in cell.splitlines() if line.startswith("|"))
    code = "\n".join(cell for cell in text if not cell.startswith("#| export"))
    functions = {name for name in losses.__all__ if name.islower()} - {"cosine_logits", "forces", "soft_target_cross_entropy"}
    assert not {name for name in functions if f"`{name}`" not in table}
    used = {name for name in losses.__all__ if name.endswith("Loss") and f"{name}(" in code}
    assert used == {name for name in losses.__all__ if name.endswith("Loss")}


def test_every_loss_of_a_paper_is_on_the_shelf():
    from importlib import import_module
    from arcbook import losses
    from arcbook.cli import PAPERS
    for module in (import_module("arcbook.papers." + name.replace("-", "_")) for name in PAPERS):
        own = {name for name in module.__all__ if name.endswith("Loss") and getattr(module, name).__module__ == module.__name__}
        assert own and own <= set(losses.__all__), (module.__name__, own - set(losses.__all__))


def test_every_chapter_is_everywhere():
    "Sidebar, menu, home page, shelf, results: a paper that the command line knows is found on all of them, its laboratory in the menus."
    from arcbook.cli import PAPERS, lab_named
    menu = set(leaves(yaml.safe_load((root/"_quarto.yml").read_text())["website"]["navbar"]["left"]))
    sidebar = set(leaves(yaml.safe_load((nbs/"sidebar.yml").read_text())["website"]["sidebar"]["contents"]))
    chapters = {name: lab_named(name).chapter for name in PAPERS}
    labs = {name: chapter.replace("papers/", "labs/") for name, chapter in chapters.items()}
    for kind, named in (("papers/", chapters), ("labs/", labs)):
        assert set(named.values()) == {name for name in notebooks if name.startswith(kind)}
    for name, chapter in chapters.items():
        assert {chapter, labs[name]} <= menu & sidebar
        for page in ("index.ipynb", "losses.ipynb", "results.ipynb"):
            assert f"({chapter})" in (nbs/page).read_text(encoding="utf-8"), f"{page} does not link {chapter}"
        assert f"arcbook run {name}" in (nbs/"index.ipynb").read_text(encoding="utf-8")


def test_the_opening_picture():
    "Two drawings of one picture, each light; the home page shows one of them on any screen."
    home = "\n\n".join("".join(c["source"]) for c in json.loads((nbs/"index.ipynb").read_text(encoding="utf-8"))["cells"])
    css = (nbs/"styles.css").read_text()
    for name, kind in (("five.png", "wide-only"), ("five-narrow.png", "narrow-only")):
        assert (nbs/"images"/name).stat().st_size <= 100_000
        alt, = re.findall(rf"^\[!\[([^\]]+)\]\(images/{re.escape(name)}\)\]\(losses.ipynb\)\{{\.{kind}\}}$", home, re.M)
        assert len(alt) > 200 and f".{kind} " in css
