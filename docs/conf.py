"""Sphinx: the site of these pages, built with `make docs`.

The source directory is the whole checkout, so that a link between README.md, these pages and the files beside them is
one that a forge follows, too, and is checked as it stands. MyST reads Markdown as forges do (CommonMark).
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "casa_hub"
copyright = "the authors of casa_hub"  # noqa: A001 - Sphinx's name
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "client/README.md",
    "helm-values/README.md",
    "examples/**/README.md",
]
exclude_patterns = [".*", "**/.*", "build", "dist", "tests"]

myst_heading_anchors = 3
nitpicky = True
highlight_language = "none"  # what a block doesn't say of itself isn't guessed

html_theme = "furo"
html_title = "casa_hub"
html_extra_path = ["site"]  # index.html, which leads to docs/
html_show_sphinx = False


def without_directories(app: Sphinx, docname: str, source: list[str]) -> None:
    """Forges show a directory that is linked to; a site has no page of it, so there its name has to do."""
    here = (Path(app.srcdir) / docname).parent

    def name_only(link: re.Match[str]) -> str:
        return link[1] if (here / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^]]+)\]\(([^)#:]+)\)", name_only, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", without_directories)
