"""Attributes of a net: those of its model; and calls after a value has changed that the graph fixed."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dni_fx
from dni_fx import DniFxError

X = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))


@dataclass
class Config:
    tau: float = 1.0
    lr: float = 0.1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Dropout(0.1)
        self.drop_path = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x + (1 - self.drop_path) * self.drop(torch.relu(self.norm(self.linear(x))))


class Net(nn.Module):
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(2)), nn.Linear(12, 4)
        self.tau, self.use_scale, self.best = 1.0, True, 0.0
        self.config, self.hp, self.scales = Config(), {"tau": 1.0, "lr": 0.1}, [1.0, 2.0]
        self.register_buffer("temperature", torch.tensor(1.0))
        self.offset = torch.zeros(4)

    @property
    def width(self) -> int:
        return self.head.in_features

    def encode(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.encode(x)) / self.tau * self.config.tau * self.hp["tau"] * self.temperature + self.offset
        return y * self.scales[1] if self.use_scale else y


def set_item(owner: Any, key: Any, value: Any) -> None:
    owner[key] = value


# Name, old and new value in the message; the change, of the model or of the net.
FIXED: list[tuple[str, Callable[[Any], None]]] = [
    ("tau was 1.0 .* is 0.1", lambda m: setattr(m, "tau", 0.1)),
    ("use_scale was True .* is False", lambda m: setattr(m, "use_scale", False)),
    (r"blocks.1.drop_path was 0.0 .* is 0.2", lambda m: setattr(m.blocks[1], "drop_path", 0.2)),
    ("config.tau was 1.0 .* is 0.3", lambda m: setattr(m.config, "tau", 0.3)),
    ("config.tau was 1.0 .* is 0.3", lambda m: setattr(m, "config", Config(0.3))),
    (r"hp\['tau'\] was 1.0 .* is 0.3", lambda m: set_item(m.hp, "tau", 0.3)),
    (r"scales was \[1.0, 2.0\] .* is \[1.0, 0.3\]", lambda m: set_item(m.scales, 1, 0.3)),
    ("tau was 1.0 .* is not set", lambda m: delattr(m, "tau")),
]
IN_LAYERS: list[tuple[str, Callable[[Any], None]]] = [
    ("blocks.0.drop.p was 0.1 .* is 0.5", lambda m: setattr(m.blocks[0].drop, "p", 0.5)),
    ("blocks.0.norm.momentum was 0.1 .* is 0.5", lambda m: setattr(m.blocks[0].norm, "momentum", 0.5)),
    ("blocks.0.norm is in eval mode", lambda m: m.blocks[0].norm.eval()),
]
FREE: list[Callable[[Any], object]] = [
    lambda m: setattr(m, "best", 0.9),
    lambda m: setattr(m, "new", 3),
    lambda m: setattr(m.config, "lr", 0.2),
    lambda m: set_item(m.hp, "lr", 0.2),
    lambda m: setattr(m, "tau", 1),
    lambda m: m.head.eval(),
    lambda m: m.blocks[0].linear.requires_grad_(False),
    lambda m: m.temperature.fill_(3.0),
    lambda m: setattr(m, "temperature", torch.tensor(3.0)),
    lambda m: setattr(m, "offset", torch.ones(4)),
]

_NETS: dict[str, Any] = {}


def transformed(frontend: str) -> Any:
    """A copy of a net, which is made once for each front end, since torch.export takes a second."""
    if frontend not in _NETS:
        torch.manual_seed(0)
        _NETS[frontend] = dni_fx.transform(Net(), X, cuts=2, frontend=frontend)
    return copy.deepcopy(_NETS[frontend])


def run_all(net: Any, x: Tensor = X) -> list[Tensor]:
    """Outputs in train and eval mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        return [net.train(mode)(x) for mode in (True, False)]


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_value_that_the_graph_fixed(frontend: str) -> None:
    for message, change in FIXED + (IN_LAYERS if frontend == "export" else []):
        for of_net in (True, False):
            net = transformed(frontend)
            net(X)
            change(net if of_net else net.dni_original)
            with pytest.raises(DniFxError, match=message) as error:
                net(X)
            assert 'frontend="modules"' in str(error.value)
            net.eval()
            if frontend == "fx":
                with pytest.raises(DniFxError, match=message):
                    net(X)
            elif "not set" not in message:  # the model itself runs
                torch.testing.assert_close(net(X), net.dni_original(X))


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_changes_that_act_or_do_not_matter(frontend: str) -> None:
    """In eval mode as the model; in train mode as a net that was made after the change."""
    changes = [c for _, c in FIXED[:-1] + IN_LAYERS] if frontend == "modules" else []
    changes += [c for _, c in IN_LAYERS] if frontend == "fx" else []
    for change in [*FREE, *changes]:
        for of_net in (True, False):
            net = transformed(frontend)
            net(X)
            change(net if of_net else net.dni_original)
            model = copy.deepcopy(net.dni_original)
            before = [m.training for m in model.modules()]
            torch.manual_seed(1)
            trained = net(X)
            torch.manual_seed(1)
            torch.testing.assert_close(trained, model(X))
            assert before == [m.training for m in model.modules()]
            torch.testing.assert_close(net.eval()(X), model.eval()(X))


def test_the_value_comes_back() -> None:
    net = transformed("fx")
    net.tau = 2.0
    with pytest.raises(DniFxError):
        net(X)
    net.tau = 1.0
    net(X)


class WithBuffer(nn.Module):
    """The advice of the message, followed."""

    tau: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 4)
        self.register_buffer("tau", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) / self.tau


class WithTau(WithBuffer):
    def __init__(self) -> None:
        super().__init__()
        del self.tau
        self.tau = 1.0  # type: ignore[assignment]


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_a_buffer_is_a_way_out(frontend: str) -> None:
    model = WithBuffer()
    net = dni_fx.transform(model, X, cuts=2, frontend=frontend)
    model.tau.fill_(0.5)
    torch.testing.assert_close(net(X), model(X))
    model.tau = torch.tensor(0.25)
    torch.testing.assert_close(net(X), model(X))
    net.tau = torch.tensor(0.125)
    assert model.tau == 0.125
    torch.testing.assert_close(net(X), model(X))


def test_no_buffer_is_advised_where_there_can_be_none() -> None:
    for change, advised in (("tau", True), ("use_scale", False)):
        net = transformed("export")
        setattr(net, change, 0)
        with pytest.raises(DniFxError) as error:
            net(X)
        assert (f"make {change} a buffer" in str(error.value)) is advised
    net = transformed("export")
    net.blocks[0].drop.p = 0.2
    with pytest.raises(DniFxError) as error:
        net(X)
    assert "buffer" not in str(error.value)


def test_a_replaced_child() -> None:
    net = transformed("fx")
    net.dni_original.head = nn.Linear(12, 4)
    with pytest.raises(DniFxError, match="head of the model was replaced after the rewrite"):
        net(X)


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_methods_and_attributes_of_the_model(frontend: str) -> None:
    net = transformed(frontend)
    model = net.dni_original
    torch.optim.SGD(net.parameters(), 0.5).zero_grad()
    net(X).sum().backward()
    assert net.width == 12 and net.config is model.config and hasattr(net, "use_scale") and not hasattr(net, "none")
    torch.testing.assert_close(net.eval().encode(X), model.eval().encode(X))
    net.epoch = 3
    assert model.epoch == net.epoch == 3 and "epoch" not in vars(net)
    del net.epoch
    assert not hasattr(model, "epoch") and not hasattr(net, "epoch")
    net._own = 3
    assert net._own == 3 and not hasattr(model, "_own")
    with pytest.raises(AttributeError, match=r"'Net' object has no attribute 'none'$"):
        _ = net.none
    net.double()
    assert net.encode(X.double()).dtype is torch.float64
    assert "dni" in dir(net)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_has_a_model_of_its_own(copied: Callable[[Any], Any]) -> None:
    net = transformed("fx")
    net(X)
    other = copied(net)
    other.tau = 2.0
    assert net.tau == 1.0 and other.dni_original.tau == 2.0
    net(X)
    with pytest.raises(DniFxError, match=r"tau was 1.0"):
        other(X)


def test_a_tensor_that_the_model_keeps() -> None:
    """An activation that the loop keeps on the model is not kept by the net."""
    net = transformed("fx")
    net.last = net(X)
    net(X)
    assert all(value is not net.last for value in net.dni_linked.values())
    del net.last
    copy.deepcopy(net)


def test_a_half_built_net() -> None:
    for base in {type(transformed(frontend)).__mro__[1] for frontend in ("fx", "export", "modules")}:
        net: Any = base.__new__(base)
        for name in ("none", "dni", "dni_none", "__len__"):
            with pytest.raises(AttributeError):
                getattr(net, name)


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_a_saved_net(frontend: str, tmp_path: Path) -> None:
    """With a model, its values count; without one, the values that are set on the net."""
    net = transformed(frontend)
    dni_fx.save(net, tmp_path / "saved")
    model = Net()
    loaded = dni_fx.load(tmp_path / "saved", model=model)
    loaded(X)
    model.head.eval()
    loaded(X)
    model.tau = 0.5
    with pytest.raises(DniFxError, match=r"tau was 1.0 .* is 0.5"):
        loaded(X)
    if frontend == "fx":
        alone: Any = dni_fx.load(tmp_path / "saved")
        alone(X)
        alone.epoch = 3
        alone(X)
        with pytest.raises(AttributeError, match=r"no attribute 'encode': dni_fx.load\(folder, model=model\)"):
            alone.encode(X)
        alone.blocks[1].drop_path = 0.5
        with pytest.raises(DniFxError, match=r"drop_path was 0.0"):
            alone(X)


def test_a_folder_without_the_values_that_were_read(tmp_path: Path) -> None:
    """As an older version wrote it."""
    net = transformed("export")
    dni_fx.save(net, tmp_path / "saved")
    file = tmp_path / "saved" / "model.py"
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(line for line in lines if not line.strip().startswith(("dni_reads", "dni_watched", "dni_forms")))
    )
    plan = tmp_path / "saved" / "plan.json"
    plan.write_text(json.dumps({key: value for key, value in json.loads(plan.read_text()).items() if key != "digests"}))
    loaded = dni_fx.load(tmp_path / "saved", model=Net())
    loaded(X)
    loaded.tau = 0.5
    loaded(X)
    loaded.head.eval()  # any mode may have been fixed
    with pytest.raises(DniFxError, match="head is in eval mode"):
        loaded(X)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at tensors
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_a_compiled_net(unlock: str, outside: bool) -> None:
    """Compiled by `transform`, or by `torch.compile(net)`."""
    net: Any = dni_fx.transform(WithTau(), X, cuts=2, unlock=unlock, compile=not outside and {"backend": "eager"})
    run: Any = torch.compile(net, backend="eager", fullgraph=unlock == "none") if outside else net
    run(X)
    net.tau = 0.5
    with pytest.raises(Exception, match=r"tau was 1.0|Observed exception"):
        run(X)
    net.tau = 1.0
    torch.testing.assert_close(run(X), net.dni_original(X))
