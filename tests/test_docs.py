"""The site: it builds without a warning, so that every link leads somewhere, and the reference is whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dni_fx

ROOT = Path(__file__).parents[1]


def test_the_reference_names_every_public_name() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: dni_fx\.\w+\.(\w+)$", text, re.MULTILINE)) == sorted(dni_fx.__all__)


def test_the_passes_are_named() -> None:
    text = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    for path in (ROOT / "passes").glob("[a-z]*.py"):
        assert f"::: passes.{path.stem}." in text or f"`passes/{path.name}`" in text, path.name


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert "What cutting a model costs in loss" in reference
    for page in [p for p in tmp_path.rglob("*.html") if "benchmarks" not in p.parts]:
        for link in re.findall(r'href="((?!https?:|#|mailto:)[^"#]+)', page.read_text(encoding="utf-8")):
            there = (page.parent / link).resolve()
            assert there.exists() or page.name == "404.html", f"{page.relative_to(tmp_path)}: {link}"
