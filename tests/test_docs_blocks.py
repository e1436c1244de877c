"""Every block of the docs and of the README is run, page by page, in the order of the page, as a reader would.

The blocks of all pages use `net.py` of the tutorial, `small.py` of how-it-works, and these names: SETUP. A block whose
title is a command shows lines of the `model.py` that the command writes.
"""

import contextlib
import importlib
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)

SETUP = """
import dni_fx, torch
from net import build_model, sample
from torch import nn

model, criterion = build_model(), nn.CrossEntropyLoss()
x, y = sample(64)
loader = batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*sample(128)), 64)
"""

# What a page needs beside SETUP.
MORE = {
    "README": "writer = print",
    "from-pytorch-dni": "network = model",
}

# The first words of what is not run, each with the reason.
NOT_RUN = {
    "make ": "the commands of `make` call this test",
    "pip install": "needs a network",
    "python benchmarks/": "takes hours",
    "dni-fx launch": "tests/cli/test_launch.py runs it",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun": "tests/pipeline/test_checkpoint_restarts.py has such processes",
    "torchrun": "test_averaging.py, test_sharding.py and test_stages.py of tests/runtime run two processes",
}

# What makes a block small: other numbers, and options of a command, by its first argument.
FEWER = {"range(12)": "range(4)", "steps=1000": "steps=10", "range(100)": "range(10)"}
SMALLER = {
    "compare": ["--steps", "10"],
    "bench": ["--steps", "2", "--segments", "2"],
    "examples": ["--steps", "2", "--nhid", "8"],
}


class Block(NamedTuple):
    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, m.start()) + 1, m[1], m[2] or "", small(m[3]))
        for m in _BLOCK.finditer(text)
        if m[1] not in ("text", "json")
    ]


def small(text: str) -> str:
    """The same with fewer steps, and a net of fewer blocks."""
    for words, smaller in FEWER.items():
        text = text.replace(words, smaller)
    return text


def commands(text: str) -> Iterator[str]:
    """The commands of a block, each on one line, without the prompt and comments; other lines are what they print."""
    for line in text.replace("\\\n", " ").strip().splitlines():
        if line.startswith("$ "):
            yield line.removeprefix("$ ").split("  #")[0].strip()


def run_command(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    line, _, output = line.partition(" > ")
    program, *arguments = shlex.split(line)
    arguments += SMALLER.get(arguments[0].split("/")[0], [])
    if program == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(arguments[0], run_name="__main__")
        assert not ended.value.code, line
    else:
        assert program == "dni-fx", f"{line}: name it in NOT_RUN, with the reason"
        with open(output or os.devnull, "w") as file, contextlib.redirect_stdout(file):
            assert run(monkeypatch, *arguments) == 0, line


def has_lines(block: Block, written: str) -> None:
    """Each line of a block, but for its comment, is one of the code that dni-fx wrote."""
    lines = [line.split("  #")[0].strip() for line in written.splitlines()]
    for line in block.text.splitlines():
        assert line.split("  #")[0].strip() in lines, line


def run_block(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if block.title.startswith("dni-fx"):
        run_command(monkeypatch, f"{block.title} -o written --force")
        has_lines(block, Path("written", "model.py").read_text())
    elif block.title:
        Path(block.title).write_text(block.text)
    elif block.language == "console":
        for line in [line for line in commands(block.text) if not line.startswith(tuple(NOT_RUN))]:
            run_command(monkeypatch, line)
    elif block.language == "toml":
        folder = Path("with_defaults")
        folder.mkdir()
        (folder / "pyproject.toml").write_text(block.text)
        with contextlib.chdir(folder):  # a wrong key is an error
            run_command(monkeypatch, "dni-fx synthesizers")
    else:
        assert block.language == "python"
        exec(compile(block.text, f"line {block.line}", "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [block for page in PAGES for block in blocks(page)]
    files = {block.title: block.text for block in every if block.title.endswith(".py")}
    for name, text in (files | {"model.py": files["net.py"]}).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    ways = importlib.import_module("dni_fx.bench.ways")
    monkeypatch.setattr(ways, "_budgeted", ways.backprop)  # torch.compile takes ten seconds
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    names: dict[str, Any] = {"__name__": "docs"}
    exec(SETUP + MORE.get(page.stem, ""), names)
    for block in blocks(page):
        try:
            run_block(block, names, monkeypatch)
        except Exception as error:
            raise AssertionError(f"{page.name}, line {block.line}: {error}") from error
    sys.modules.pop("net", None)


def test_what_is_not_run() -> None:
    """Each entry is of a block that is there, and a script that is not run is there."""
    text = [line for page in PAGES for b in blocks(page) if b.language == "console" for line in commands(b.text)]
    for words in NOT_RUN:
        assert any(line.startswith(words) for line in text), words
    for script in re.findall(r"^python (\S+)", "\n".join(text), re.MULTILINE):
        assert (ROOT / script).is_file(), script
