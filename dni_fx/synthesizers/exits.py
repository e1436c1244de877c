"""The synthesizer of a tensor whose gradient an exit computes: the model's own later layers, up to the loss.

An exit is a local loss with the depth of the model's own layers (auxiliary losses through later layers: AugLocal, Ma et
al. 2024; early exits: LayerSkip, Elhoushi et al. 2024). It belongs to a cut, not to a tensor; see `runtime/exits.py`.
"""

from dataclasses import dataclass

from torch import Tensor

from dni_fx.errors import DniFxError, described
from dni_fx.plans import ExitPlan, Plan, crossing_name
from dni_fx.synthesizers.base import Activation, Synthesizer, check_size
from dni_fx.synthesizers.registry import chosen_options, register

__all__ = ["WEIGHTS", "ExitGradient", "ExitOptions", "exit_names", "exit_options"]

WEIGHTS = ("auto", "shared", "copy", "fresh", "readonly", "ema")


@dataclass(frozen=True)
class ExitOptions:
    """The options of an exit.

    Attributes:
        units: The number of units above the cut that run whole, such as residual branches; "all": the rest of the
            model, whose gradient is backpropagation's own.
        weights: Whose weights the exit uses. "shared": the model's own, which get the exit's gradients, too.
            "readonly": the model's own, without gradients. "copy": copies that start as the model's weights are.
            "fresh": copies with new weights. "ema": copies that follow the model's weights by a running mean. "auto":
            shared, or copies where the exit jumps over layers that no sum joins, or has batch norm before the tail.
        frozen_units: The exit does not train the weights of the units; their segments do.
        tokens: The share of the positions that the exit's loss is of; others at each step. It makes a large vocabulary
            cheap, and is for the cross entropy of one label for each position, behind a last linear layer.
    """

    units: int | str = 1
    weights: str = "auto"
    frozen_units: bool = False
    tokens: float = 1.0

    def __post_init__(self) -> None:
        if self.units != "all":
            check_size("exit", "units", self.units, least=0)
        if self.weights not in WEIGHTS:
            raise DniFxError(f"exit: weights={described(self.weights)}; there are {', '.join(WEIGHTS)}")
        if not isinstance(self.frozen_units, bool):
            raise DniFxError(f"exit: frozen_units={described(self.frozen_units)}; True or False")
        if self.frozen_units and self.units == "all":
            raise DniFxError("exit: frozen_units is for a number of units; weights='readonly' trains no later layer")
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int | float) or not 0 < self.tokens <= 1:
            raise DniFxError(f"exit: tokens={described(self.tokens)}; a share of the positions, above 0 and at most 1")


@register("exit")
class ExitGradient(Synthesizer):
    """Passes on the gradient that an exit through the model's own later layers has computed.

    Args:
        units: See `ExitOptions`, as for the other options.
    """

    own_unit = True

    def __init__(
        self,
        activation: Activation,
        context_size: int = 0,
        *,
        units: int | str = 1,
        weights: str = "auto",
        frozen_units: bool = False,
        tokens: float = 1.0,
    ) -> None:
        super().__init__(activation)
        ExitOptions(units, weights, frozen_units, tokens)  # checks them

    def forward(self, activation: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The gradient of each sample's own loss.

        Args:
            activation: Detached.
            gradient: Of the mean loss, from the exit.
        """
        assert gradient is not None
        return gradient * self.samples(activation)


def exit_options(synthesizer: object) -> ExitOptions | None:
    """The options of an exit, from the argument `synthesizer` of `dni_fx.transform`; None: another synthesizer.

    Raises:
        DniFxError: If an option is not known, or its value is not allowed.
    """
    options = chosen_options(synthesizer, "exit") if isinstance(synthesizer, str) else None
    return None if options is None else ExitOptions(**options)


def exit_names(plan: Plan) -> dict[str, str]:
    """The synthesizers of the tensors at cuts with exits, by crossing."""
    return {
        crossing_name(index, tensor.node): _name(cut.exit)
        for index, cut in enumerate(plan.cuts)
        if cut.exit is not None
        for tensor in cut.predicted
    }


def _name(planned: ExitPlan) -> str:
    frozen = ", frozen_units=True" if planned.frozen_units else ""
    tokens = "" if planned.tokens == 1 else f", tokens={planned.tokens!r}"
    return f"exit(units={planned.units!r}, weights={planned.weights!r}{frozen}{tokens})"
