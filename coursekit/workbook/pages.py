"""The workbook as HTML pages that need no network: navigation, light and dark, formulas, a description of every figure."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import jupyter_server_mathjax
import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from coursekit.workbook import WorkbookError
from coursekit.workbook.notebooks import code_cells, first_line, in_step, opening, read_source, run, sources
from coursekit.workbook.publish import colab_url, published

PLACEHOLDER = "No description has been provided"  # what nbconvert writes where an image has no alternative text
MATHJAX = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"  # copied beside the pages, so that they need no network

STYLE = """
:root { color-scheme: light dark }
body { max-width: 62rem; margin: 0 auto; padding: 0 1rem 4rem; line-height: 1.6 }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; padding: .8rem 0; font: .95rem/1.5 sans-serif }
nav details { flex-basis: 100% }
nav, nav a, body > main > p { color: var(--jp-content-font-color1) }
img { max-width: 100%; height: auto }
.jp-RenderedImage img { background: #fff }   /* axes and labels are drawn for paper */
.jp-RenderedHTMLCommon a:is(:link, :visited) { text-decoration: underline; color: var(--jp-content-link-color) }
.jp-CodeMirrorEditor pre, .jp-OutputArea-output pre { white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere }
.jp-RenderedMarkdown.jp-MarkdownOutput { overflow: visible }
.MathJax_Display { overflow-x: auto; overflow-y: hidden }
.jp-RenderedMarkdown table { display: block; overflow-x: auto }
.jp-Cell { padding-left: 0; padding-right: 0 }
.jp-Notebook .jp-Cell :is(.jp-InputPrompt, .jp-OutputPrompt) { color: inherit; opacity: 1; flex: 0 0 4rem; min-width: 0 }
@media (max-width: 48rem) { .jp-Notebook .jp-Cell :is(.jp-InputPrompt, .jp-OutputPrompt) { display: none } }
"""

# The lab template leaves alternative text out, so it is put in here; and it loads require.js and mermaid, which nothing here uses.
TEMPLATE = (
    """{% extends 'index.html.j2' %}
{% block html_head_js_mathjax %}
<script type="text/x-mathjax-config">
MathJax.Hub.Config({"HTML-CSS": {availableFonts: [], preferredFont: null, webFont: "STIX-Web", imageFont: null}});
</script>
{{ super() }}
{% endblock %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<style media="(prefers-color-scheme: dark)">{{ resources.dark }}</style>
<style>"""
    + STYLE
    + """</style>
{% endblock %}
{% block body_header %}{{ super() }}<nav aria-label="top"><!-- navigation --></nav>{% endblock %}
{% block body_footer %}<nav aria-label="bottom"><!-- navigation --></nav>{{ super() }}{% endblock %}
{% macro described(image, cell) %}{{ image | replace('<img ', '<img alt="' ~ (cell.metadata.alt | escape_html) ~ '" ') }}{% endmacro %}
{% block data_svg scoped %}{{ described(super(), cell) }}{% endblock %}
{% block data_png scoped %}{{ described(super(), cell) }}{% endblock %}
{% block data_jpg scoped %}{{ described(super(), cell) }}{% endblock %}
"""
)


def undescribed(notebook: NotebookNode) -> list[str]:
    """The code cells that hold an image but no description of it in their ``alt`` metadata."""

    def blank(cell: NotebookNode) -> bool:
        alt = str(cell.metadata.get("alt", "")).strip()
        return not alt or PLACEHOLDER in alt

    return [f"Cell {number} ({first_line(cell)}) shows an image and has no alt text; describe it: # %% alt=\"...\""
            for number, cell in enumerate(code_cells(notebook)) if has_image(cell) and blank(cell)]  # fmt: skip


def has_image(cell: NotebookNode) -> bool:
    """Whether a code cell's outputs hold an image."""
    return any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))


def to_html(notebook: NotebookNode, name: str, pages: Sequence[tuple[str, str]] = (), colab: str = "") -> str:
    """An executed notebook as one HTML page with described images. Raises ``WorkbookError`` naming each cell with an undescribed one.

    ``pages`` are the (name, title) of all pages, in order; ``colab`` is where the notebook can be run, if anywhere.
    """
    if complaints := undescribed(notebook):
        raise WorkbookError("\n".join(f"{name}: {complaint}" for complaint in complaints))
    exporter = HTMLExporter(template_name="lab", raw_template=TEMPLATE, embed_images=True, mathjax_url=MATHJAX)
    resources = {"metadata": {"name": name}, "dark": _dark_theme(exporter)}
    page, _ = exporter.from_notebook_node(_without_widgets(notebook, colab), resources)
    if PLACEHOLDER in page:  # an <img> of some other origin: in Markdown, or in an HTML output
        cell_id = page[: page.index(PLACEHOLDER)].rpartition('id="cell-id=')[2].partition('"')[0]
        source = next((cell.source for cell in notebook.cells if cell.id == cell_id), cell_id)
        raise WorkbookError(f"{name}: an image without alt text in the cell that begins\n{source[:200]}")
    page = page.replace("<table>", '<table tabindex="0">')  # wide ones scroll, and so must be reachable by the keyboard
    return page.replace("<!-- navigation -->", _navigation(page, name, pages, colab))


def _dark_theme(exporter: HTMLExporter) -> str:
    """JupyterLab's own dark colours, as nbconvert carries them."""
    files = (Path(folder) / "static" / "theme-dark.css" for folder in exporter.template_paths)
    return next(file for file in files if file.is_file()).read_text(encoding="utf-8")


def _without_widgets(notebook: NotebookNode, colab: str) -> NotebookNode:
    """A copy in which each explorer, which needs a kernel, is a line that says so; its snapshot is in the next cell."""
    copied: NotebookNode = nbformat.from_dict(notebook)
    place = f'<a href="{html.escape(colab)}">in Colab</a> or in JupyterLab' if colab else "in JupyterLab or Colab"
    for output in (output for cell in code_cells(copied) for output in cell.outputs):
        text = output.get("data", {}).get("text/plain", "")
        if found := re.fullmatch(r"(\w+Explorer)\((.*)\)", text):
            output.data["text/html"] = f"<p>{found[1]}, with controls for {found[2]}: run this notebook {place} to move them.</p>"
    return copied


def _navigation(page: str, name: str, pages: Sequence[tuple[str, str]], colab: str) -> str:
    """Links to the index, to the pages before and after, to Colab, and to the sections of this one."""
    place = [each for each, _ in pages].index(name) if pages else 0
    links = [("index.html", "All notebooks")] if pages else []
    links += [(f"{other}.html", f"← {title}") for other, title in pages[max(place - 1, 0) : place]]
    links += [(f"{other}.html", f"{title} →") for other, title in pages[place + 1 : place + 2]]
    links += [(colab, "Open in Colab")] if colab else []
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', page)
    items = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title in sections)
    contents = f"<details><summary>In this notebook</summary><ol>{items}</ol></details>" if items else ""
    return "".join(f'<a href="{html.escape(url)}">{html.escape(text)}</a>' for url, text in links) + contents


def write_html(root: Path, target: Path) -> Path:
    """Execute every notebook, write its HTML and an index to ``target``, and return the index. The notebooks' own files stay as they are.

    Raises ``WorkbookError`` where ``target`` is a file, and as ``run`` and ``to_html`` do.
    """
    if target.exists() and not target.is_dir():
        raise WorkbookError(f"{target} is a file; name a folder for the HTML")
    shutil.copytree(Path(jupyter_server_mathjax.__file__).parent / "static", target / "mathjax", dirs_exist_ok=True)
    repository, tag = published(root)
    openings = {path.stem: opening(read_source(path)) for path in sources(root)}
    pages = [(name, title) for name, (title, _) in openings.items()]
    for path in sources(root):
        page = to_html(run(in_step(path), path), path.stem, pages, colab_url(repository, tag, path.stem))
        (target / f"{path.stem}.html").write_text(page, encoding="utf-8")
    entries = [f'<li><a href="{name}.html">{html.escape(title)}</a><p>{html.escape(sentence)}</p></li>'
               for name, (title, sentence) in openings.items()]   # fmt: skip
    index = target / "index.html"
    index.write_text(INDEX.replace("ENTRIES", "\n".join(entries)), encoding="utf-8")
    return index


INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>coursekit</title><style>
:root { color-scheme: light dark }
body { max-width: 45em; margin: 3em auto; padding: 0 1em; font: 1.1em/1.5 sans-serif }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } a { color: #8ab4f8 } a:visited { color: #c58af9 } }
ol { list-style: none; padding: 0 }
</style></head>
<body><main><h1>coursekit</h1>
<p>A workbook on deep learning for vision in which every claim is a check that runs.</p>
<ol>
ENTRIES
</ol></main></body></html>
"""
