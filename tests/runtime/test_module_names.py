"""Models whose submodules, parameters, buffers and arguments have names that Python or a class needs itself."""

import copy
import pickle
from pathlib import Path
from typing import Any

import command_line
import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx.errors import CaptureError

pytestmark = pytest.mark.slow

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) - 0.5
OF_GRAPH_MODULE = ("code", "graph", "meta", "shape_env", "print_readable", "recompile", "add_submodule", "_code")
ODD = ("class", "from", "a-b", "1", "é", "a b", 'q"t', "a@1", "[red]")
OF_OURS = ("dni_fx", "dni_net", "self", "torch", "call", "input")
OF_MODULES = ("compile", "type", "forward", "state_dict", "get_submodule")  # torch.export does not find submodules
NAMES = (*OF_GRAPH_MODULE, *ODD, *OF_OURS)
FRONTENDS = ("fx", "export", "modules")


class Rows(nn.Module):
    """A block whose layers have the names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = x + torch.tanh(layer(x))
        return x


class Tensors(nn.Module):
    """Parameters, buffers and plain tensors with the names."""

    def __init__(self, names: tuple[str, ...], kind: str) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 3)
        self.__dict__["names"] = names
        generator = torch.Generator().manual_seed(1)
        for name in names:
            tensor = torch.rand(4, generator=generator)
            if kind == "buffer":
                self.register_buffer(name, tensor)
            else:
                setattr(self, name, nn.Parameter(tensor) if kind == "parameter" else tensor)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.below(x))
        for name in self.names:
            h = h + torch.sin(h * getattr(self, name))
        return self.above(torch.relu(h))


def models(kind: str, frontend: str) -> nn.Module:
    torch.manual_seed(0)
    hidden = () if frontend == "export" else OF_MODULES
    if kind == "submodules":
        return Rows((*NAMES, *hidden))
    if kind == "nested":
        return nn.Sequential(Rows((*NAMES[:-6], *hidden)), nn.ModuleDict({n: Rows(NAMES[-3:]) for n in ODD})["class"])
    # torch.export itself takes no plain tensor called `self`
    names = tuple(n for n in NAMES if n != "self" or kind != "tensor")
    return Tensors(names, kind)


def step(net: nn.Module, /, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
    """Outputs in train and eval mode, and gradients of the model's own parameters."""
    net.zero_grad()
    output = net.train()(*args, **kwargs)
    output.square().mean().backward()
    own = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None and not n.startswith("dni.")}
    net.zero_grad()
    return {"output": output.detach(), "eval": net.eval()(*args, **kwargs).detach()} | own


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("kind", ["submodules", "nested", "parameter", "buffer", "tensor"])
def test_every_name_is_rewritten_copied_saved_and_loaded(kind: str, frontend: str, tmp_path: Path) -> None:
    model = models(kind, frontend)
    keys, expected = list(model.state_dict()), model(X).detach()
    net = dni_fx.transform(model, X, cuts=2, frontend=frontend)
    trained = step(net, X)
    torch.testing.assert_close(trained["output"], expected)
    assert [key for key in net.state_dict() if not key.startswith("dni.")] == keys == list(model.state_dict())
    net.load_state_dict(net.state_dict())
    assert_same(step(copy.deepcopy(net), X), trained)
    assert_same(step(pickle.loads(pickle.dumps(net)), X), trained)
    dni_fx.save(net, tmp_path / "net")
    assert_same(step(dni_fx.load(tmp_path / "net", model=copy.deepcopy(model)), X), trained)
    if frontend == "fx":
        assert_same(step(dni_fx.load(tmp_path / "net"), X), trained)
    dni_fx.save_checkpoint(tmp_path / "run.pt", net)
    dni_fx.load_checkpoint(tmp_path / "run.pt", net)
    assert_same(step(net, X), trained)
    assert dni_fx.restore(net) is model


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_name_on_the_command_line(frontend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*NAMES, *(() if frontend == "export" else OF_MODULES))
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class torch_(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        for name in {names!r}:\n            setattr(self, name, nn.Linear(4, 4))\n"
        "    def forward(self, x):\n        for layer in self.children():\n            x = x + torch.tanh(layer(x))\n"
        "        return x\n\n"
        "torch_.__name__ = torch_.__qualname__ = 'torch'\nmodel = torch_()\n"
    )
    arguments = ("--input", "6x4", "--cuts", "2", "--frontend", frontend, "-o", str(tmp_path / "out"))
    assert command_line.run(monkeypatch, "rewrite", str(tmp_path / "model.py"), *arguments) == 0
    text = (tmp_path / "out" / "model.py").read_text()
    assert "class torch_(torch.nn.Module):" in text
    if frontend == "fx":
        assert list(dni_fx.load(tmp_path / "out").state_dict())[:2] == ["code.weight", "code.bias"]


@pytest.mark.parametrize("name", OF_MODULES)
def test_export_refuses_a_submodule_that_it_does_not_find(name: str) -> None:
    with pytest.raises(CaptureError, match=rf"'0\.{name}'.*rename it"):
        dni_fx.transform(nn.Sequential(Rows((name,)), nn.Linear(4, 4)), X, cuts=2, frontend="export")


@pytest.mark.parametrize("name", ["dni", "dni_captured", "dni_original"])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_names_of_a_rewritten_net_are_refused(name: str, frontend: str) -> None:
    with pytest.raises(dni_fx.DniFxError, match=f"`{name}`.*rename it"):
        dni_fx.transform(Rows((name, "other")), X, cuts=2, frontend=frontend)


def taking(argument: str) -> nn.Module:
    """A model whose forward takes this argument."""
    namespace: dict[str, Any] = {"Rows": Rows}
    text = f"class Taking(Rows):\n    def forward(this, {argument}):\n        return Rows.forward(this, {argument})\n"
    exec(text, namespace)
    torch.manual_seed(0)
    model: nn.Module = namespace["Taking"](("a", "b", "c"))
    return model


@pytest.mark.parametrize("name", ["torch", "dni", "dni_fx", "input", "self", "net", "getattr", "graph", "dni_fx_ops"])
def test_every_name_of_an_argument(name: str, tmp_path: Path) -> None:
    for frontend in ("auto", *FRONTENDS):
        model = taking(name)
        arguments = {"args": (X,)} if name == "self" else {"kwargs": {name: X}}
        args, kwargs = arguments.get("args", ()), arguments.get("kwargs", {})
        refused = ("torch", "self", "dni_fx", "dni_fx_ops") if frontend == "fx" else ("self",)
        if frontend in ("fx", "export") and name in refused:
            with pytest.raises(CaptureError, match=f"argument '{name}'.*rename it"):
                dni_fx.transform(model, args, example_kwargs=kwargs, cuts=2, frontend=frontend)
            continue
        net = dni_fx.transform(model, args, example_kwargs=kwargs, cuts=2, frontend=frontend)
        trained = step(net, *args, **kwargs)
        torch.testing.assert_close(trained["output"], model.train()(X))
        dni_fx.save(net, tmp_path / frontend)
        assert_same(step(dni_fx.load(tmp_path / frontend, model=copy.deepcopy(model)), *args, **kwargs), trained)


class Keywords(Rows):
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return super().forward(sum(others.values(), x))


@pytest.mark.parametrize("name", ["x-", "class", "", "1", "x.y", "*x"])
def test_odd_keywords(name: str) -> None:
    kwargs = {name: X}
    net = dni_fx.transform(Keywords(("a", "b")), X, example_kwargs=kwargs, cuts=2)
    torch.testing.assert_close(net(X, **kwargs), net.dni_captured.original(X, **kwargs))
    for frontend in ("fx", "export"):
        with pytest.raises(CaptureError, match=r"argument '.*rename it"):
            dni_fx.transform(Keywords(("a", "b")), X, example_kwargs=kwargs, cuts=2, frontend=frontend)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_an_argument_with_the_name_of_the_labels_is_refused(frontend: str) -> None:
    with pytest.raises(CaptureError, match=r"'dni_context'.*rename it"):
        dni_fx.transform(taking("dni_context"), X, cuts=2, frontend=frontend)


LAYERS = Rows(("a", "b", "c"))


class Static(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = LAYERS

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return LAYERS(x) * 1


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_static_forward(frontend: str) -> None:
    net = dni_fx.transform(Static(), X, cuts=2, frontend=frontend)
    torch.testing.assert_close(net(X), LAYERS(X))


class Outputs(Rows):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = super().forward(x)
        return {"a-b": h, "class": 2 * h, "": 3 * h, "1": h + 1}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_keys_of_the_result_that_are_no_names(frontend: str, tmp_path: Path) -> None:
    model = Outputs(("a", "b"))
    net = dni_fx.transform(model, X, cuts=2, frontend=frontend)
    torch.testing.assert_close(net(X), model(X))
    dni_fx.save(net, tmp_path / "net")
    torch.testing.assert_close(dni_fx.load(tmp_path / "net", model=model)(X), model(X))
