"""What the site adds to the Markdown files: examples/, and the text that `--help` prints."""

import re
from pathlib import Path

from click.testing import CliRunner
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from recast.commands import cli

EXAMPLES = Path(__file__).parents[1] / "examples"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every example under its path in the repository, so that links to it work."""
    for path in sorted(EXAMPLES.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(EXAMPLES.parent).as_posix()
            added = File.generated(
                config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV
            )
            files.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the Markdown of a page fit the site."""
    if page.file.src_uri == "commands.md":
        markdown += help_texts()
    # In the repository examples/ is beside docs/, in the site it is inside.
    markdown = markdown.replace("](../examples/", "](examples/")
    # A note to the tests, which run the other blocks.
    markdown = re.sub(r'^(```\w+) title="not run here: .*"$', r"\1", markdown, flags=re.MULTILINE)
    # In a table, GitHub requires a backslash before a | in code; Python-Markdown would show it.
    return re.sub(r"^\|.*$", lambda row: row[0].replace(r"\|", "|"), markdown, flags=re.MULTILINE)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep short code, such as an option, on one line."""
    return re.sub(r"<code>(?=[^<]{1,30}</code>)", '<code class="short">', html)


def help_texts() -> str:
    """A section for each command, with the text of its --help."""
    sections = []
    for name in (None, *cli.commands):
        arguments = [name] if name else []
        result = CliRunner().invoke(
            cli, [*arguments, "--help"], prog_name="recast", terminal_width=80
        )
        if result.exit_code:
            raise result.exception or RuntimeError(result.output)
        heading = " ".join(["recast", *arguments])
        sections.append(f"\n## {heading}\n\n```text\n{result.output}```\n")
    return "".join(sections)
