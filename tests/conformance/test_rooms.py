"The house: which module may import which, what a module offers, and how its cells are written."
import ast, json, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[2]
package = root / "arcbook"
modules = {".".join(p.relative_to(root).with_suffix("").parts): p for p in sorted(package.rglob("*.py"))
           if p.name not in ("__init__.py", "__main__.py", "_modidx.py")}
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PAPERS = ("ad_net", "attract_repulse", "clim", "cone", "iccl")
every_notebook = pytest.mark.parametrize("path", notebooks, ids=lambda p: p.relative_to(root / "nbs").as_posix())


def imports(name, path):
    "Modules of arcbook that a module imports, at any depth of its code."
    found, here = set(), name.split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[:-node.level], node.module or ""]).rstrip(".") if node.level else node.module
            names = [base] + [f"{base}.{alias.name}" for alias in node.names]
        else: continue
        found |= {n for n in names if n in modules}
    return found - {name}


graph = {name: imports(name, path) for name, path in modules.items()}


def reached(name):
    "Everything that importing a module may load."
    seen, todo = set(), [name]
    while todo:
        for other in graph[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


def test_no_circle():
    circles = [name for name in graph if name in reached(name)]
    assert not circles, {name: sorted(graph[name]) for name in circles}


@pytest.mark.parametrize("key", PAPERS)
def test_a_paper_imports_neither_data_nor_experiments(key):
    ours = {name.removeprefix("arcbook.") for name in reached(f"arcbook.papers.{key}")}
    heavy = {"experiments", "ledger", "datasets", "download", "photographs", "training", "cli", "probes", "geometry"}
    assert not ours & heavy and not any(name.startswith("labs.") for name in ours)


def test_importing_the_losses_is_light():
    code = ("import sys, arcbook.losses; print(*sorted(m for m in sys.modules if m.startswith('arcbook')), "
            "*[m for m in ('umap', 'numba', 'matplotlib', 'pandas', 'sklearn', 'nbdev', 'typer') if m in sys.modules])")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    words = {part for name in loaded for part in name.split(".")}
    assert not words & {"labs", "experiments", "ledger", "datasets", "training", "download", "photographs", "cli", "probes"}
    assert not words & {"umap", "numba", "matplotlib", "pandas", "sklearn", "nbdev", "typer"}


def offered(path):
    "The names in `__all__` of a module."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__": return ast.literal_eval(node.value)
    return []


def test_papers_offer_their_api_and_no_helpers():
    names = {key: offered(modules[f"arcbook.papers.{key}"]) for key in PAPERS}
    assert all(5 <= len(found) <= 20 for found in names.values()), {k: len(v) for k, v in names.items()}
    assert sum(map(len, names.values())) <= 75, {k: v for k, v in names.items()}
    assert not [n for found in names.values() for n in found if n.startswith(("check_", "_"))]


@pytest.mark.parametrize("key", PAPERS)
def test_a_laboratory_offers_its_lab(key):
    names = offered(modules[f"arcbook.labs.{key}"])
    assert "LAB" in names and len(names) <= 12, names


def code_cells(path):
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code": yield number, "".join(cell["source"])


@every_notebook
def test_code_lines_fit_the_page(path):
    "A directive's text (alt text of a picture) is no code."
    wide = [(n, len(line), line) for n, source in code_cells(path) for line in source.splitlines()
            if len(line) > 100 and not line.startswith("#|")]
    assert not wide, wide[:5]


@every_notebook
def test_cells_fit_the_screen(path):
    long = [(n, len(source.splitlines())) for n, source in code_cells(path) if len(source.splitlines()) > 30]
    assert not long, long


@every_notebook
def test_one_statement_a_line(path):
    "`f(), g()` as a statement hides the second call."
    found = []
    for number, source in code_cells(path):
        try: body = ast.walk(ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))))
        except SyntaxError: continue                           # seen by the test of the syntax
        found += [(number, ast.unparse(node)) for node in body if isinstance(node, ast.Expr)
                  and isinstance(node.value, ast.Tuple) and sum(isinstance(x, ast.Call) for x in node.value.elts) > 1]
    assert not found, found


@every_notebook
def test_imports_stand_alone(path):
    "nbdev cannot tell imports from other code in one cell, and runs such cells when it renders the site."
    mixed = []
    for number, source in code_cells(path):
        if "nbdev_export" in source: continue
        try: kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body}
        except SyntaxError: continue
        if kinds == {True, False}: mixed.append(number)
    assert not mixed, mixed


def test_training_needs_no_book():
    "A bare machine with a GPU has torch, torchvision, scikit-learn, accelerate, tqdm, typer and fastcore: enough for `arcbook run`."
    code = ("import sys, arcbook.cli; from arcbook.probes import PAPERS, lab_of; [lab_of(key) for key in PAPERS]; "
            "print(*[m for m in ('umap', 'numba', 'matplotlib', 'seaborn', 'pandas', 'nbdev', 'execnb', 'pooch', 'IPython') if m in sys.modules])")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded
