"""Save a rewritten model to a folder, and load it again; no file in the folder is a pickle."""

import ast
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dni_fx.errors import DniFxError, first_line
from dni_fx.model import errors_of, has_path
from dni_fx.plans import Plan
from dni_fx.report import diff
from dni_fx.runtime import (
    DecoupledModule,
    FlatModule,
    HookedModule,
    average_segments,
    hold_parameters,
    make_module,
    plain,
    rename,
    replay_windows,
    retrace,
    rewritten,
    share_state,
)
from dni_fx.store.saved import import_beside, needs_model, saved_dni
from dni_fx.store.source import SourceWriter
from dni_fx.store.statements import class_name

__all__ = ["check_destination", "load", "save"]

_MODULES: dict[str, type[DecoupledModule]] = {"fx": DecoupledModule, "export": FlatModule, "modules": HookedModule}

_FILES = ("model.py", "plan.json", "weights.safetensors", "graph.diff")


def save(net: DecoupledModule, folder: str | Path, *, force: bool = False) -> None:
    """Write `model.py`, `plan.json`, `weights.safetensors` and `graph.diff` to a new folder.

    The files are written to another folder, which is then renamed: the folder is complete, or does not exist.

    Args:
        net: The net that `dni_fx.transform` or `dni_fx.load` returned.
        force: Replace a folder that dni-fx wrote.

    Raises:
        DniFxError: If the folder exists, or cannot be written.
    """
    net = rewritten(net)
    folder = Path(folder)
    check_destination(folder, force=force)
    writer = SourceWriter(net)
    with _replacing(folder) as aside:
        (aside / "model.py").write_text(writer.text(), encoding="utf-8")
        for name, path in writer.files.items():
            shutil.copyfile(path, aside / f"{name}.py")
        (aside / "plan.json").write_text(net.dni.plan.to_json(), encoding="utf-8")
        (aside / "graph.diff").write_text(diff(plain(net), net).to_text(), encoding="utf-8")
        save_file(_apart(_tensors(net)), aside / "weights.safetensors")


def check_destination(folder: Path, *, force: bool) -> None:
    """Check that `save` may write to a folder; call this before long work.

    Raises:
        DniFxError: If the folder exists and `force` is false, or if it holds a file that dni-fx did not write.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DniFxError(f"{folder} exists and is no folder: choose another output folder")
    own = {*_FILES, "__pycache__", *(p.name for p in folder.glob("source*.py"))}
    strange = sorted(p.name for p in folder.iterdir() if p.name not in own)
    if strange:
        raise DniFxError(
            f"{folder} holds a file that dni-fx did not write ({strange[0]}): choose another output folder"
        )
    if not force and any(folder.iterdir()):
        raise DniFxError(f"{folder} exists: choose another output folder, or replace it (force=True, --force)")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`: on success it takes the place of `folder`, on an error it is removed."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DniFxError(f"cannot write {folder} ({error.strerror or error}): choose another output folder") from None
    try:
        yield aside
        aside.chmod(0o755)
        if folder.exists():
            old = aside.with_name(aside.name + ".old")
            folder.rename(old)
            aside.rename(folder)
            shutil.rmtree(old)
        else:
            aside.rename(folder)
    except OSError as error:
        raise DniFxError(f"cannot write {folder} ({error.strerror or error}): choose another output folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters, all buffers and tensor attributes, by name."""
    found: dict[str, Tensor] = dict(net.named_parameters())
    found |= dict(net.named_buffers())
    for path, module in net.named_modules():
        attributes = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
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
    folder = Path(folder)
    missing = [name for name in _FILES[:3] if not (folder / name).is_file()]
    if missing:
        raise DniFxError(f"{folder} is no folder that dni-fx wrote: it holds no {missing[0]}")
    plan = Plan.load(folder)
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
        graph = retrace(shell, cls.forward)
        rename(graph, _node_names((folder / "model.py").read_text(encoding="utf-8"), cls.__name__))
        base = _MODULES[plan.frontend]
        net = make_module(shell, graph, replace(base.dni_captured, original=model), base)
        hold_parameters(net, net.dni)
        if net.dni.rewrite.unlock == "backward":
            average_segments(net)
        net.dni_apply_settings(vars(cls))
    replay_windows(net)
    _set_weights(net, stored, folder / "weights.safetensors", keep_dtype=model is not None)
    return net


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
        if tensor.shape != stored[name].shape:
            raise DniFxError(
                f"{path}: {name} has shape {list(stored[name].shape)}, the model needs {list(tensor.shape)}"
            )
    for name, tensor in wanted.items():
        tensor.data = stored[name].to(tensor if keep_dtype else tensor.device)
