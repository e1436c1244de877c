"""pytorch-dnc's DNC (Graves et al. 2016) with its state as one tuple of tensors, so that it can be cut in time.

`pip install "dni-fx[dnc]"`. It computes nothing else than dnc 1.1.0 does, of which two things are to be known. Within
a window its controller sees what was read before the window, not before the step: what it computes depends on how long
the windows are. And given no state it begins with random numbers; here a sequence begins with zeros.

torch.fx cannot trace it and keeps it whole, as one node. Left out are SDNC and SAM, which need FLANN's library.
"""

import itertools
from typing import Any

import torch
from dnc import DNC
from torch import Tensor, nn

State = tuple[Tensor, ...]


class FlatDNC(DNC):
    """Its state: h, and c of an LSTM, of each layer, the parts of the memory, what was read; (N, ...) each.

    A subclass and not a module around it: torch.fx keeps whole what it fails inside of, which is then this.
    """

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        rows, parts = x.shape[0], iter(state)
        controllers = []
        for _ in range(self.num_layers):
            hidden = [
                part.unflatten(1, (self.num_hidden_layers, -1)).transpose(0, 1).contiguous()
                for part in itertools.islice(parts, self.tensors_a_layer)
            ]
            controllers.append(tuple(hidden) if self.rnn_type == "lstm" else hidden[0])
        memory = {name: next(parts).view(rows, *shape) for name, shape in self.memory_shapes.items()}
        y, (controllers, memory, read) = super().forward(x, (controllers, memory, next(parts)))
        hidden = [one for layer in controllers for one in (layer if self.rnn_type == "lstm" else [layer])]
        flat = [one.transpose(0, 1).flatten(1) for one in hidden]
        return y, (*flat, *[memory[name].flatten(1) for name in self.memory_shapes], read)

    @property
    def tensors_a_layer(self) -> int:
        return 2 if self.rnn_type == "lstm" else 1

    @property
    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the memory's parts, without the batch axis."""
        empty: dict[str, Tensor] = self.memories[0].reset(1)
        return {name: tuple(part.shape[1:]) for name, part in empty.items()}

    @property
    def state_sizes(self) -> list[int]:
        hidden = [self.num_hidden_layers * self.output_size] * (self.num_layers * self.tensors_a_layer)
        return [*hidden, *[torch.Size(shape).numel() for shape in self.memory_shapes.values()], self.read_vectors_size]


class DncModel(nn.Module):
    """Sequences (N, L, inputs) and the state to (N, L, outputs) and the state.

    Args:
        options: Of dnc.DNC.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, steps: int, **options: Any) -> None:
        super().__init__()
        self.steps = steps
        self.dnc = FlatDNC(inputs, hidden, **options)
        self.head = nn.Linear(inputs, outputs) if outputs != inputs else nn.Identity()  # dnc gives what it is given

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.dnc(x, state)
        return self.head(y), state

    def start(self, rows: int) -> State:
        """The state at the beginning of `rows` sequences."""
        return tuple(torch.zeros(rows, size) for size in self.dnc.state_sizes)
