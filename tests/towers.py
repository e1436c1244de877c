"""Nets with two towers that do not use each other: the best cut is not a place in the order of their code."""

from collections.abc import Collection

import torch
from torch import Tensor, nn


class Towers(nn.Module):
    """The layers of the towers run in turn, so two tensors cross nearly every place; a hidden output, too.

    Args:
        drops: The layers behind which is a dropout, as in "a0"; each in its own tower.
        norm: A batch norm between the layers.
    """

    def __init__(self, drops: Collection[str] = (), *, norm: bool = False, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.ModuleList(nn.Linear(16, 16) for _ in range(depth)) for _ in range(2))
        self.drops = nn.ModuleDict({name: nn.Dropout(0.5) for name in drops})
        self.norms = nn.ModuleList(nn.BatchNorm1d(16) for _ in range(2 * norm))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        for number, (first, second) in enumerate(zip(self.a, self.b, strict=True)):
            x = self.layer(first, x, f"a{number}")
            y = self.layer(second, y, f"b{number}")
        return {"logits": self.head(torch.cat([x, y], 1)), "hidden": y}

    def layer(self, linear: nn.Module, h: Tensor, name: str) -> Tensor:
        h = torch.tanh(linear(h))
        if len(self.norms) and name[1] == "1":
            h = self.norms["ab".index(name[0])](h)
        return self.drops[name](h) if name in self.drops else h


def inputs(rows: int = 64) -> tuple[Tensor, Tensor]:
    """The inputs of the two towers."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(rows, 16, generator=generator), torch.rand(rows, 16, generator=generator)


def layers_of(graph: torch.fx.Graph) -> str:
    """The order of the layers and dropouts, as in "a0 a1 b0 drop_b0"."""
    names = [str(n.target).replace("drops.", "drop_").replace(".", "") for n in graph.nodes if n.op == "call_module"]
    return " ".join(name for name in names if name[0] in "ab" or name.startswith("drop"))
