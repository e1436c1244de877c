"""The front end `export`: torch.export in train mode, on the model's own parameters.

It sees through keyword arguments, `**kwargs` and decorated forwards, which symbolic tracing does not. What it
captures is one mode for ever, so in eval mode the original model runs.
"""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from dni_fx.capture.checkpoints import on_checkpoint
from dni_fx.errors import CaptureError, first_line
from dni_fx.graph import module_calls
from dni_fx.model import Inputs, by_name, canonical, in_train_mode, preserved
from dni_fx.passes.drop_export_checks import DropExportChecks
from dni_fx.passes.inline_regions import InlineRegions
from dni_fx.runtime import Calling, FlatCapture, FlatModule, Leaf, adopt

__all__ = ["capture_by_export"]

Free = Callable[[Tensor], dict[int, Any]]


def capture_by_export(model: nn.Module, inputs: Inputs) -> FlatModule:
    """Export a model into a flat graph of ATen operators that shares all its state.

    Sizes stay free where the model allows it.

    Raises:
        CaptureError: If torch.export does not take the model.
    """
    example = _two_rows(inputs)
    # One tensor given as two arguments would become one input of the graph.
    example = example.map(lambda t: t.detach().clone())
    args, kwargs = canonical(model.forward, example.args, example.kwargs)
    checkpoints: list[bool] = []
    with on_checkpoint(lambda: checkpoints.append(True)):
        exported, modes = _export(model, args, kwargs)
    with _quiet():
        module: Any = exported.module(check_guards=False)
    graph: fx.Graph = module.graph
    calling = _calling(graph, args, kwargs, module._out_spec, _guards(exported))
    graph.set_codegen(fx.graph.CodeGen())  # flat; that of torch.export binds and flattens by itself
    graph._tracer_cls = None  # pickling traces the generated code again, with the plain tracer
    for node in graph.nodes:
        node.meta["nn_module_stack"] = module_calls(node.meta.get("nn_module_stack", {}))
    InlineRegions()(module)
    DropExportChecks()(module)
    graph.eliminate_dead_code(lambda node: node.op != "get_attr" or bool(node.users))
    graph.lint()
    captured = replace(FlatCapture.of(model, graph, calling, modes), lost_checkpoints=bool(checkpoints))
    return adopt(model, graph, captured, FlatModule, holder=module)


def _two_rows(inputs: Inputs) -> Inputs:
    """A batch of one row would be fixed at one: export never leaves sizes of 0 and 1 free."""
    tensors = inputs.tensors()
    rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    return inputs.with_rows(2) if rows == 1 else inputs


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, dict[str, bool]]:
    """With all sizes free; failing that, the first axes; failing that, none. And which modules were in eval mode."""
    reason: Exception | None = None
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    rows = tensors[0].shape[:1] if tensors else ()
    choices: tuple[Free, ...] = (
        lambda t: dict.fromkeys(range(t.dim()), Dim.AUTO),
        lambda t: {0: Dim.AUTO} if t.shape[:1] == rows else {},
        lambda t: {},
    )
    for free in choices:
        shapes = _shapes(model, args, kwargs, free)
        with preserved(model), _quiet(), fx.traceback.preserve_node_meta():
            in_train_mode(model)
            _name_keywords(model, kwargs)
            modes = {name: False for name, module in model.named_modules() if name and not module.training}
            try:
                return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False), modes
            except Exception as error:
                reason = reason or error
    assert reason is not None
    raise CaptureError(f"torch.export does not take it: {first_line(reason)}") from None


def _name_keywords(model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Give forward a signature without `**kwargs`, of which torch.export takes none whose sizes are free."""
    signature, forward = inspect.signature(model.forward), model.forward
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [name for name in kwargs if name not in signature.parameters]
    if more:
        parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more]
        named: Any = lambda *args, **kwargs: forward(*args, **kwargs)  # noqa: E731
        named.__signature__ = signature.replace(parameters=parameters)
        model.forward = named  # put back with all the other attributes


def _shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: Free) -> dict[str, Any]:
    """A tree like the arguments by name, as torch.export wants it."""
    named = by_name(model.forward, args, kwargs)
    shapes: dict[str, Any] = pytree.tree_map(lambda v: free(v) if isinstance(v, Tensor) else None, named)
    return shapes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns, logs and prints at length about what is then compared with eager anyway."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.ERROR))
        try:
            yield
        finally:
            logging.disable(disabled)


def _guards(exported: torch.export.ExportedProgram) -> tuple[str, ...]:
    """What the model's own branches on sizes took for granted, as expressions on the arguments `L[name]`."""
    return tuple(getattr(exported, "_guards_code", None) or ())


def _calling(
    graph: fx.Graph,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: pytree.TreeSpec,
    guards: tuple[str, ...],
) -> Calling:
    """Read the calling convention off the placeholders, and drop those that are no tensors."""
    values, spec = pytree.tree_flatten((args, kwargs))
    leaves = []
    for node, value in zip([n for n in graph.nodes if n.op == "placeholder"], values, strict=True):
        if isinstance(value, Tensor):
            sizes = tuple(_size(s) for s in node.meta["val"].shape)
            leaves.append(Leaf(node.name, sizes))
        else:
            leaves.append(Leaf(node.name, None, value))
            if not node.users:
                graph.erase_node(node)
    return Calling(spec, tuple(leaves), result, guards)


def _size(size: Any) -> int | str:
    """A plain number where the capture fixed it."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else str(expression)
