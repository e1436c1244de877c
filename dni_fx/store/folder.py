"""Save a rewritten model to a folder, and load it again; no file in the folder is a pickle."""

import ast
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dni_fx.arguments import check_arguments
from dni_fx.errors import DniFxError, SourceError, first_line
from dni_fx.model import errors_of, has_path
from dni_fx.ops import CountsSteps
from dni_fx.paths import as_path
from dni_fx.plans import Plan, Rewrite
from dni_fx.report import diff
from dni_fx.runtime import (
    DecoupledModule,
    FlatModule,
    HookedModule,
    make_module,
    plain,
    prepare_training,
    rename,
    retrace,
    rewritten,
    share_state,
)
from dni_fx.store.calls import add_cuts, graph_of_calls
from dni_fx.store.destination import ADVICE, FILES, check_destination, exists_error
from dni_fx.store.digests import check_digests, with_digests
from dni_fx.store.replace import beside, errors_of_writing, flush, real_path, replace_folder
from dni_fx.store.saved import import_beside, needs_model, saved_dni
from dni_fx.store.settled import check_fingerprint, checked_plan
from dni_fx.store.source import SourceWriter
from dni_fx.store.statements import class_name
from dni_fx.synthesizers import why_not_importable

__all__ = ["load", "save"]

_MODULES: dict[str, type[DecoupledModule]] = {"fx": DecoupledModule, "export": FlatModule, "modules": HookedModule}


def save(net: DecoupledModule, folder: str | Path, *, force: bool = False) -> None:
    """Write `model.py`, `plan.json`, `weights.safetensors` and `graph.diff` to a new folder.

    The files are written to a hidden folder, which is then renamed: the folder is complete, or as it was before.

    Args:
        net: The net that `dni_fx.transform` or `dni_fx.load` returned.
        folder: The folder. If this is a symbolic link, the link stays, and its target is written.
        force: Replace a folder that dni-fx wrote.

    Raises:
        DniFxError: If the folder exists, or cannot be written.
        SourceError: If another process could not load the net.
    """
    net = rewritten(net)
    check_arguments({"force": force})
    folder = as_path(folder, "folder")
    check_destination(folder, force=force)
    _check_loadable(net.dni.rewrite)
    writer = SourceWriter(net)
    texts = {"model.py": writer.text(), "graph.diff": diff(plain(net), net).to_text()}
    sources = {f"{name}.py": _source(path) for name, path in writer.files.items()}
    folder = real_path(folder)
    with errors_of_writing(folder, ADVICE), beside(folder) as new:
        new.mkdir()
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        for name, source in sources.items():
            (new / name).write_bytes(source)
        save_file(_apart(_tensors(net)), new / "weights.safetensors")
        shutil.copymode(new / "model.py", new / "weights.safetensors")  # safetensors does not follow the umask
        (new / "plan.json").write_text(with_digests(net.dni.plan.to_json(), new), encoding="utf-8")
        flush(*new.iterdir(), new)
        check_destination(folder, force=force)  # a file may have come meanwhile
        try:
            replace_folder(new, folder, force=force)
        except FileExistsError:
            raise exists_error(folder) from None
        flush(folder.parent)


def _source(path: str) -> bytes:
    """A file of the person's, which `model.py` imports a copy of."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DniFxError(f"cannot read {path} ({error.strerror}): the saved folder needs a copy of this file") from None


def _check_loadable(rewrite: Rewrite) -> None:
    """Raise a SourceError if the plan could not name a synthesizer, or the loss, so that another process finds it."""
    advice = "put it into a module of its own, or keep the training run with dni_fx.save_checkpoint"
    for name, path in rewrite.paths.items():
        reason = why_not_importable(path)
        if reason:
            raise SourceError(f"the synthesizer {name} {reason}, where no other process can import it: {advice}")
    if rewrite.loss == "":
        raise SourceError(
            "the loss of the synthesizers is a function of your own, which a plan cannot name: give a name in "
            "torch.nn.functional as loss=, or keep the training run with dni_fx.save_checkpoint"
        )


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters, all buffers and tensor attributes, by name."""
    found: dict[str, Tensor] = dict(net.named_parameters())
    found |= dict(net.named_buffers())
    for path, module in net.named_modules():
        attributes = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
        if isinstance(module, CountsSteps):
            attributes["steps"] = torch.tensor(module.steps)
        found |= {f"{path}.{k}".lstrip("."): v for k, v in attributes.items()}
    return found


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory: the file format takes no views."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage()
        whole = memory.nbytes() == tensor.numel() * tensor.element_size()
        apart[name] = tensor if whole and memory.data_ptr() not in taken else tensor.clone()
        taken.add(memory.data_ptr())
    return apart


def load(folder: str | Path, model: nn.Module | None = None) -> DecoupledModule:
    """Load a folder that `save` wrote. This imports the folder's `model.py`: load only folders that you trust.

    Args:
        model: A model of the original class, which takes the weights; None: `model.py` rebuilds the modules.

    Raises:
        DniFxError: If a file is missing or damaged, or does not fit the model.
    """
    check_arguments({"model": model})
    folder = real_path(as_path(folder, "folder"))
    plan, has_digests = _checked(folder)
    cls = _saved_class(folder, plan)
    if model is None and plan.frontend != "fx":
        needs_model(str(folder / "model.py"))
    stored = _read_tensors(folder / "weights.safetensors")
    shell = cls.__new__(cls)
    with errors_of(str(folder / "model.py")):
        if model is None:
            shell.__init__()
        else:
            nn.Module.__init__(shell)
            share_state(model, shell, without={"dni"})
            constants = {k: v for k, v in vars(model).items() if isinstance(v, Tensor) and k in stored}
            constants |= {k: stored[k] for k in getattr(cls, "dni_constants", ()) if not has_path(model, k)}
            shell._buffers.update(constants)
            shell._non_persistent_buffers_set.update(constants)
            shell.add_module("dni", saved_dni(plan))
        calls = getattr(cls, "dni_calls", None)
        if calls is None:
            graph = retrace(shell, cls.forward)
            rename(graph, _node_names((folder / "model.py").read_text(encoding="utf-8"), cls.__name__))
        else:
            graph = graph_of_calls(calls)
        base = _MODULES[plan.frontend]
        net = make_module(shell, graph, replace(base.dni_captured, original=model), base)
        net.dni_apply_settings(vars(cls))
        net.dni_compare()
        if calls is not None:
            add_cuts(net, cls.dni_outputs)
        prepare_training(net, net.dni.rewrite.loss or None)
    if not has_digests:
        check_fingerprint(folder / "plan.json", plan, plain(net).graph)
    _set_weights(net, stored, folder / "weights.safetensors", keep_dtype=model is not None)
    return net


def _checked(folder: Path) -> tuple[Plan, bool]:
    """The plan of a folder, and whether the files have digests; all that can be checked before `model.py` runs."""
    try:
        exists = folder.exists()
        missing = [name for name in FILES[:3] if not (folder / name).is_file()]
    except OSError as error:  # no permission, or a name that is too long
        raise DniFxError(f"cannot read {folder} ({error.strerror or error})") from None
    if not exists:
        raise DniFxError(f"no such folder: {folder}")
    if missing:
        raise DniFxError(f"{folder} is no folder that dni-fx wrote: it holds no {missing[0]}")
    return checked_plan(folder), check_digests(folder, FILES)


def _node_names(source: str, cls: str) -> list[str]:
    """Names of the graph's nodes in order: arguments and variables of the generated `forward`, then the output."""
    classes = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls]
    forward = next(n for n in classes[0].body if isinstance(n, ast.FunctionDef) and n.name == "forward")
    arguments = [a.arg for a in forward.args.args[1:]]
    names = []
    for statement in forward.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, value = statement.targets[0].id, statement.value
            if isinstance(value, ast.Name) and value.id in arguments:  # `input_1 = input` renames a placeholder
                arguments[arguments.index(value.id)] = name
            else:
                names.append(name)
    return [*arguments, *names, "output"]


def _saved_class(folder: Path, plan: Plan) -> Any:
    """The class that the folder's `model.py` defines for the plan."""
    module = import_beside(str(folder / "model.py"), "model.py")
    cls = getattr(module, class_name(plan.model), None) or getattr(module, plan.model, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise DniFxError(f"{folder / 'model.py'} defines no module {plan.model!r}, which plan.json names")
    return cls


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DniFxError(f"cannot read {path}: {first_line(error)}") from None


def _set_weights(net: nn.Module, stored: dict[str, Tensor], path: Path, *, keep_dtype: bool) -> None:
    """Put stored tensors into a net, after a check that all of them fit.

    Args:
        keep_dtype: Convert stored tensors to the dtypes of the net.
    """
    wanted = _tensors(net)
    absent, strange = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if absent or strange:
        what = f"holds no {absent[0]!r}" if absent else f"holds {strange[0]!r}, which the model does not have"
        raise DniFxError(f"{path} {what}: it belongs to another model")
    for name, tensor in wanted.items():
        found = stored[name]
        if tensor.shape != found.shape:
            raise DniFxError(f"{path}: {name} has shape {list(found.shape)}, the model needs {list(tensor.shape)}")
        if not _is_convertible(found.dtype, tensor.dtype, keep_dtype=keep_dtype):
            raise DniFxError(f"{path}: {name} has dtype {found.dtype}, the model needs {tensor.dtype}")
    for name, tensor in wanted.items():
        value = stored[name].to(tensor if keep_dtype else tensor.device)
        # The memory of safetensors has a fixed size, and forward may resize a buffer.
        tensor.data = value if isinstance(tensor, nn.Parameter) else value.clone()
    for path_in_net, module in net.named_modules():
        if isinstance(module, CountsSteps):
            module.steps = int(stored[f"{path_in_net}.steps"])


def _is_convertible(found: torch.dtype, needed: torch.dtype, *, keep_dtype: bool) -> bool:
    """Whether the dtypes are of one kind: floating, complex, integer or bool."""
    if not keep_dtype and all(dtype.is_floating_point or dtype.is_complex for dtype in (found, needed)):
        return True  # the source of a layer does not name its dtype
    return torch.can_cast(found, needed) and torch.can_cast(needed, found)
