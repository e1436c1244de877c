"""A synthesizer in which every token attends to all others."""

from torch import Tensor, nn

from dni_fx.errors import DniFxError
from dni_fx.synthesizers.base import Activation, Synthesizer, check_size, zero_
from dni_fx.synthesizers.registry import register

__all__ = ["Attention"]


@register("attention")
class Attention(Synthesizer):
    """Self-attention over all tokens, earlier and later, then a linear layer; for sequences (N, T, F).

    There is no mask: in a causal model, too, the gradient of a token depends on later tokens.
    """

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        heads: int | None = None,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__(activation, context_size)
        if len(activation.shape) != 3 or activation.axis % 3 != 2:
            raise DniFxError(
                f"attention: takes sequences (N, T, F), not a tensor of shape {list(activation.shape)} with its "
                f"features on axis {activation.axis}"
            )
        width = check_size("attention", "hidden_size", self.features if hidden_size is None else hidden_size)
        if heads is None:
            heads = next(n for n in (8, 4, 2, 1) if width % n == 0)
        if width % check_size("attention", "heads", heads):
            raise DniFxError(f"attention: heads={heads} does not divide the width {width}")
        self.first = nn.Linear(self.features + context_size, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.last = zero_(nn.Linear(width, self.features))

    def forward(self, activation: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.first(self.with_context(activation, context))
        normed = self.norm(tokens)
        predicted: Tensor = self.last(tokens + self.attention(normed, normed, normed, need_weights=False)[0])
        return predicted
