"""The models: all are forward (x, state) -> (y, state), and a state of zeros begins a sequence."""

import importlib.util
from argparse import Namespace
from typing import Any

import torch
from memory_lstm import MemoryLSTM
from torch import Tensor, nn

from dni_fx import DniFxError

NAMES = ("lstm", "gru", "rnn", "memory", "dnc")


class Recurrent(nn.Module):
    """One of torch's recurrent layers and a head: (N, L, inputs) and the state to (N, L, outputs) and the state."""

    steps = None  # windows of any length

    def __init__(self, kind: str, inputs: int, outputs: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.core: Any = layer(
            inputs, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )  # between layers: one alone has no place for it
        self.head = nn.Linear(hidden, outputs)
        if kind == "lstm":  # forget gates begin open: Jozefowicz et al. 2015
            for name, bias in self.core.named_parameters():
                if name.startswith("bias_ih"):
                    nn.init.ones_(bias.data[hidden : 2 * hidden])

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.core(x, state)
        return self.head(y), state

    def start(self, rows: int) -> Any:
        """The state at the beginning of `rows` sequences."""
        zeros = torch.zeros(self.core.num_layers, rows, self.core.hidden_size)
        return (zeros, zeros) if isinstance(self.core, nn.LSTM) else zeros


def build(options: Namespace, inputs: int, outputs: int) -> Any:
    """The model that the command line asks for: a module with `steps`, the only length it takes, or None, and `start`.

    Raises:
        DniFxError: If it is not installed.
    """
    if options.model == "memory":
        return MemoryLSTM(inputs, outputs, options.nhid, options.mem_slot, options.mem_size, options.window)
    if options.model != "dnc":
        return Recurrent(options.model, inputs, outputs, options.nhid, options.nhlayer, options.dropout)
    if importlib.util.find_spec("dnc") is None:
        raise DniFxError('--model dnc needs pytorch-dnc: pip install "dni-fx[dnc]"')
    from dnc_model import DncModel

    return DncModel(
        inputs,
        outputs,
        options.nhid,
        options.window,
        rnn_type=options.rnn_type,
        num_layers=options.nlayer,
        num_hidden_layers=options.nhlayer,
        dropout=options.dropout,
        nr_cells=options.mem_slot,
        cell_size=options.mem_size,
        read_heads=options.read_heads,
    )
