"""An LSTM with a memory beside it, written so that torch.fx can trace it.

The controller writes to and reads from a matrix of slots, as in Graves et al. 2014 and 2016, in a small form: one head
to read, by content; one to write, by content or to the slot after the one before. All that it remembers is its state,
which is given and returned, and zero at the beginning of a sequence.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, softplus

State = tuple[Tensor, ...]


class MemoryCell(nn.Module):
    """One step.

    Args:
        inputs: Features of an input.
        hidden: Units of the controller.
        slots: Rows of the memory.
        width: Features of a slot.
    """

    def __init__(self, inputs: int, hidden: int, slots: int, width: int) -> None:
        super().__init__()
        self.slots, self.width = slots, width
        self.controller = nn.LSTMCell(inputs + width, hidden)
        self.interface = nn.Linear(hidden, 4 * width + 4)
        # Empty slots have equal contents: only their names differ.
        self.names = nn.Parameter(torch.randn(slots, width))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """An input (N, inputs) and the state, to (N, hidden + width) and the state."""
        h, c, flat, read, written = state
        memory = flat.unflatten(1, (self.slots, self.width))
        h, c = self.controller(torch.cat([x, read], 1), (h, c))
        says = self.interface(h)
        write_key, read_key, erase, add, numbers = says.split([self.width] * 4 + [4], 1)
        write_strength, read_strength, gate, by_content = numbers.split(1, 1)
        content, following = self._address(memory, write_key, write_strength), written.roll(1, 1)
        chosen = torch.lerp(following, content, torch.sigmoid(by_content))
        written = torch.sigmoid(gate) * chosen
        weights = written.unsqueeze(2)
        memory = memory * (1 - weights * torch.sigmoid(erase).unsqueeze(1)) + weights * torch.tanh(add).unsqueeze(1)
        at = self._address(memory, read_key, read_strength)
        read = (at.unsqueeze(2) * memory).sum(1)
        return torch.cat([h, read], 1), (h, c, memory.flatten(1), read, written)

    def _address(self, memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
        """Weights (N, slots), of sum 1: how like the key each slot is."""
        alike = cosine_similarity(memory + self.names, key.unsqueeze(1), dim=2)
        return torch.softmax((1 + softplus(strength)) * alike, 1)


class MemoryLSTM(nn.Module):
    """Sequences (N, steps, inputs) and the state to (N, steps, outputs) and the state.

    The state is h and c (N, hidden), the memory (N, slots * width), what was read (N, width), and the weights of the
    last write (N, slots).

    Args:
        steps: Of a window: tracing unrolls them.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, slots: int, width: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell = MemoryCell(inputs, hidden, slots, width)
        self.head = nn.Linear(hidden + width, outputs)
        self.state_sizes = (hidden, hidden, slots * width, width, slots)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        said = []
        for t in range(self.steps):
            y, state = self.cell(x[:, t], state)
            said.append(y)
        return self.head(torch.stack(said, 1)), state

    def start(self, rows: int) -> State:
        """The state at the beginning of `rows` sequences."""
        return tuple(torch.zeros(rows, size) for size in self.state_sizes)
