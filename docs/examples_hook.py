"""Puts examples/ into the site, so that the pages' links to it work there as in a checkout."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

EXAMPLES = Path(__file__).parents[1] / "examples"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds every example under its path in the repository."""
    for path in sorted(EXAMPLES.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(EXAMPLES.parent).as_posix()
            added = File.generated(
                config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV
            )
            files.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """In the repository examples/ is beside docs/, in the site it is inside."""
    return markdown.replace("](../examples/", "](examples/")
