"""The diff shows what was added, taken away and moved, and where."""

import torch
from nets import LongSkip, ResNet
from rich.console import Console

import dni_fx
from dni_fx.report.graph_diff import Line, _compare
from dni_fx.runtime.module import plain


def test_diff_of_a_rewrite() -> None:
    model = LongSkip()
    net = dni_fx.transform(model, torch.rand(4, 6), cuts=["tanh"])
    changes = dni_fx.diff(model, net)
    text = changes.to_text()
    assert "- b = self.b(tanh)\n+ b = self.b(tanh_next)\n" in text
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
    net = dni_fx.transform(LongSkip(), torch.rand(4, 6), cuts=["tanh"])
    lines = _compare(["a", "b", "c"], ["b", "c", "a"], net.dni.plan).lines
    assert [(line.kind, line.text) for line in lines if line.kind != "same"] == [("moved", "a")]
    assert isinstance(lines[0], Line)


def test_colour_on_a_terminal_only() -> None:
    net = dni_fx.transform(LongSkip(), torch.rand(4, 6), cuts=["tanh"])
    changes = dni_fx.diff(LongSkip(), net)
    for is_terminal in (True, False):
        console = Console(force_terminal=is_terminal, width=200, color_system="truecolor" if is_terminal else None)
        with console.capture() as capture:
            console.print(changes)
        assert ("\x1b[32m+ " in capture.get()) == is_terminal
