"""Makes pages of the site out of what is written elsewhere: the home page of README.md, the API of the docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# What a page shows besides what its package exports.
BESIDE = {
    "metrics": "::: deqcert.metrics.certified",
    "smoothing": "::: deqcert.smoothing.sampling\n    options: {members: [sample_under_noise, count_votes]}",
    "statistics": "## The joint rule, and its proof\n\n::: deqcert.statistics.joint\n    options: {members: false}",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the API to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{f"deqcert.{name}": f"api/{name}.md"} for name in _public_packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, and a page for each package."""
    home = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    home = re.sub(r"`docs/(\w+)\.md`", r"[\1](\1.md)", home)  # an index that shows the README has no pages to link
    files.append(File.generated(config, "index.md", content=home))
    for name in _public_packages():
        content = f"# deqcert.{name}\n\n::: deqcert.{name}\n\n{BESIDE.get(name, '')}"
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


def _public_packages() -> list[str]:
    names = (path.parent.name for path in ROOT.glob("deqcert/*/__init__.py") if "__all__" in path.read_text("utf-8"))
    return [*sorted(names), "errors"]


class MarkdownDocstrings(griffe.Extension):
    """Makes MathML, which browsers show without a script, and Markdown of the roles of reStructuredText."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^\.\. math:: (.+)$", _block, obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r":math:`([^`]+)`", lambda found: convert(found[1]), text)
            obj.docstring.value = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)


def _block(found: re.Match[str]) -> str:
    return "\n" + convert(found[1], display="block").replace(r"\_", "_") + "\n"
