"""TARGETs: what can be named, what is found when nothing is named, and one clear line for whatever goes wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from dni_fx.errors import DniFxError
from dni_fx.model.loading import load_target

HEAD = "import torch\nfrom torch import nn\n"  # two lines: the case's own text starts at line 3
NET = """
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what a test imports and puts on the path is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if name not in before and str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(HEAD + text)


FOUND = [
    # what follows the head of net.py, the target, the class of the model that is found
    ("model = nn.ReLU()", "net.py", "ReLU"),
    ("model = nn.ReLU", "net.py", "ReLU"),
    ("model = nn.ReLU()\ndef build_model(): return nn.Tanh()", "net.py", "ReLU"),
    (NET + "def build_model(): return nn.Tanh()", "net.py", "Tanh"),
    (NET, "net.py", "Net"),
    (NET + "net = Net(9)\nother = nn.ReLU()", "net.py", "Net"),
    ("from torch.nn import Linear, ReLU\n" + NET, "net.py", "Net"),
    (NET + "class Wide(Net):\n    def __init__(self, width): super().__init__(width)", "net.py", "Net"),
    (NET + "class Other(nn.Module): pass", "net.py:Net", "Net"),
    (NET + "net = Net(9)", "net.py:net", "Net"),
    ("def make(depth=2): return nn.Tanh()", "net.py:make", "Tanh"),
    ("class Zoo:\n    small = nn.ReLU()\n    class In:\n        large = nn.Tanh()", "net.py:Zoo.In.large", "Tanh"),
    ("model = nn.Sequential(nn.ReLU(), nn.Tanh())", "net.py:model.1", "Tanh"),
    ("model = nn.Sigmoid()", "./net.py", "Sigmoid"),
    ("model = nn.Sigmoid()", "net:model", "Sigmoid"),
]


@pytest.mark.parametrize(("text", "target", "expected"), FOUND)
def test_found(text: str, target: str, expected: str) -> None:
    write("net.py", text)
    model, inputs = load_target(target)
    assert type(model).__name__ == expected
    assert inputs is None


@pytest.mark.parametrize("target", ["deep/pkg/sub/net.py", "deep/pkg/sub/net.py:Net"])
def test_file_inside_a_package(target: str) -> None:
    for name in ("deep/pkg/__init__.py", "deep/pkg/sub/__init__.py"):
        write(name, "")
    write("deep/pkg/parts.py", "def width(): return 7")
    write("deep/pkg/sub/net.py", "from ..parts import width\n" + NET.replace("width=4", "width=width()"))
    model, _ = load_target(target)
    assert model.layer.in_features == 7  # type: ignore[union-attr]
    assert type(model).__module__ == "pkg.sub.net"


def test_sibling_imports_from_anywhere() -> None:
    write("project/parts_beside.py", "WIDTH = 5")
    write("project/net.py", "import parts_beside\nmodel = nn.Linear(parts_beside.WIDTH, 1)")
    assert load_target("project/net.py")[0].in_features == 5


def test_file_named_like_an_installed_module() -> None:
    write("torch.py", "model = nn.ReLU()")
    assert isinstance(load_target("torch.py")[0], nn.ReLU)
    assert sys.modules["torch"] is torch


def test_installed_module() -> None:
    assert isinstance(load_target("torch.nn:Identity")[0], nn.Identity)


BAD = [
    # net.py, the target, exit code, what the message says
    (None, "absent.py", 2, ["no such file: absent.py"]),
    (None, "absent.py:model", 2, ["no such file: absent.py"]),
    (None, "folder.py", 2, ["no such file: folder.py"]),
    (None, ".", 2, ["neither a .py file"]),
    (None, "", 2, ["neither a .py file"]),
    (None, "absent.module:model", 2, ["no module named 'absent'"]),
    (None, "..x:model", 2, ["names no module"]),
    ("", "net", 2, ["neither a .py file", "suffix .py missing"]),
    ("model = nn.ReLU(", "net.py", 3, ["net.py:3", "never closed"]),
    ("\n\n  x = 1", "net.py", 3, ["net.py:5", "unexpected indent"]),
    ("raise ValueError('of my own\\nsecond line')", "net.py", 3, ["net.py:3: ValueError: of my own"]),
    ("1 / 0", "net:model", 3, ["net.py:3: ZeroDivisionError"]),
    ("raise SystemExit(4)", "net.py", 3, ["net.py:3: SystemExit"]),
    ("import sys\nsys.exit()", "net.py", 3, ["net.py:4: SystemExit"]),
    ("import of_nothing", "net.py", 3, ["net.py:3", "of_nothing"]),
    ("import of_nothing", "net:model", 3, ["net.py:3", "of_nothing"]),
    ("def f():\n    nn.Linear('a', 3)\nf()", "net.py", 3, ["net.py:4: TypeError"]),
    ("import json\njson.loads('{')", "net.py", 3, ["net.py:4: JSONDecodeError"]),
    ("", "net.py", 2, ["holds no model", "build_model"]),
    ("from torch.nn import Linear", "net.py", 2, ["holds no model"]),
    ("x = 3", "net.py", 2, ["holds no model"]),
    ("a = nn.ReLU()\nb = nn.Tanh()", "net.py", 2, ["several", "a, b", "net.py:a"]),
    (NET + "class Other(nn.Module): pass", "net.py", 2, ["several", "Net, Other", "net.py:Net"]),
    (NET.replace("width=4", "width"), "net.py", 2, ["Net", "without arguments", "build_model"]),
    (NET, "net.py:Nett", 2, ["'Nett'", "did you mean 'Net'?"]),
    (NET, "net.py:qqq", 2, ["'qqq'"]),
    ("class Zoo:\n    small = nn.ReLU()", "net.py:Zoo.smal", 2, ["'smal'", "'small'"]),
    ("model = 3", "net.py", 2, ["int is no nn.Module"]),
    ("x = 'text'", "net.py:x", 2, ["a str is no nn.Module"]),
    ("x = None", "net.py:x", 2, ["NoneType"]),
    (NET.replace("width=4", "width"), "net.py:Net", 2, ["Net cannot be called without arguments"]),
    ("def make(depth): return nn.ReLU()", "net.py:make", 2, ["make cannot be called without arguments"]),
    ("def build_model(*, depth): return nn.ReLU()", "net.py", 2, ["build_model cannot be called"]),
    ("def make(): return [nn.ReLU()]", "net.py:make", 2, ["made a list, not an nn.Module"]),
    ("def build_model(): pass", "net.py", 2, ["made a NoneType"]),
    ("def make():\n    raise KeyError('weights')", "net.py:make", 3, ["net.py:4: KeyError: 'weights'"]),
    ("def make():\n    raise RuntimeError", "net.py:make", 3, ["net.py:4: RuntimeError"]),
    ("def make(): exit()", "net.py:make", 3, ["SystemExit"]),
    ("def __getattr__(name):\n    raise OSError('gone')", "net.py:lazy", 3, ["net.py:4: OSError: gone"]),
    ("def __getattr__(name):\n    raise OSError('gone')", "net.py", 3, ["net.py:4: OSError: gone"]),
    ("model = nn.ReLU()\nexample_kwargs = [1]", "net.py", 2, ["example_kwargs must be a dict, not a list"]),
    ("model = nn.ReLU()\ndef example_inputs():\n    1 / 0", "net.py", 3, ["net.py:5: ZeroDivisionError"]),
    ("model = nn.ReLU()\ndef example_inputs(n): return 1", "net.py", 3, ["example_inputs", "'n'"]),
]


@pytest.mark.parametrize(("text", "target", "code", "parts"), BAD, ids=[f"{i}-{c[1]}" for i, c in enumerate(BAD)])
def test_bad(text: str | None, target: str, code: int, parts: list[str]) -> None:
    Path("folder.py").mkdir()
    if text is not None:
        write("net.py", text)
    with pytest.raises(DniFxError) as caught:
        load_target(target)
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith((" ", ":"))
    assert caught.value.exit_code == code, message
    for part in parts:
        assert part in message


def test_not_text() -> None:
    for content in (b"\xff\xfe\x00 = 1", b"\xff = 1", b"x = 1\n\x00"):
        Path("net.py").write_bytes(content)
        with pytest.raises(DniFxError, match=r"net\.py is no Python source") as caught:
            load_target("net.py")
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)


def test_a_file_that_failed_can_be_loaded_again() -> None:
    write("net.py", "1 / 0")
    with pytest.raises(DniFxError):
        load_target("net.py")
    write("net.py", "model = nn.ReLU()  # put right")
    assert isinstance(load_target("net.py")[0], nn.ReLU)


def test_an_interrupt_is_let_through() -> None:
    write("net.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_target("net.py")


def test_prints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "net.py",
        "print('at import')\ndef build_model():\n    print('in the factory')\n    return nn.ReLU()\n"
        "def example_inputs():\n    print('for inputs')\n    return torch.ones(1)\n",
    )
    load_target("net.py")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["at import", "in the factory", "for inputs"]


EXAMPLES = [
    ("example_inputs = torch.ones(2, 3)", [(2, 3)], {}),
    ("example_inputs = torch.ones(2, 3), torch.ones(4)", [(2, 3), (4,)], {}),
    ("example_inputs = [torch.ones(2), torch.ones(4)]", [(2,), (4,)], {}),
    ("def example_inputs(): return torch.ones(2, 3)", [(2, 3)], {}),
    ("def example_inputs(): return (torch.ones(2, 3),)", [(2, 3)], {}),
    ("example_kwargs = {'mask': torch.ones(2)}", [], {"mask": (2,)}),
    ("example_inputs = torch.ones(1)\ndef example_kwargs(): return {'m': torch.ones(5)}", [(1,)], {"m": (5,)}),
]


@pytest.mark.parametrize(("text", "args", "kwargs"), EXAMPLES)
def test_example_inputs(text: str, args: list[tuple[int, ...]], kwargs: dict[str, tuple[int, ...]]) -> None:
    write("net.py", "model = nn.ReLU()\n" + text)
    _, inputs = load_target("net.py")
    assert inputs is not None
    assert [tuple(a.shape) for a in inputs.args] == args
    assert {k: tuple(v.shape) for k, v in inputs.kwargs.items()} == kwargs
    assert "file" in inputs.source
