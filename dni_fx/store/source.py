"""Write a module as Python source, which people can read and Python can import; no pickle."""

import ast
import inspect
import logging
import re
import sys
from collections.abc import Iterator

from torch import Tensor, nn
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer

from dni_fx.errors import SourceError
from dni_fx.model import at_path, expression, has_path, is_hidden
from dni_fx.report import code_lines
from dni_fx.runtime import DecoupledModule
from dni_fx.store.calls import call_entries
from dni_fx.store.construction import CONTAINERS, OWN, construction, literal
from dni_fx.store.statements import VALUE, assignment, buffer_statements, class_name, empty, is_name
from dni_fx.synthesizers import is_findable

__all__ = ["SourceWriter"]


_ABOUT_CALLS = (
    "No code of a graph is here: the model itself runs, and forward hooks cut outputs of its submodules off.",
    "`dni_calls` is a record of one training step: the submodules that were called, in the order in which they",
    "returned, and for a submodule with several outputs the indices of those that are used.",
)

_SOURCE = re.compile(r"source\d*")  # the names of the copies of source files
_LOADED = ("dni_fx_target_", "dni_fx_saved_")  # names under which dni-fx imports files

_log = logging.getLogger(__name__)


class SourceWriter:
    """Write the source of a class that builds the modules of a rewritten net.

    Attributes:
        files: Source files of the person's classes, which `model.py` imports: paths by the name of their copy.
    """

    def __init__(self, net: DecoupledModule) -> None:
        self.net = net
        self.class_name = class_name(type(net).__name__)
        self.called = {str(n.target) for n in net.graph.nodes if n.op == "call_module"}
        self.files: dict[str, str] = {}
        self.aliases: list[str] = []  # assignments, for the names in those files that the graph uses
        self.seen: dict[int, str] = {}  # paths of modules by id
        self.imports: set[str] = {"import torch", "import dni_fx.store.saved", "import dni_fx.ops"}

    def text(self) -> str:
        """The module `model.py`.

        Raises:
            DniFxError: If part of the model has no source form.
        """
        if self.net.dni.plan.frontend != "fx":
            return self._text_without_modules()
        init = ["super().__init__()", *self._own_train(), *self._children(self.net, "")]
        init += ["self.dni = dni_fx.store.saved.read_dni(__file__)", *self._ties()]
        about = ["Importing it gives the class with fresh weights; `dni_fx.load(folder)` reads the trained ones."]
        constants = self._constants()
        settings = [f"    dni_constants = {constants!r}", *self._settings()] if constants else self._settings()
        return self._module(about, settings, init)

    def _constants(self) -> tuple[str, ...]:
        """Names of the tensors that forward makes, which the trace keeps: the model does not have them."""
        original = self.net.dni_captured.original
        read = {str(node.target) for node in self.net.graph.nodes if node.op == "get_attr"}
        own = read & self.net._non_persistent_buffers_set
        return tuple(sorted(name for name in own if original is None or not has_path(original, name)))

    def _text_without_modules(self) -> str:
        """A module whose class has only the graph: the modules are those of the captured model."""
        about = [
            f"Captured by the front end {self.net.dni.plan.frontend}, so it needs the model that it was made from:",
            "`dni_fx.load(folder, model=model)`.",
        ]
        settings = self._settings()
        if not self.net.dni_runs_graph:
            about += ["", *_ABOUT_CALLS]
            self.imports.discard("import dni_fx.ops")
            settings[-1:] = [
                "    dni_calls = [",
                *(f"        {entry}" for entry in call_entries(self.net)),
                "    ]",
                "",
            ]
        return self._module(about, settings, ["dni_fx.store.saved.needs_model(__file__)"])

    def _settings(self) -> list[str]:
        """The facts of the capture, as attributes of the class."""
        return [*(f"    {name} = {value!r}" for name, value in self.net.dni_settings().items()), ""]

    def _module(self, about: list[str], attributes: list[str], init: list[str]) -> str:
        """A module with one class: a docstring, class attributes, the statements of `__init__`, and the graph."""
        forward = self._forward() if self.net.dni_runs_graph else []
        return "\n".join(
            [
                f'"""{self.class_name} in {len(self.net.dni.plan.segments)} segments, written by dni-fx.',
                "",
                *about,
                '"""',
                "",
                *sorted(self.imports),
                "",
                *self._source_files(),
                "",
                f"class {self.class_name}(torch.nn.Module):",
                *attributes,
                "    def __init__(self):",
                *[f"        {line}" for line in init],
                *forward,
                "",
            ]
        )

    def _forward(self) -> list[str]:
        """The graph as code; what the code imports is added to `imports`."""
        forward = [f"    {line}" for line in code_lines(self.net.graph)]
        self.imports |= set(self._graph_imports("\n".join(forward)))
        return ["", *forward]

    # ------------------------------------------------------------------------------------- __init__
    def _own_train(self) -> Iterator[str]:
        """Statements that raise, for modules with a `train` method of their own: `model.py` has not their class."""
        for path, module in [("", self.net.dni_captured.original), *self.net.named_modules()]:
            whole = any(path == called or path.startswith(f"{called}.") for called in self.called)
            inside = isinstance(module, nn.Module) and type(module).train is not nn.Module.train and not whole
            if inside and module is not self.net and path.split(".")[0] != "dni":
                yield _missing(module, path or "the model", "its own train()")

    def _children(self, module: nn.Module, path: str) -> Iterator[str]:
        """Statements that give the module at `path` its parameters, buffers and children."""
        owner = self._module_at(path)
        for name, parameter in module._parameters.items():
            value = None if parameter is None else f"torch.nn.Parameter({empty(parameter)}{_frozen(parameter)})"
            yield f"{owner}.register_parameter({name!r}, {value})"
        for name, buffer in module._buffers.items():
            yield from buffer_statements(owner, name, buffer, persistent=name not in module._non_persistent_buffers_set)
        for name, value in vars(module).items():
            if isinstance(value, Tensor):  # the graph may read it
                yield from buffer_statements(owner, name, value, persistent=False)
        for name, child in module._modules.items():
            if child is not None and not (name == "dni" and not path):
                yield from self._child(child, f"{path}.{name}".lstrip("."), assignment(owner, module, name))

    def _module_at(self, path: str) -> str:
        """An expression for the module at a path."""
        names = path.split(".")
        parents = [at_path(self.net, ".".join(names[:i])) for i in range(len(names))]
        if not path or any(map(is_hidden, parents, names)):
            return expression("self", self.net, path)
        return f"self.get_submodule({path!r})"

    def _child(self, child: nn.Module, path: str, assignment: str) -> Iterator[str]:
        """Statements that make one child: a known module again, a constructor call, or a shell and its children."""
        if id(child) in self.seen:
            yield assignment.replace(VALUE, self._module_at(self.seen[id(child)]))
            return
        self.seen[id(child)] = path
        if path in self.called and _hooks(child):
            yield assignment.replace(VALUE, _missing(child, path, "its hooks"))
            return
        constructor = construction(child)
        if constructor:
            yield assignment.replace(VALUE, constructor)
            for name, parameter in child.named_parameters():
                if not parameter.requires_grad:
                    owner, _, last = f"{path}.{name}".rpartition(".")
                    yield f"{self._module_at(owner)}.get_parameter({last!r}).requires_grad_(False)"
            return
        yield assignment.replace(VALUE, self._shell(child, path))
        yield from self._children(child, path)

    def _shell(self, module: nn.Module, path: str) -> str:
        """An expression for the module without its parameters and children."""
        if type(module) in CONTAINERS:
            return f"torch.nn.{type(module).__name__}()"
        if not any(path == called or path.startswith(f"{called}.") for called in self.called):
            return "torch.nn.Module()"  # only a container
        cls = self._class(type(module))
        attributes = {k: v for k, v in vars(module).items() if k not in OWN and not isinstance(v, Tensor)}
        written = {k: literal(v) for k, v in attributes.items()}
        lost = [k for k, v in written.items() if v is None]
        if cls is None or lost:
            return _missing(module, path, f"its attribute {lost[0]!r}" if lost else "its class")
        named = {k: v for k, v in written.items() if is_name(k)}
        odd = ", ".join(f"{k!r}: {v}" for k, v in written.items() if not is_name(k))
        arguments = "".join(f", {k}={v}" for k, v in named.items()) + (f", **{{{odd}}}" if odd else "")
        return f"dni_fx.store.saved.rebuild({cls}{arguments})"

    def _source_files(self) -> list[str]:
        """Statements that import the copied source files."""
        copies = [f'{name} = dni_fx.store.saved.import_beside(__file__, "{name}.py")' for name in self.files]
        return copies + self.aliases

    def _class(self, cls: type) -> str | None:
        """An expression for a class; None if `model.py` cannot import the class."""
        if not all(map(is_name, f"{cls.__module__}.{cls.__qualname__}".split("."))):  # as in `<locals>`
            return None
        if cls.__module__ == "__main__":
            return None  # the import of a script would run it
        loaded = cls.__module__.startswith(_LOADED)
        if not loaded and _resolve(cls) is not cls:  # made at run time, as the classes of torch's parametrizations
            return None
        if loaded or not is_findable(cls.__module__):
            path = inspect.getsourcefile(cls)
            if path is None:
                return None
            return f"{self._file(path)}.{cls.__qualname__}"
        return f"{self._imported(cls.__module__)}.{cls.__qualname__}"

    def _imported(self, module: str) -> str:
        """An expression for a module, which `model.py` imports; a name of `model.py` itself may hide the module's."""
        top = module.split(".")[0]
        if top != self.class_name and not _SOURCE.fullmatch(top):
            self.imports.add(f"import {module}")
            return module
        alias = f"{module.replace('.', '_')}_module"
        self.imports.add(f"import {module} as {alias}")
        return alias

    def _file(self, path: str) -> str:
        """The name of the copy of a source file of the person's, beside `model.py`."""
        name = next((n for n, p in self.files.items() if p == path), f"source{len(self.files) or ''}")
        self.files[name] = path
        return name

    def _ties(self) -> Iterator[str]:
        """Statements for parameters that have two names."""
        first: dict[int, str] = {}
        for name, parameter in self.net.named_parameters(remove_duplicate=False):
            module, _, attribute = name.rpartition(".")
            if first.setdefault(id(parameter), name) != name:
                owner, _, last = first[id(parameter)].rpartition(".")
                tied = f"{self._module_at(owner)}.get_parameter({last!r})"
                yield f"{self._module_at(module)}.register_parameter({attribute!r}, {tied})"

    def _graph_imports(self, forward: str) -> Iterator[str]:
        """Import statements for the names in `forward`; names of the person's files become aliases."""
        used = {node.id for node in ast.walk(ast.parse("class C:\n" + forward)) if isinstance(node, ast.Name)}
        block = _format_import_block(self.net.graph.python_code("self").globals, sys_importer)
        for line in block.splitlines():
            name = line.rsplit(" ", 1)[-1]
            if name.split(".")[0] not in used or name.startswith("dni_fx_ops"):
                continue
            home = line.split(" ")[1]
            path = getattr(sys.modules.get(home), "__file__", None)
            if path is not None and home != "__main__" and (home.startswith(_LOADED) or not is_findable(home)):
                self.aliases.append(f"{name} = {self._file(path)}.{line.split(' ')[3]}")
            elif home == "__main__":
                raise SourceError(f"forward uses {line.split(' ')[3]} of the script itself: put it into a module")
            else:
                yield line


def _missing(module: nn.Module, path: str, what: str) -> str:
    """An expression that raises: `what` of the module has no source form."""
    return f"dni_fx.store.saved.missing({path!r}, {type(module).__name__!r}, {what!r})"


def _hooks(module: nn.Module) -> bool:
    """Whether the module, or a module or parameter in it, has hooks, as spectral_norm and weight_norm add them."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_modules = any(getattr(m, kind) for m in module.modules() for kind in kinds)
    return of_modules or any(p._backward_hooks for p in module.parameters())


def _resolve(cls: type) -> object:
    """The object that has the name of the class in its module."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found


def _frozen(parameter: nn.Parameter) -> str:
    return "" if parameter.requires_grad else ", requires_grad=False"
