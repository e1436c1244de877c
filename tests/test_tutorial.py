"""Every block of the tutorial is run, in its order, as a reader would."""

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import run

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCKS = re.findall(r'```(\w+)(?: title="([\w.]+)")?\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    for language, title, text in BLOCKS:
        if title:
            Path(title).write_text(text)
        elif language == "console":
            for line in text.strip().splitlines():
                assert run(monkeypatch, *line.removeprefix("$ dni-fx ").split()) == 0, line
        else:
            exec(compile(text, str(PAGE), "exec"), names)
    assert len(BLOCKS) == 7 and {"run.pt", "trained", "net.py"} <= {path.name for path in tmp_path.iterdir()}
    assert "checks passed" in capsys.readouterr().out
