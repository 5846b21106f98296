"""The README becomes the first page of the site: links into `docs/` lose that folder, and links to it lead there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

README = Path(__file__).parents[1] / "README.md"


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the README as `index.md`."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leads links to the README to the first page."""
    return markdown.replace("](../README.md", "](index.md")
