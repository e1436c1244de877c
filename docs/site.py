"""For mkdocs: the README is the first page, and files beside docs/ that pages link to are part of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_BESIDE = re.compile(r"\]\(\.\./(?!README)([^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the README, and the files that a page links to outside of docs/."""
    linked = {name for page in (ROOT / "docs").glob("*.md") for name in _BESIDE.findall(page.read_text("utf-8"))}
    readme = (ROOT / "README.md").read_text("utf-8")
    linked |= set(re.findall(r"\]\(((?:benchmarks|examples|CONTRIBUTING)[^)#]*)", readme))
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    for name in sorted(linked):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files beside docs/ lead to their place in the site."""
    if "/" in page.file.src_uri:
        return markdown
    return markdown.replace("](../README.md", "](index.md").replace("](../", "](")
