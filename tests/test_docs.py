"""The site: it builds without a warning, so that every link leads somewhere, and the reference is whole."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import dni_fx
from dni_fx import plans
from dni_fx.plans import Plan

ROOT = Path(__file__).parents[1]


def test_the_reference_names_every_public_name() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: dni_fx\.\w+\.(\w+)$", text, re.MULTILINE)) == sorted(dni_fx.__all__)


def test_the_passes_are_named() -> None:
    text = (ROOT / "docs" / "passes.md").read_text(encoding="utf-8")
    for path in (ROOT / "passes").glob("[a-z]*.py"):
        assert f"::: passes.{path.stem}." in text or f"`passes/{path.name}`" in text, path.name


def fields_of(cls: Any) -> Iterator[tuple[Any, str]]:
    """Each field of a dataclass, and of those in the types of its fields."""
    for name, kind in get_type_hints(cls).items():
        if name in cls.__dataclass_fields__:
            yield cls, name
            for inner in [*re.findall(r"dni_fx\.\w+\.(\w+)", str(kind)), getattr(kind, "__name__", "")]:
                if inner in plans.__all__ and inner != "Plan":
                    yield from fields_of(getattr(plans, inner))


def test_each_field_of_a_plan_is_explained() -> None:
    """The page shows the docstring of each class of the plan, which names each field."""
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    found = set(fields_of(Plan))
    assert {cls.__name__ for cls, _ in found} | {"Plan"} == set(re.findall(r"^::: dni_fx\.\w+\.(\w+)$", text, re.M))
    assert not [(cls.__name__, name) for cls, name in found if f"    {name}: " not in cls.__doc__]


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
