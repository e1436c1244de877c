"""The diff shows what was added, taken away and moved, and where."""

import re

import pytest
import torch
from nets import LongSkip, ResNet, Twice
from rich.console import Console, RenderableType

import dni_fx
from dni_fx.report.graph_diff import RECORD, GraphDiff, Line, compare_lines
from dni_fx.runtime.module import plain


def lines(*texts: str, place: str = "") -> list[Line]:
    return [Line("same", text, place) for text in texts]


def shown(what: RenderableType, width: int, *, terminal: bool = True) -> list[str]:
    """The lines that a console prints, without colours."""
    console = Console(force_terminal=terminal, width=width, color_system=None)
    with console.capture() as capture:
        console.print(what, soft_wrap=isinstance(what, GraphDiff))
    return capture.get().splitlines()


def test_diff_of_a_rewrite() -> None:
    model = LongSkip()
    net = dni_fx.transform(model, torch.rand(4, 6), cuts=["tanh"])
    changes = dni_fx.diff(model, net)
    text = changes.to_text()
    assert re.search(r"- b = self.b\(tanh\)  # nets.py:\d+\n\+ b = self.b\(tanh_next\)  # nets.py:\d+\n", text)
    assert text.index("= segment 0") < text.index("= cut 0") < text.index("= segment 1")
    assert all(line.kind == "same" for line in changes.lines if line.place == "segment 0")
    assert {line.kind for line in changes.lines if line.place == "cut 0"} == {"added"}


def test_model_graph_and_graph_module_give_the_same_diff() -> None:
    model = ResNet()
    net = dni_fx.transform(model, torch.rand(4, 6), cuts=3)
    assert dni_fx.diff(model, net) == dni_fx.diff(plain(net), net) == dni_fx.diff(plain(net).graph, net)


def test_taking_out_what_was_added_gives_the_captured_graph() -> None:
    model = ResNet()
    for unlock in ("none", "backward"):
        net = dni_fx.transform(model, torch.rand(4, 6), cuts=["blocks.0.first", "blocks.1.second"], unlock=unlock)
        assert {line.kind for line in dni_fx.diff(model, net).lines} == {"same", "added", "removed"}
        assert plain(net).code == plain(dni_fx.transform(model, torch.rand(4, 6), cuts=2)).code


def test_a_moved_line_is_shown_once() -> None:
    found = compare_lines(lines("a", "b", "c"), lines("b", "c", "a")).lines
    assert [(line.kind, line.text) for line in found if line.kind != "same"] == [("moved", "a")]


def test_lines_of_the_model_have_sources() -> None:
    """The line of code beside the lines that come from it, before and after; what the rewrite adds has none."""
    for frontend in ("fx", "export", "modules"):
        net = dni_fx.transform(LongSkip(), torch.rand(4, 6), cuts=2, frontend=frontend)
        found = dni_fx.diff(net.dni_original, net).lines
        calls = [line for line in found if re.search(r"self\.[ab]\(|linear|^call", line.text) and line.kind != "added"]
        assert len(calls) >= 2 and all(re.fullmatch(r"nets\.py:\d+", line.source) for line in calls), frontend
        assert not any(line.source for line in found if ".detach()" in line.text)


def test_a_text_is_read_again() -> None:
    for frontend in ("fx", "modules"):
        net = dni_fx.transform(Twice(), torch.rand(4, 6), cuts=2, frontend=frontend)
        changes = dni_fx.diff(net.dni_original, net)
        assert GraphDiff.from_text(changes.to_text(), net.dni.plan) == changes
    old = GraphDiff.from_text("  a = x\n= cut 0 ---\n+ b = 'c  # d'\n")  # without sources, as 0.1.0 wrote it
    assert old.lines == (Line("same", "a = x", ""), Line("added", "b = 'c  # d'", "cut 0"))


def test_folded_around_changes() -> None:
    before = lines(*(f"v{k} = {k}" for k in range(20)), place="segment 0")
    after = [*before[:9], Line("same", "new = 1", "segment 0"), *before[9:]]
    changes = compare_lines(before, after)
    texts = [line.text for line in changes.folded(2).lines]
    assert texts == [
        "... 7 lines of segment 0",
        "v7 = 7",
        "v8 = 8",
        "new = 1",
        "v9 = 9",
        "v10 = 10",
        "... 9 lines of segment 0",
    ]
    assert changes.folded(8).lines[0].text == "v0 = 0", "one line is no shorter if it is folded"
    assert changes.folded(30) == changes and changes.counts == {"added": 1, "same": 20}
    assert [line.text for line in changes.folded(0).lines if line.kind != "folded"] == ["new = 1"]
    record = GraphDiff(tuple(lines(*RECORD, *(f"call {k} (Linear)" for k in range(5)))))
    assert [line.text for line in record.folded().lines] == [*RECORD, "... 5 lines"]


def test_without_places_after_the_places_are_those_before() -> None:
    before = [
        Line("same", "def f", ""),
        *lines("a = 1", place="segment 0"),
        *lines("b = 2", "c = 3", place="segment 1"),
    ]
    found = compare_lines(before, lines("def f", "a = 1", "b = 4"))
    assert [(line.kind, line.text, line.place) for line in found.lines] == [
        ("same", "def f", ""),
        ("same", "a = 1", "segment 0"),
        ("removed", "c = 3", "segment 1"),
        ("removed", "b = 2", "segment 1"),
        ("added", "b = 4", "segment 1"),
    ]


@pytest.mark.parametrize("width", [30, 80, 120])
def test_nothing_is_cut_off(width: int) -> None:
    net = dni_fx.transform(ResNet(), torch.rand(4, 6), cuts=2)
    changes = dni_fx.diff(ResNet(), net).folded()
    squeezed = {"".join(line.text.split()) for line in changes.lines}
    printed = shown(changes, width)
    assert max(map(len, printed)) <= width
    whole = re.sub(r"nets\.py:\d+|^[-+ ]|\s", "", "\n".join(printed), flags=re.MULTILINE)
    assert all(text in whole for text in squeezed)
    if width >= 80:
        right = [line for line in printed if re.search(r"nets.py:\d+$", line)]
        assert right and {len(line) for line in right} == {width}


@pytest.mark.parametrize("width", [80, 120])
def test_side_by_side(width: int) -> None:
    net = dni_fx.transform(LongSkip(), torch.rand(4, 6), cuts=["tanh"])
    printed = shown(dni_fx.diff(LongSkip(), net).side_by_side("one", "two"), width)
    assert max(map(len, printed)) <= width
    assert printed[0].split() == ["one", "two"]
    (changed,) = [line for line in printed if "self.b(tanh)" in line]
    assert re.search(r"^- b = self\.b\(tanh\) +\+ b = self\.b\(tanh_next\) +nets\.py:\d+$", changed.rstrip())
    (added,) = [line for line in printed if "tanh.detach()" in line]
    assert added.startswith(" " * 20)
    assert re.search(r"^= cut 0 +=\ cut 0", "\n".join(printed), re.MULTILINE)


def test_a_pipe_gets_each_line_whole() -> None:
    net = dni_fx.transform(LongSkip(), torch.rand(4, 6), cuts=["tanh"])
    changes = dni_fx.diff(LongSkip(), net)
    assert shown(changes, 30, terminal=False) == changes.to_text().splitlines()


def test_colour_on_a_terminal_only() -> None:
    net = dni_fx.transform(LongSkip(), torch.rand(4, 6), cuts=["tanh"])
    changes = dni_fx.diff(LongSkip(), net)
    for is_terminal in (True, False):
        console = Console(force_terminal=is_terminal, width=200, color_system="truecolor" if is_terminal else None)
        with console.capture() as capture:
            console.print(changes)
        assert ("\x1b[32m+ " in capture.get()) == is_terminal
