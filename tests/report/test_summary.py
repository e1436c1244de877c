"""The summary counts the lines by place, and says what each cut adds."""

import torch
from rich.console import Console, RenderableType
from torch import Tensor, nn

import dni_fx
from dni_fx.report.graph_diff import GraphDiff
from dni_fx.report.graph_lines import Kind, Line


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRUCell(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.gru(x, h)
        return self.head(h), h


def rows(what: RenderableType) -> dict[str, list[str]]:
    """The cells of each row, by the first of them."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print(what)
    lines = [line.strip().split("  ") for line in capture.get().splitlines() if line.strip()]
    return {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}


def test_rows_of_cuts() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    net = dni_fx.transform(model, torch.rand(4, 6), cuts=["1"])
    found = rows(dni_fx.diff(model, net).summary())
    assert found["cut 0"] == ["5", "_1 4x6: linear"]
    assert found["segment 1"] == ["1", "1", "1"] and "arguments" not in found


def test_cuts_in_time() -> None:
    net = dni_fx.transform(Recurrent(), (torch.rand(4, 6), torch.zeros(4, 5)), state=True)
    assert rows(dni_fx.diff(net.dni_original, net).summary())["cut in time"][-1] == "h 4x5: least_squares"


def test_graphs_without_a_plan() -> None:
    kinds: list[Kind] = ["added", *["removed"] * 2, *["moved"] * 3, *["same"] * 4]
    found = rows(GraphDiff(tuple(Line(kind, kind, "") for kind in kinds)).summary())
    assert found["added"] == ["removed", "moved", "same"] and found["graph"] == ["1", "2", "3", "4"]
