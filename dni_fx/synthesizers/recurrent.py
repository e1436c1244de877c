"""Synthesizers with a memory: stacked LSTM, GRU and RNN."""

from typing import Any

from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation, Synthesizer, check_size, zero_
from dni_fx.synthesizers.carried import Carried
from dni_fx.synthesizers.registry import register

__all__ = ["GRU", "LSTM", "RNN"]


class Recurrent(Synthesizer):
    """Stacked recurrent layers, then a linear one.

    For vectors (N, F) each training call is one time step, and the hidden state goes on to the next; for sequences
    (N, T, F) each call is a whole sequence, and begins without a state.
    """

    kind: type[nn.RNNBase]
    carried: Carried

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        layers: int = 1,
        hidden_size: int | None = None,
        dropout: float = 0.0,
        carry: bool | None = None,
    ) -> None:
        super().__init__(activation, context_size)
        name = type(self).__name__.lower()
        dimensions = len(activation.shape)
        if dimensions not in (2, 3) or activation.axis % dimensions != dimensions - 1:
            raise DniFxError(
                f"{name}: takes vectors (N, F) and sequences (N, T, F), not a tensor of shape {list(activation.shape)} "
                f"with its features on axis {activation.axis}"
            )
        check_size(name, "layers", layers)
        width = check_size(name, "hidden_size", self.features if hidden_size is None else hidden_size)
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise DniFxError(f"{name}: dropout={dropout!r}; a share from 0 to below 1")
        self.carries = dimensions == 2 if carry is None else bool(carry)
        self.carried = Carried()
        drops = dropout if layers > 1 else 0.0
        make: Any = self.kind
        self.net = make(self.features + context_size, width, layers, batch_first=True, dropout=drops)
        self.last = zero_(nn.Linear(width, self.features))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        joined = self.with_context(activation, context)
        steps = joined.unsqueeze(1) if joined.dim() == 2 else joined
        hidden, state = self.net(steps, self.carried.state_for(activation) if self.carries else None)
        if self.carries:
            self.carried.remember(state)
        predicted: Tensor = self.last(hidden)
        return predicted.reshape(activation.shape)

    def reset(self) -> None:
        """Drop the carried state: a new sequence begins."""
        self.carried.forget()


@register("lstm")
class LSTM(Recurrent):
    """Stacked LSTMs, their state carried from step to step, then a linear layer; for vectors and sequences."""

    kind = nn.LSTM


@register("gru")
class GRU(Recurrent):
    """Stacked GRUs, their state carried from step to step, then a linear layer; for vectors and sequences."""

    kind = nn.GRU


@register("rnn")
class RNN(Recurrent):
    """Stacked tanh RNNs, their state carried from step to step, then a linear layer; for vectors and sequences."""

    kind = nn.RNN
