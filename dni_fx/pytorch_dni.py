"""The interface of pytorch-dni: `net = dni_fx.DNI(net, optim=opt)` takes its arguments and fits its training loop."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dni_fx import ops
from dni_fx.api import example_inputs_of
from dni_fx.arguments import check_arguments
from dni_fx.compiler import rewrite
from dni_fx.errors import DniFxError, described
from dni_fx.graph import default_axis
from dni_fx.model import tensors_in
from dni_fx.planning import Request, capture_and_plan
from dni_fx.plans import Plan
from dni_fx.runtime import Crossing, DecoupledModule
from dni_fx.settings import Settings, with_defaults
from dni_fx.synthesizers import Activation, Factory, Synthesizer, adapt, make_synthesizer, resolve

__all__ = ["DNI"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


class DNI(nn.Module):
    """A network whose layers train on a mix of synthetic and true gradients, and which steps by itself.

    The class takes the arguments of pytorch-dni's class of this name. The first training call rewrites the network, as
    `dni_fx.transform(unlock="none")` does. After each backward pass the synthesizers and the network step, and the
    gradients are erased: another `optim.step()` in the training loop changes nothing.

    Args:
        network: Any module.
        dni_network: The class of the synthesizers: one with pytorch-dni's interface (`input_size`, `hidden_size`,
            `output_size`; `forward(input, hidden) -> (output, hidden)`), a `dni_fx.Synthesizer`, or a name in
            `dni_fx.synthesizers.REGISTRY`. None: two hidden ReLU layers of 4 * hidden_size.
        dni_params: Further arguments of `dni_network`.
        optim: The optimizer of the network; None: an optimizer like that of the synthesizers.
        grad_optim: The optimizer of the synthesizers: adam, adamax, rmsprop, sgd, adagrad or adadelta.
        grad_lr: The learning rate of the synthesizers.
        hidden_size: Hidden units of a synthesizer; None: 10.
        λ: Share of the true gradient, 0 (only the synthetic one) to 1 (backprop); `lam` is the same.
        recursive: Cut after every layer that trains; False: only at the output of the network.
        skip_last_layer: Train the last layer on the true gradient.
        format_fn: Not needed, and ignored with a warning: dni-fx finds the tensors that cross a cut.
        gpu_id: Move the network to this CUDA device; -1: leave it where it is.

    Raises:
        DniFxError: If an argument is wrong; at the first call, as `dni_fx.transform` does.
    """

    def __init__(
        self,
        network: nn.Module,
        dni_network: str | type[nn.Module] | None = None,
        dni_params: Mapping[str, Any] | None = None,
        optim: torch.optim.Optimizer | None = None,
        grad_optim: str = "adam",
        grad_lr: float = 0.001,
        hidden_size: int | None = None,
        λ: float = 0.5,
        recursive: bool = True,
        skip_last_layer: bool = True,
        format_fn: Callable[..., Any] | None = None,
        gpu_id: int = -1,
        *,
        lam: float | None = None,
    ) -> None:
        check_arguments({name: value for name, value in locals().items() if name != "self"}, "DNI")
        super().__init__()
        if not isinstance(grad_optim, str) or grad_optim not in OPTIMIZERS:
            raise DniFxError(f"grad_optim={described(grad_optim)}: there are {', '.join(OPTIMIZERS)}")
        if format_fn is not None:
            warnings.warn("format_fn is not needed, and ignored", stacklevel=2)
        self.settings = Settings(unlock="none", mix=λ if lam is None else lam)
        self.synthesizer = _synthesizer(dni_network, dict(dni_params or {}), hidden_size or 10)
        self.settings = with_defaults(self.settings, named=isinstance(self.synthesizer, str))
        self.recursive, self.skip_last_layer = recursive, skip_last_layer
        self.network = network if gpu_id < 0 else network.cuda(gpu_id)
        self.grad_optim_name, self.grad_lr = grad_optim, grad_lr
        own = [p for p in network.parameters() if p.requires_grad]
        self.optim = optim if optim is not None or not own else self._optimizer(own)
        self.grad_optim: torch.optim.Optimizer | None = None
        self.last: Crossing | None = None  # at the output of the network
        self.__dict__["net"] = self.network  # later the rewritten network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        if not (self.training and torch.is_grad_enabled()):
            return self.network(*args, **kwargs)
        if self.grad_optim is None:
            self.build(*args, **kwargs)
        output = self.__dict__["net"](*args, **kwargs)
        if self.last is not None:
            output = self._cut(output, self.last)
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(self._step_at_the_end)
        return output

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Make the synthesizers, for inputs like these. Without this, the first training call makes them."""
        if self.recursive:
            net = rewrite(*self._captured(args, kwargs), self.synthesizer, self.settings)
            self.__dict__["net"] = net  # the parameters are those of `network`
            self.dni = net.dni
        if not (self.recursive and self.skip_last_layer):
            self._cut_output(*args, **kwargs)
        made = [p for name, p in self.named_parameters() if not name.startswith("network.")]
        self.grad_optim = self._optimizer(made)

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.grad_optim_name](parameters, lr=self.grad_lr)

    def _captured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[DecoupledModule, Plan]:
        example = example_inputs_of(self.network, args, kwargs)
        request = Request(cuts="leaves", synthesizer=self.synthesizer, settings=self.settings)
        return capture_and_plan(self.network, example, request)

    def _cut_output(self, *args: Any, **kwargs: Any) -> None:
        """Make the synthesizer at the output of the network."""
        with torch.no_grad():
            output = tensors_in(self.network(*args, **kwargs))[0]
        axis = default_axis(output.dim()) % output.dim()
        activation = Activation(tuple(output.shape), output.dtype, output.device, axis)
        factory = resolve(self.synthesizer, activation.shape, axis)[1]
        self.last = Crossing(make_synthesizer(factory, activation, 0), activation, self.settings)
        self.segment = ops.Segment(self.settings.mix).to(output.device)

    def _cut(self, output: Any, last: Crossing) -> Tensor:
        """The output; the backward pass mixes its gradient with a synthetic one."""
        if not isinstance(output, Tensor):
            raise DniFxError("the output of the network is not one tensor: use recursive=True and skip_last_layer=True")
        detached = output.detach()
        return ops.inject((output,), (detached,), (last(detached),), self.segment)[0]

    def _step_at_the_end(self, _gradient: Tensor) -> None:
        """Step when the current backward pass ends."""
        engine: Any = Variable._execution_engine
        engine.queue_callback(self._step)

    def _step(self) -> None:
        for optimizer in (self.grad_optim, self.optim):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()


def _synthesizer(network: str | type[nn.Module] | None, options: dict[str, Any], hidden_size: int) -> str | Factory:
    """The name or factory for a `dni_network` and its arguments."""
    if network is None:
        network, options = "mlp", {"hidden_layers": 2, "hidden_size": 4 * hidden_size} | options
    if isinstance(network, str):
        return f"{network}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
    if isinstance(network, type) and issubclass(network, Synthesizer):
        return lambda activation, size: network(activation, size, **options)
    if isinstance(network, type) and issubclass(network, nn.Module):
        return adapt(network, hidden_size, **options)
    raise DniFxError(f"dni_network={described(network)}: a class of synthesizers, or a name")
