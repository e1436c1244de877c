"""Save a rewritten model to a folder and read it back; nothing in the folder is a pickle."""

import ast
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dni_fx import hooking
from dni_fx.averaging import average_segments
from dni_fx.diffing import diff
from dni_fx.errors import DniFxError, SourceError, first_line
from dni_fx.interfaces import Interfaces, build_dni, hold_parameters
from dni_fx.loading import errors_of
from dni_fx.module import DecoupledModule, adopt, plain, rename, retrace, share_state
from dni_fx.passes.add_time_cuts import time_name
from dni_fx.planning import Plan
from dni_fx.recurrent import add_time_cuts, time_activation
from dni_fx.replaying import replay_windows
from dni_fx.settings import loss_function, with_defaults
from dni_fx.source import SourceWriter
from dni_fx.synthesizers import resolve

__all__ = ["check_destination", "load", "save"]

_FILES = ("model.py", "plan.json", "weights.safetensors", "graph.diff")


def save(net: DecoupledModule, folder: str | Path, *, force: bool = False) -> None:
    """Write `model.py`, `plan.json`, `weights.safetensors` and `graph.diff` to a new folder.

    Written aside and then renamed: a folder is there whole or not at all.

    Args:
        net: What `dni_fx.transform` or `dni_fx.load` returned.
        force: Replace a folder that dni-fx wrote.

    Raises:
        DniFxError: If the folder exists, or cannot be written.
    """
    if not isinstance(net, DecoupledModule):
        raise DniFxError(f"expected what dni_fx.transform returned, not a {type(net).__name__}")
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
    """Refuse a folder that `save` must not write to, before any work is done.

    Raises:
        DniFxError: If it exists and `force` is not given, or if it holds what dni-fx did not write.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DniFxError(f"{folder} exists and is no folder: choose another output folder")
    own = {*_FILES, "__pycache__", *(p.name for p in folder.glob("source*.py"))}
    strange = sorted(p.name for p in folder.iterdir() if p.name not in own)
    if strange:
        raise DniFxError(f"{folder} holds what dni-fx did not write ({strange[0]}): choose another output folder")
    if not force and any(folder.iterdir()):
        raise DniFxError(f"{folder} exists: choose another output folder, or replace it with --force (force=True)")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder beside the final one, which takes its place at the end, or vanishes on any error."""
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
    """Parameters, all buffers and tensor attributes by name, each once."""
    found: dict[str, Tensor] = dict(net.named_parameters())
    found |= dict(net.named_buffers())
    for path, module in net.named_modules():
        plain_ones = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
        found |= {f"{path}.{k}".lstrip("."): v for k, v in plain_ones.items()}
    return found


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own: the file format takes no views into shared memory."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage()
        whole = memory.nbytes() == tensor.numel() * tensor.element_size()
        apart[name] = tensor if whole and memory.data_ptr() not in taken else tensor.clone()
        taken.add(memory.data_ptr())
    return apart


# ------------------------------------------------------------------------------------------------ load
def load(folder: str | Path, model: nn.Module | None = None) -> DecoupledModule:
    """Rebuild what `save` wrote. This imports the folder's `model.py`: load only folders that you trust.

    Args:
        model: Put the weights into this model of the original class, in the place of rebuilding its modules.

    Raises:
        DniFxError: If a file is missing or damaged, or does not fit.
    """
    folder = Path(folder)
    missing = [name for name in _FILES[:3] if not (folder / name).is_file()]
    if missing:
        raise DniFxError(f"{folder} is no folder that dni-fx wrote: no {missing[0]} in it")
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
            share_state(model, shell, without="dni")
            shell.__dict__.update({k: v for k, v in vars(model).items() if isinstance(v, Tensor)})
            shell.add_module("dni", _dni(plan))
            for name in getattr(cls, "dni_constants", ()):
                shell.register_buffer(name, stored[name], persistent=False)
        graph = retrace(shell, cls.forward)
        rename(graph, _node_names((folder / "model.py").read_text(encoding="utf-8"), plan.model))
        net = adopt(shell, graph, base=hooking.HookedModule if plan.frontend == "modules" else DecoupledModule)
        hold_parameters(net, net.dni)
        if plan.rewrite is not None and plan.rewrite.unlock == "backward":
            average_segments(net)
        net.__dict__["dni_original"] = model
        net.dni_recall(vars(cls))
    replay_windows(net)
    _take_weights(net, stored, folder / "weights.safetensors", keep_dtype=model is not None)
    return net


def _node_names(source: str, class_name: str) -> list[str]:
    """Names of the graph's nodes in order: the variables of the generated `forward`, then the output."""
    classes = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == class_name]
    forward = next(n for n in classes[0].body if isinstance(n, ast.FunctionDef) and n.name == "forward")
    arguments = [a.arg for a in forward.args.args[1:]]
    names = []
    for statement in forward.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, value = statement.targets[0].id, statement.value
            if isinstance(value, ast.Name) and value.id in arguments:  # `input_1 = input`: a placeholder renamed
                arguments[arguments.index(value.id)] = name
            else:
                names.append(name)
    return [*arguments, *names, "output"]


def _saved_class(folder: Path, plan: Plan) -> Any:
    module = import_beside(str(folder / "model.py"), "model.py")
    cls = getattr(module, plan.model, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise DniFxError(f"{folder / 'model.py'} defines no module {plan.model!r}, which plan.json names")
    return cls


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DniFxError(f"cannot read {path}: {first_line(error)}") from None


def _take_weights(net: nn.Module, stored: dict[str, Tensor], path: Path, *, keep_dtype: bool) -> None:
    wanted = _tensors(net)
    absent, strange = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if absent or strange:
        what = f"holds no {absent[0]!r}" if absent else f"holds {strange[0]!r}, which the model has not"
        raise DniFxError(f"{path} {what}: it belongs to another model")
    for name, tensor in wanted.items():
        if tensor.shape != stored[name].shape:
            raise DniFxError(
                f"{path}: {name} has shape {list(stored[name].shape)}, the model wants {list(tensor.shape)}"
            )
    for name, tensor in wanted.items():  # all of them fit: only now is anything changed
        tensor.data = stored[name].to(tensor if keep_dtype else tensor.device)


# --------------------------------------------------------------------- what a saved model.py calls
def import_beside(file: str, name: str) -> ModuleType:
    """The module in the file `name` in the folder of `file`, whatever else is installed under that name."""
    path = Path(file).resolve().with_name(name)
    unique = f"dni_fx_saved_{path.stem}_{abs(hash(str(path)))}"
    with errors_of(f"{path.parent.name}/{name}"):
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        spec.loader.exec_module(module)
    return module


def read_dni(file: str) -> Interfaces:
    """The submodule `dni` for the plan in the folder of `file`."""
    return _dni(Plan.load(Path(file).resolve().with_name("plan.json")))


def _dni(plan: Plan) -> Interfaces:
    if plan.rewrite is None:
        raise DniFxError("the plan does not say how the model was rewritten")
    shapes = {f"cut{i}_{t.node}": t for i, cut in enumerate(plan.cuts) for t in cut.tensors}
    states = {time_name(index): state for index, state in enumerate(plan.states)}
    settings = plan.rewrite.settings
    loss = None if settings.loss is None else loss_function(settings.loss)
    factories = {}
    for crossing, name in plan.rewrite.synthesizers.items():
        if crossing in states:
            factories[crossing] = resolve(name, time_activation(states[crossing]).shape, 1)[1]
            continue
        if crossing not in shapes:
            raise DniFxError(f"the plan has a synthesizer for {crossing!r}, which is no crossing of it")
        factories[crossing] = resolve(name, shapes[crossing].shape, shapes[crossing].axis, loss)[1]
    dni = build_dni(plan, factories, with_defaults(settings, named=True))
    add_time_cuts(dni, factories, with_defaults(settings, named=True, in_time=True))
    return dni


def needs_model(file: str) -> None:
    """Stands where a class holds a graph alone."""
    raise SourceError(
        f"{file} holds no modules of its own, since no symbolic trace of the model was possible: load with "
        "dni_fx.load(folder, model=model)"
    )


def rebuild(cls: type[nn.Module], **attributes: Any) -> nn.Module:
    """A module of a class with these attributes, without calling its constructor; children are added after."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module.__dict__.update(attributes)
    return module


def missing(path: str, cls: str, what: str) -> nn.Module:
    """Stands where a module could not be written as source."""
    raise SourceError(
        f"{path} is a {cls}, and {what} cannot be written without a pickle: load with dni_fx.load(folder, model=model)"
    )
