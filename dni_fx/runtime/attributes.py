"""The attributes of a rewritten net beyond its graph: they are those of the model that it was made from."""

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx, nn

from dni_fx.errors import DniFxError
from dni_fx.model import REGISTERED, Captured, Read, at_path, has_path
from dni_fx.runtime.arguments import check_tensors, form_error
from dni_fx.runtime.context_source import ContextSource

__all__ = ["LinkedModule", "linked", "return_state", "share_state"]

_OWN = frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))  # attributes that fx gives to its modules


class LinkedModule(fx.GraphModule):
    """A GraphModule that reads and writes the plain attributes of the model that it was made from.

    The graph holds for the values of these attributes at the capture, so a call raises an error if one has changed.
    """

    dni_captured: Captured = Captured()
    dni_runs_graph = True  # False: forward runs the original model, and the graph is a record of its calls
    dni_runs_graph_in_eval = True  # False: in eval mode, forward runs the original model
    dni_context_source: ContextSource | None = None  # for calls without `dni_context`
    dni_linked: Mapping[str, object] | None = None  # the model's own tensors and children, as last seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.dni_context_source is not None and self.training and "dni_context" not in kwargs:
            kwargs["dni_context"] = self.dni_context_source.of(args, kwargs)
        if torch.compiler.is_compiling():
            self.dni_guard()
            return super().__call__(*args, **kwargs)
        self.dni_follow_original()
        if kwargs.get("dni_context") is None:
            kwargs.pop("dni_context", None)
        elif not self.dni_takes_context():
            raise TypeError("the net takes no labels: give dni_fx.transform classes= (or context_size=)")
        forms = self.dni_captured.forms
        dni: Any = self._modules.get("dni")
        states = [tensor.input for state in dni.plan.states for tensor in state.tensors] if dni is not None else []
        check_tensors(forms, args, kwargs, states)
        try:
            return super().__call__(*args, **kwargs)
        except DniFxError:
            raise
        except Exception:  # operators raise errors of any type on arguments of another form
            gone = _gone(self) if self.dni_runs_graph else None
            if gone is not None:
                raise DniFxError(f"{gone} is gone since the model was captured: transform the model again") from None
            other = form_error(forms, self.dni_captured.original, args, kwargs)
            if other is None:
                raise
            raise other from None

    def dni_takes_context(self) -> bool:
        """Whether the synthesizers take labels or another context; the model itself has no argument of this name."""
        return False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def dni_follow_original(self) -> None:
        """Take over what the model has got since the last call, and check that its graph holds.

        Raises:
            DniFxError: If the model has other values or children than the graph was made for.
        """
        captured = self.dni_captured
        if captured.original is not None:
            _take_over(self, captured.original)
        if self.dni_runs_graph and (self.training or self.dni_runs_graph_in_eval):
            subject = self if captured.original is None else captured.original
            changed = captured.reads.changed(subject, complete=captured.original is not None)
            if changed is not None:
                other = None if captured.again is None else captured.again(captured)
                if other is None:
                    raise DniFxError(_other_value(subject, *changed))
                self.dni_captured = other

    def dni_compare(self) -> None:
        """Compare the values of the model once, in a copy or a loaded net, so that `dni_guard` knows them."""
        if self.dni_captured.original is not None:
            self.dni_captured.reads.changed(self.dni_captured.original)

    def dni_guard(self) -> None:
        """Compare the simplest values inside of torch.compile, which compiles again when one has changed."""
        if self.dni_runs_graph and (self.training or self.dni_runs_graph_in_eval):
            for owner, name, value in self.dni_captured.reads.scalars:
                if getattr(owner, name) != value:
                    raise DniFxError(f"{name} has changed since the model was captured: transform the model again")

    def dni_share_with_original(self) -> nn.Module:
        """The model, after it has got the parameters, buffers, children and mode of this net."""
        original = self.dni_captured.original
        assert original is not None
        _take_over(self, original)
        return_state(self, original)
        original.training = self.training
        self.dni_linked = linked(self, original)
        return original

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            original = self.dni_captured.original
            if name.startswith(("__", "dni")):
                raise
            if original is not None and hasattr(original, name):
                return getattr(self.dni_share_with_original(), name)
            if original is None and "dni" in self.__dict__.get("_modules", ()) and not name.startswith("_"):
                hint = "dni_fx.load(folder, model=model) gives the net the attributes and methods of the model"
                raise AttributeError(f"{error}: {hint}") from None
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        original = self.dni_captured.original
        if original is None or name.startswith("dni"):
            super().__setattr__(name, value)
            return
        is_plain = name in vars(original) and name not in _OWN
        is_registered = isinstance(value, nn.Parameter | nn.Module)
        if is_registered or self.dni_holds(name) or (name.startswith("_") and not is_plain):
            super().__setattr__(name, value)
            is_shared = is_plain or any(name in getattr(original, kind) for kind in REGISTERED)
            if not (is_shared and isinstance(value, Tensor | nn.Module)):
                return
        setattr(original, name, value)

    def __delattr__(self, name: str) -> None:
        original = self.dni_captured.original
        if original is None or self.dni_holds(name):
            super().__delattr__(name)
        else:
            delattr(original, name)

    def dni_holds(self, name: str) -> bool:
        """Whether the net itself has an attribute, not only the model."""
        held = (self.__dict__, *(getattr(self, kind) for kind in REGISTERED))
        return any(name in names for names in held) or hasattr(type(self), name)


def _gone(net: fx.GraphModule) -> str | None:
    """The first module or tensor that the graph uses and the net no longer has."""
    used = (str(node.target) for node in net.graph.nodes if node.op in ("call_module", "get_attr"))
    return next((name for name in used if not has_path(net, name) or at_path(net, name) is None), None)


def _other_value(subject: nn.Module, read: Read, now: str) -> str:
    if read.steps[-1][0] == "hooks" and "_fully_shard" in now:
        return (
            f"fully_shard was called on {read.module!r}, whose own forward does not run in a rewritten net: use "
            'dni_fx.shard_segments(net) in place of it, or transform with frontend="modules"'
        )
    was = f"was {read.text}" if read.text else "was not set"
    buffer = ""
    if not read.is_global and len(read.steps) == 1 and "." in read.text and read.text[0] in "0123456789-":
        own_class = not type(at_path(subject, read.module)).__module__.startswith("torch.")
        buffer = f"make {read} a buffer, " if own_class else ""
    return (
        f"{read} {was} when the model was captured and is {now or 'not set'} now, but the graph holds for the captured "
        f'value only: {buffer}use frontend="modules", which runs the model itself, or transform the model again'
    )


def linked(net: nn.Module, original: nn.Module) -> dict[str, object]:
    """The model's own parameters, buffers, children, and plain tensors for which the net has a buffer, by name."""
    plain = vars(original)
    tensors = {name: plain[name] for name in net._buffers if isinstance(plain.get(name), Tensor)}
    return {**original._parameters, **original._buffers, **original._modules, **tensors}


def _take_over(net: LinkedModule, original: nn.Module) -> None:
    """Give the net each buffer, parameter and child that was assigned to the model since the last comparison.

    Raises:
        DniFxError: If a parameter or child of the net was replaced, which the segments hold.
    """
    now = linked(net, original)
    seen = now if net.dni_linked is None else net.dni_linked
    if all(seen.get(name) is value for name, value in now.items()):
        return
    for name, value in now.items():
        kept: dict[str, Any] = next(
            (getattr(net, k) for k in ("_parameters", "_modules") if name in getattr(net, k)), {}
        )
        if seen.get(name) is value or kept.get(name) is value:
            continue
        if kept.get(name) is not None:
            raise DniFxError(f"{name} of the model was replaced after the rewrite: transform the model again")
        if name in net._buffers:
            net._buffers[name] = value if isinstance(value, Tensor) else None
        elif name in original._buffers:
            net.register_buffer(
                name, original._buffers[name], persistent=name not in original._non_persistent_buffers_set
            )
        elif isinstance(value, nn.Parameter | nn.Module):
            nn.Module.__setattr__(net, name, value)
    net.dni_linked = now


def return_state(net: nn.Module, original: nn.Module) -> None:
    """Give the captured model the parameters, buffers and children of `net`, but not the constants of the graph."""
    constants = net._non_persistent_buffers_set - original._buffers.keys()
    share_state(net, original, without={"dni", *constants})


def share_state(source: nn.Module, destination: nn.Module, *, without: Set[str] = frozenset()) -> None:
    """Give `destination` the parameters, buffers and children of `source` themselves, in the same order.

    Args:
        without: Names that are left out.
    """
    for kind in REGISTERED:
        held = getattr(destination, kind)
        wanted = {name: value for name, value in getattr(source, kind).items() if name not in without}
        # Write only if something has changed, so that several threads can run the same model in eval mode.
        if list(held) != list(wanted) or any(held[name] is not wanted[name] for name in wanted):
            held.clear()
            held.update(wanted)
    destination._non_persistent_buffers_set = source._non_persistent_buffers_set - without
