"""The site: ``sphinx-build -W --keep-going docs OUT``, with the extra ``docs``."""

import re
from importlib.metadata import version as installed
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "Context encoders"
author = "the contributors"
version = release = installed("context-encoder")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
exclude_patterns = ["results/**", "_build"]
html_theme = "furo"
# MathML, which browsers show themselves: MathJax would have to be loaded from elsewhere.
html_math_renderer = "mathml"
html_title = f"Context encoders {version}"
html_copy_source = False

# Links to files of the repository that are no pages: the site has no copy of them.
_OUTSIDE = re.compile(r"\[([^]]+)\]\((\.\./[^)#\s]+|results/[^)#\s]*)(?:#[^)\s]*)?\)")


def _name_files(app, name, source):
    """Replace links that leave the site by the file's name, which must exist."""
    folder = Path(app.srcdir, name).parent

    def plain(found):
        text, path = found[1], found[2]
        if not (folder / path).exists():
            raise ValueError(f"docs/{name}.md links to {path}, which does not exist")
        file = (folder / path).resolve().relative_to(Path(app.srcdir).resolve().parent)
        return text if file.name in text else f"{text} (`{file}`)"

    source[0] = _OUTSIDE.sub(plain, source[0])


def _math(display):
    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=_math("inline"), block_renderers=_math("block")
    )
    app.connect("source-read", _name_files)
