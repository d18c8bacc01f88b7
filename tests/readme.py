"""README.md is the text of nbs/index.ipynb. `python tests/readme.py` writes it; tests/test_packaging.py compares."""
import json
import re
from pathlib import Path
from posixpath import normpath

root = Path(__file__).resolve().parents[1]


def readme_text(index: Path = root/"nbs/index.ipynb") -> str:
    """Markdown cells of the home page, joined by blank lines, so that they read well outside of the site: relative
    links start at the repository's root, and Quarto's attributes (`[text]{.class}`, `![](x.png){fig-alt="..."}`) and
    fences (`:::`) are dropped. Lines of class `narrow-only` repeat a picture for telephones: only the site can choose."""
    cells = json.loads(index.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "markdown")
    # code blocks stay as they are
    parts = re.split(r"(^```.*?^```[ ]*$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else _outside(part) for part in parts) + "\n"


def _outside(text: str) -> str:
    text = re.sub(r"^.*\{\.narrow-only\}\n", "", text, flags=re.M)
    text = re.sub(r"^:{3,}.*\n?", "", text, flags=re.M)
    text = re.sub(r"(\]\([^)\s]*\))\{[^}]*\}", r"\1", text)
    text = re.sub(r"\[([^\]]*)\]\{\.[^}]*\}", r"\1", text)
    relative = r"\]\((?!#|/|[a-z][a-z0-9+.-]*:)([^)\s]+)"
    text = re.sub(relative, lambda m: "](" + normpath("nbs/" + m[1]), text)
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    (root/"README.md").write_text(readme_text(), encoding="utf-8")
