"""The order of the packages, their docstrings, short files, plain words, and a test file for each file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a package or file imports only from those before it.
ORDER = [
    "errors",
    "json_data",
    "paths",
    "units",
    "progress",
    "arguments",
    "settings",
    "forecasts",
    "cut_plans",
    "plans",
    "partition",
    "model",
    "graph",
    "ops",
    "passes",
    "synthesizers",
    "runtime",
    "capture",
    "cost",
    "cuts",
    "report",
    "store",
    "page",
    "planning",
    "compiler",
    "api",
    "proof",
    "bench",
    "comparison",
    "pipeline",
    "pytorch_dni",
    "integrations",
    "cli",
]
PACKAGES = [name for name in ORDER if (ROOT / "dni_fx" / name).is_dir() or name == "passes"]


def files_of(name: str) -> list[Path]:
    if name == "passes":
        return sorted((ROOT / "passes").glob("*.py"))
    folder = ROOT / "dni_fx" / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The dotted path below `dni_fx` of everything that a file imports, also inside of functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path}: write a relative import in full"
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "dni_fx":
            for name in node.names:
                yield (*node.module.split("."), name.name)[1:]
        elif isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")[1:]) for name in node.names if name.name.startswith("dni_fx."))


def only_for_types(path: Path) -> set[tuple[str, ...]]:
    """What a file imports under `if TYPE_CHECKING:` alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {
        (*node.module.split("."), name.name)[1:]
        for block in blocks
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for name in node.names
    }


def forbidden_imports(name: str, path: Path) -> list[str]:
    below = ORDER[: ORDER.index(name) + 1]
    return [
        ".".join(what) for what in imported(path) if what and what[0] not in below and what not in only_for_types(path)
    ]


def test_the_order_names_every_package_and_file() -> None:
    there = {p.stem for p in (ROOT / "dni_fx").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert there - {"__init__", "__main__"} | {"passes"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_what_stands_below(name: str) -> None:
    found = {str(path.relative_to(ROOT)): forbidden_imports(name, path) for path in files_of(name)}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("name", ORDER)
def test_imports_other_packages_from_their_init(name: str) -> None:
    """A name that is not in the `__init__` of a package is private to it; passes are one class a file."""
    inside = {
        str(path.relative_to(ROOT)): [".".join(what) for what in imported(path) if _is_inside(name, what)]
        for path in files_of(name)
    }
    assert not {path: names for path, names in inside.items() if names}


def _is_inside(name: str, what: tuple[str, ...]) -> bool:
    return len(what) > 2 and what[0] in PACKAGES and what[0] not in (name, "passes")


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    """The tests above can fail."""
    path = tmp_path / "broken.py"
    path.write_text("from dni_fx.compiler import rewrite\n\n\ndef late() -> None:\n    from dni_fx import cli\n")
    assert forbidden_imports("graph", path) == ["compiler.rewrite", "cli"]
    assert forbidden_imports("cli", path) == []
    path.write_text("from .capture import capture\n")
    with pytest.raises(AssertionError, match="relative import"):
        forbidden_imports("graph", path)
    assert _is_inside("graph", ("capture", "verify", "verify")) and not _is_inside(
        "capture", ("capture", "verify", "x")
    )


@pytest.mark.parametrize("name", PACKAGES)
def test_package_docstrings(name: str) -> None:
    """What it is for, what comes in, what goes out: in five lines at most."""
    folder = ROOT / "passes" if name == "passes" else ROOT / "dni_fx" / name
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert 1 <= len(text.splitlines()) <= 5
    assert "In: " in text and "Out: " in text


@pytest.mark.parametrize("name", ORDER)
def test_files_are_short(name: str) -> None:
    """A file holds one idea; a function can be read on one screen."""
    long_files = {}
    for path in files_of(name):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 350:
            long_files[path.name] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.body[0].lineno + 1 if node.end_lineno is not None else 0
                if ast.get_docstring(node) is not None and len(node.body) > 1:
                    lines = (node.end_lineno or 0) - node.body[1].lineno + 1
                if lines > 50:
                    long_files[f"{path.name}:{node.name}"] = lines
    assert not long_files


TRICKS = re.compile(r"""isinstance\(.*HookedModule|__dict__\["dni_|SimpleNamespace\(""")
PEOPLE = re.compile(r"\b(told|heard|lessons?|strangers?|nobody|whoever)\b", re.IGNORECASE)
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", ORDER)
def test_no_tricks(name: str) -> None:
    """A class is asked for what it can do by a method; attributes and options have types."""
    found = {path.name: TRICKS.findall(path.read_text(encoding="utf-8")) for path in files_of(name)}
    assert not {path: tricks for path, tricks in found.items() if tricks}


def test_plain_words() -> None:
    """Data and code do not speak or hear."""
    paths = [path for name in ORDER for path in files_of(name)] + TEXTS
    found = {str(path.relative_to(ROOT)): PEOPLE.findall(path.read_text(encoding="utf-8")) for path in paths}
    assert not {path: words for path, words in found.items() if words}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_links(path: Path) -> None:
    """Each link to a file of the project leads to one."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (path.parent / target).exists()]


SHOWN_BY = re.findall(
    r"`(tests/[a-z_/]+\.py)(?:::([a-z_0-9]+))?`", (ROOT / "docs" / "other-libraries.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("path", "name"), SHOWN_BY)
def test_what_works_with_what_is_shown(path: str, name: str) -> None:
    """Each row of docs/other-libraries.md names a test that is there."""
    assert f"def {name or 'test_'}" in (ROOT / path).read_text(encoding="utf-8")


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
IN_PACKAGES = [path for path in TESTS if path.parent.name != "tests"]


@pytest.mark.parametrize("path", IN_PACKAGES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_test_file_is_named_as_a_file(path: Path) -> None:
    """The tests of `dni_fx/cost/times.py` are in `tests/cost/test_times.py`, or a longer name."""
    name = path.stem.removeprefix("test_")
    assert any(name == file.stem or name.startswith(f"{file.stem}_") for file in files_of(path.parent.name))


def test_no_test_file_imports_another() -> None:
    """What several test files use is in a file beside `tests/nets.py`."""
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [m for m in modules if m and m.split(".")[-1].startswith(("test_", "conftest"))], path
