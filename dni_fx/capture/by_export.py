"""The front end `export`: torch.export in train mode, on the model's own parameters.

Unlike symbolic tracing, torch.export captures keyword arguments, `**kwargs` and decorated forwards. The graph holds for
train mode alone, so in eval mode the original model runs.
"""

import contextlib
import inspect
import io
import keyword
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from dni_fx.capture.attributes import recorded_reads
from dni_fx.capture.checkpoints import on_checkpoint
from dni_fx.errors import CaptureError, first_line
from dni_fx.graph import lint, module_calls
from dni_fx.model import Inputs, Read, by_name, canonical, in_train_mode, is_hidden, preserved
from dni_fx.passes.drop_export_checks import DropExportChecks
from dni_fx.passes.inline_regions import InlineRegions
from dni_fx.runtime import Calling, FlatCapture, FlatModule, Leaf, free_reserved_name, is_reserved, make_module

__all__ = ["capture_by_export"]

FreeAxes = Callable[[Tensor], dict[int, Any]]  # from a tensor to the axes whose sizes may change


def capture_by_export(model: nn.Module, inputs: Inputs) -> FlatModule:
    """Export a model into a flat graph of ATen operators on the model's own parameters and buffers.

    Sizes of the inputs may change after the capture, if the model allows it.

    Raises:
        CaptureError: If torch.export does not take the model.
    """
    _check_names(model)
    _check_hooks(model)
    example = _two_rows(inputs)
    # Copies, since torch.export makes one input of a tensor that is passed as two arguments.
    example = example.map(lambda t: t.detach().clone())
    args, kwargs = canonical(model.forward, example.args, example.kwargs)
    checkpoints: list[bool] = []
    with on_checkpoint(lambda: checkpoints.append(True)):
        exported, modes, reads = _export(model, args, kwargs)
    with _quiet():
        names = _free_reserved_names(model, exported)
        module: Any = exported.module(check_guards=False)
    graph: fx.Graph = module.graph
    calling = _calling(graph, args, kwargs, module._out_spec, _guards(exported))
    graph.set_codegen(fx.graph.CodeGen())  # the one of torch.export flattens arguments, which FlatModule does
    graph._tracer_cls = None  # so that pickling traces the generated code again with the default tracer
    for node in graph.nodes:
        node.meta["nn_module_stack"] = module_calls(node.meta.get("nn_module_stack", {}))
    InlineRegions()(module)
    DropExportChecks()(module)
    graph.eliminate_dead_code(lambda node: node.op != "get_attr" or bool(node.users))
    lint(graph)
    for node in graph.nodes:
        node.target = names.get(node.target, node.target)
    facts = FlatCapture.of(model, graph, calling, modes, reads)
    captured = replace(facts, lost_checkpoints=bool(checkpoints))
    return make_module(model, graph, captured, FlatModule, holder=module)


def _check_names(model: nn.Module) -> None:
    """Raise a CaptureError for names that torch.export cannot find."""
    for path, module in model.named_modules():
        for name in module._modules:
            if is_hidden(module, name):
                raise CaptureError(
                    f"torch.export does not find the submodule {f'{path}.{name}'.lstrip('.')!r}, since "
                    f'{type(module).__name__} has another attribute {name!r}: rename it, or use frontend="modules"'
                )
    if "self" in inspect.signature(model.forward).parameters:
        raise CaptureError("torch.export takes no argument 'self': rename it, or use frontend=\"modules\"")


def _check_hooks(model: nn.Module) -> None:
    """Raise a CaptureError for backward hooks, which torch.export loses."""
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            name = path or type(module).__name__
            raise CaptureError(f'{name} has backward hooks, which torch.export loses: use frontend="modules"')


def _free_reserved_names(model: nn.Module, exported: torch.export.ExportedProgram) -> dict[str, str]:
    """Rename state that a torch.fx.GraphModule cannot hold under its name: an attribute of the class, or no attribute.

    Returns:
        The names in the model of parameters and buffers, by their new names.
    """
    held = (exported._state_dict, exported._constants)
    reserved = [name for names in held for name in names if is_reserved(name)]
    new = {name: f"{re.sub(r'[^0-9a-zA-Z]', '_', name)}_value{index}" for index, name in enumerate(reserved)}
    for spec in (*exported.graph_signature.input_specs, *exported.graph_signature.output_specs):
        if spec.kind is not OutputKind.USER_INPUT_MUTATION:
            spec.target = new.get(spec.target or "", spec.target)
    for tensors in held:
        for name in new.keys() & tensors.keys():
            tensors[new[name]] = tensors.pop(name)
    own = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers(remove_duplicate=False))}
    return {new[name]: name for name in reserved if name in own}


def _two_rows(inputs: Inputs) -> Inputs:
    """The inputs with two rows if they have one: torch.export fixes sizes of 0 and 1."""
    tensors = inputs.tensors()
    rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    return inputs.with_rows(2) if rows == 1 else inputs


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, dict[str, bool], list[Read]]:
    """Export with all sizes free; if that fails, the sizes of the first axes; if that fails, none.

    Returns:
        The program; False for each module that was in eval mode, by name; and the values that the model's code read.
    """
    first_error: Exception | None = None
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    rows = tensors[0].shape[:1] if tensors else ()
    choices: tuple[FreeAxes, ...] = (
        lambda t: dict.fromkeys(range(t.dim()), Dim.AUTO),
        lambda t: {0: Dim.AUTO} if t.shape[:1] == rows else {},
        lambda t: {},
    )
    for free_axes in choices:
        shapes = _shapes(model, args, kwargs, free_axes)
        with preserved(model), _quiet(), fx.traceback.preserve_node_meta():
            in_train_mode(model)
            modes = {name: False for name, module in model.named_modules() if name and not module.training}
            try:
                with recorded_reads(model) as reads:
                    _name_keywords(model, kwargs)
                    exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
                return exported, modes, reads
            except Exception as error:  # torch.export raises errors of any type on code that it cannot capture
                first_error = first_error or error
                if _OF_AN_OUTPUT in str(error):
                    break
    assert first_error is not None
    raise CaptureError(f"torch.export does not take it: {_reason(first_error)}") from None


_OF_AN_OUTPUT = "in output, which is not a known type"  # an error at any sizes of the inputs

# The notes and the advice that torch adds to its errors, for people who call torch.export themselves.
_ADVICE = re.compile(r"\s*\(unhinted: .*|(?<=[.!])\s+(If|To|Please|For more|See|Consider|You|Try|Use|Set|Run)\b.*")


def _reason(error: Exception) -> str:
    """The first line of an error of torch.export, without advice."""
    line = first_line(error)
    return _ADVICE.sub("", line) or line


def _name_keywords(model: nn.Module, kwargs: dict[str, Any]) -> None:
    """Give forward a signature without `**kwargs`: torch.export allows no free sizes there."""
    signature, forward = inspect.signature(model.forward), model.forward
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    extra = [name for name in kwargs if name not in signature.parameters]
    odd = [name for name in extra if not name.isidentifier() or keyword.iskeyword(name)]
    if odd:
        raise CaptureError(f'torch.export takes no argument {odd[0]!r}: rename it, or use frontend="modules"')
    if extra:
        parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
        named: Any = lambda *args, **kwargs: forward(*args, **kwargs)  # noqa: E731
        named.__signature__ = signature.replace(parameters=parameters)
        vars(model)["forward"] = named  # no write that `recorded_reads` sees; `preserved` restores it


def _shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free_axes: FreeAxes) -> dict[str, Any]:
    """The argument `dynamic_shapes` of torch.export: the free axes of each tensor, nested like the named arguments."""
    named = by_name(model.forward, args, kwargs)
    shapes: dict[str, Any] = pytree.tree_map(lambda v: free_axes(v) if isinstance(v, Tensor) else None, named)
    return shapes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export, which warns and logs about differences that `verify` finds anyway."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.ERROR))
        try:
            yield
        finally:
            logging.disable(disabled)


def _guards(exported: torch.export.ExportedProgram) -> tuple[str, ...]:
    """The conditions under which the model takes the captured branches, as expressions on the arguments `L[name]`."""
    return tuple(getattr(exported, "_guards_code", None) or ())


def _calling(
    graph: fx.Graph,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: pytree.TreeSpec,
    guards: tuple[str, ...],
) -> Calling:
    """Read the calling convention from the placeholders, and erase placeholders for values that are no tensors."""
    values, spec = pytree.tree_flatten((args, kwargs))
    leaves = []
    for node, value in zip([n for n in graph.nodes if n.op == "placeholder"], values, strict=True):
        free_reserved_name(node)
        node.target = node.name  # the arguments of the graph are positional
        if isinstance(value, Tensor):
            sizes = tuple(_size(s) for s in node.meta["val"].shape)
            leaves.append(Leaf(node.name, sizes))
        else:
            leaves.append(Leaf(node.name, None, value))
            if not node.users:
                graph.erase_node(node)
    return Calling(spec, tuple(leaves), result, guards)


def _size(size: int | torch.SymInt) -> int | str:
    """An int for a size that the capture fixed, else the name of a symbol."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else str(expression)
