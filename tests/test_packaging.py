"""What is installed: the packages of the tree, and nothing else; and how little an import costs."""

import ast
import os
import pydoc
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _python(code: str, cwd: Path, path: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (
        {"PYTHONPATH": str(path)} if path else {}
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_packages_are_those_of_the_tree() -> None:
    tree = {
        ".".join(folder.relative_to(ROOT).parts)
        for folder in (ROOT / "dni_fx", *(ROOT / "dni_fx").rglob("*"))
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == tree | {"dni_fx.passes"}
    assert settings["package-dir"] == {"dni_fx.passes": "passes"}
    assert not [p for p in (ROOT / "passes").iterdir() if p.is_dir() and p.name != "__pycache__"]  # flat
    assert (ROOT / "dni_fx" / "py.typed").exists()


def test_the_link_for_type_checkers() -> None:
    assert (ROOT / "typings" / "dni_fx" / "passes").resolve() == ROOT / "passes"


def test_the_version_is_that_of_the_project() -> None:
    import dni_fx

    assert dni_fx.__version__ == PROJECT["project"]["version"]
    assert f"## {dni_fx.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {dni_fx.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_what_is_public_is_there() -> None:
    import dni_fx

    tree = ast.parse((ROOT / "dni_fx" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for_types = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert for_types == {name: f"dni_fx.{home}" for name, home in dni_fx._MODULES.items()}
    assert dni_fx.__all__ == sorted(dni_fx._MODULES)
    for name in dni_fx.__all__:
        assert getattr(dni_fx, name).__doc__, name
    assert {*dni_fx.__all__, "__version__"} <= set(dir(dni_fx))
    assert not {"importlib", "version", "Any", "TYPE_CHECKING"} & set(dir(dni_fx))
    for name in dni_fx.__all__:
        assert re.search(rf"^    (.*, )?{name}\b", dni_fx.__doc__ or "", re.MULTILINE), name
    shown = pydoc.render_doc(dni_fx, renderer=pydoc.plaintext)
    for name in dni_fx.__all__:
        assert re.search(rf"^    (class )?{name}\(", shown, re.MULTILINE), name
    with pytest.raises(AttributeError, match="no attribute 'transfrom'"):
        dni_fx.transfrom  # noqa: B018


@pytest.mark.parametrize("module", ["dni_fx", "dni_fx.cli", "dni_fx.errors", "dni_fx.partition"])
def test_torch_is_imported_late(module: str, tmp_path: Path) -> None:
    assert _python(f"import sys, {module}; print('torch' in sys.modules)", tmp_path).strip() == "False"


@pytest.mark.slow
def test_names_that_start_alone(tmp_path: Path) -> None:
    """Any module may be the first that is imported: no circle of imports. Its package is imported before it."""
    files = [p.relative_to(ROOT) for p in (ROOT / "dni_fx").rglob("*.py") if not p.stem.startswith("__")]
    modules = sorted(".".join(p.with_suffix("").parts) for p in files)
    modules += [f"dni_fx.passes.{p.stem}" for p in sorted((ROOT / "passes").glob("*.py")) if p.stem != "__init__"]
    assert len(modules) > 80
    code = f"""
import importlib, itertools, sys, torch
for first, names in itertools.groupby({modules}, key=lambda name: name.split(".")[1]):
    for loaded in [m for m in sys.modules if m == "dni_fx" or m.startswith("dni_fx.")]:
        if not loaded.startswith("dni_fx.ops"):  # registers operators with torch: once
            del sys.modules[loaded]
    for name in [f"dni_fx.{{first}}", *names]:
        importlib.import_module(name)
print("fine")
"""
    assert _python(code, tmp_path).strip() == "fine"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")  # nothing is downloaded
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout: a wheel would be built from whatever lies in the folder")
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():  # a copy: building writes into the folder
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]  # from the sdist
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    code = {n for n in names if ".dist-info/" not in n}
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "dni_fx").rglob("*.py")} | {"dni_fx/py.typed"}
    expected |= {f"dni_fx/cli/schemas/{p.name}" for p in (ROOT / "dni_fx" / "cli" / "schemas").iterdir()}
    expected |= {f"dni_fx/page/{p.parent.name}/{p.name}" for p in (ROOT / "dni_fx" / "page").glob("[fv]*/*")}
    assert code == expected | {f"dni_fx/passes/{p.name}" for p in (ROOT / "passes").glob("*.py")}
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Beside this environment's torch, but without its editable install of the project."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    libraries = sysconfig.get_path("purelib")
    code = f"""
import sys
sys.path.append({libraries!r})  # added by hand, so that its .pth files do not run
import dni_fx, dni_fx.passes, torch
for other in ("passes", "tests", "examples", "conftest"):
    try:
        __import__(other)
    except ModuleNotFoundError:
        continue
    raise SystemExit(other + " can be imported")
from dni_fx.passes import apply
net = dni_fx.transform(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)))
net(torch.rand(5, 3)).sum().backward()
print(dni_fx.__file__, apply.__file__, dni_fx.__version__)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=empty, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version = PROJECT["project"]["version"]
    assert done.stdout.split() == [str(site / "dni_fx/__init__.py"), str(site / "dni_fx/passes/apply.py"), version]
