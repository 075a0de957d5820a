"""Hooks for MkDocs, which calls them by their names."""

from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

from docs.generator.pages import UnknownPart, expand


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """The page with its generated parts in place. Raises PluginError, which fails the build, for a part that nothing generates."""
    try:
        return expand(markdown)
    except UnknownPart as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None
