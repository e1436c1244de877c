"""Loops, optimizers and adapters of other libraries train a rewritten net, and need nothing of ours."""

import copy
from collections import OrderedDict
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from ignite.engine import create_supervised_trainer
from lightning import Fabric
from schedulefree import AdamWScheduleFree
from skorch import NeuralNetClassifier
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import dni_fx

pytestmark = pytest.mark.filterwarnings("ignore")  # their advice

X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
OPTIONS: list[dict[str, Any]] = [{}, {"unlock": "none"}, {"synthesizer": "exit", "loss": "cross_entropy"}]


def made(options: dict[str, Any]) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)]
    net = dni_fx.transform(nn.Sequential(*layers), X[:4], cuts=["1"], **options).train()
    return net, net.dni.optimizer or adam(net.parameters())


def train(net: Any, optimizer: Any, backward: Any, *, context: bool, bf16: bool = False) -> None:
    for x, y in zip(X.chunk(4), Y.chunk(4), strict=True):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = net(x, **({"dni_context": y} if context else {}))
        backward(nn.functional.cross_entropy(outputs.float(), y))
        optimizer.step()


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def check_same(net: Any, options: dict[str, Any], bf16: bool) -> None:
    other, optimizer = made(options)
    train(other, optimizer, torch.Tensor.backward, context=other.dni_takes_context(), bf16=bf16)
    found = net.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str, options: dict[str, Any]) -> None:
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    net, optimizer = made(options)
    wrapped, stepping = accelerator.prepare(net, optimizer)
    train(wrapped, stepping, accelerator.backward, context=net.dni_takes_context())
    AcceleratorState._reset_state(True)
    check_same(accelerator.unwrap_model(wrapped), options, precision == "bf16")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: Any, options: dict[str, Any]) -> None:
    fabric = Fabric(accelerator="cpu", precision=precision)
    net, optimizer = made(options)
    wrapped, stepping = fabric.setup(net, optimizer)
    train(wrapped, stepping, fabric.backward, context=net.dni_takes_context())
    check_same(net, options, precision != "32-true")


STEPPING: dict[str, Any] = {"step": "segment", "optimizer": adam}


@pytest.mark.parametrize("options", [{}, {"unlock": "none"}, STEPPING])
def test_ignite(options: dict[str, Any]) -> None:
    net, optimizer = made(options)
    create_supervised_trainer(net, optimizer, nn.CrossEntropyLoss()).run([*zip(X.chunk(4), Y.chunk(4), strict=True)])
    check_same(net, options, False)


class Stepping(NeuralNetClassifier):
    """Trains by the optimizer of step="segment"."""

    def initialize_optimizer(self, *_args: Any, **_kwargs: Any) -> "Stepping":
        self.optimizer_ = self.module_.dni.optimizer
        return self


@pytest.mark.parametrize("options", [{}, {"unlock": "none"}, STEPPING])
def test_skorch(options: dict[str, Any]) -> None:
    net, _ = made(options)
    given = {"optimizer": torch.optim.Adam, "lr": 1e-2, "batch_size": 8, "max_epochs": 1, "train_split": None}
    kind = Stepping if options is STEPPING else NeuralNetClassifier
    trained = kind(net, criterion=nn.CrossEntropyLoss, verbose=0, **given).fit(X.numpy(), Y.numpy())
    assert trained.predict(X.numpy()).shape == (32,)
    check_same(trained.module_, options, False)


@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_schedule_free_optimizers(unlock: str) -> None:
    def schedule_free(parameters: Any) -> torch.optim.Optimizer:
        return AdamWScheduleFree(parameters, lr=1e-2)

    found = []
    for options in ({}, {"step": "segment", "optimizer": schedule_free}):
        net, optimizer = made({"unlock": unlock} | options)
        if not options:
            optimizer = schedule_free(net.parameters())
        for mode in ("train", "eval", "train"):
            getattr(optimizer, mode)()
            if mode == "train":
                train(net, optimizer, torch.Tensor.backward, context=False)
            found.append({name: p.detach().clone() for name, p in net.named_parameters()})
    for one, other in zip(found[:3], found[3:], strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(found[0]["0.weight"], found[1]["0.weight"])


@pytest.mark.parametrize("order", ["set", "get, set", "set, get", "get, write, set", "train, set"])
def test_torch_distributed_checkpoint(order: str) -> None:
    """States by name, of `step="segment"` as of one optimizer: loaded, the training goes on bit for bit."""
    net, optimizer = made(STEPPING)
    train(net, optimizer, torch.Tensor.backward, context=False)
    model_state, states = copy.deepcopy(get_state_dict(net, optimizer))
    other, its = made(STEPPING)
    for step in order.split(", "):
        if step == "train":
            train(other, its, torch.Tensor.backward, context=False)
        elif step == "get":
            own = get_state_dict(other, its)[1]
            assert own["state"].keys() == states["state"].keys()
        elif step == "write":  # into the tensors that are there, as torch.distributed.checkpoint.load does
            for name, values in states["state"].items():
                for key, value in values.items():
                    own["state"][name][key].copy_(value)
            states = own | {"param_groups": states["param_groups"]}
        else:
            set_state_dict(other, its, model_state_dict=model_state, optim_state_dict=states)
    for one, its_optimizer in ((net, optimizer), (other, its)):
        train(one, its_optimizer, torch.Tensor.backward, context=False)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def adapted(net: nn.Module) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["first", "second", "third"])).train()


def layers() -> nn.Module:
    torch.manual_seed(0)
    pairs = [p for name in ("first", "second") for p in ((name, nn.Linear(8, 8)), (f"after_{name}", nn.Tanh()))]
    return nn.Sequential(OrderedDict([*pairs, ("third", nn.Linear(8, 3))]))


@pytest.mark.parametrize("frontend", ["fx", "export", "modules"])
def test_a_model_with_adapters(frontend: str) -> None:
    """Adapters before the rewrite: they train, all else is frozen, and no cut falls inside an adapter."""
    model = adapted(layers())
    net = dni_fx.transform(model, X[:8], cuts=2, frontend=frontend, synthesizer="linear").train()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = adam([p for p in net.parameters() if p.requires_grad])
    for _ in range(2):  # the first prediction is zero
        train(net, optimizer, torch.Tensor.backward, context=False)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora" in name or name.startswith("dni.")}
    inside = "linear_3" if frontend == "export" else "base_model.model.second.base_layer"
    refused = {"fx": "no module or node", "export": "it lies in the adapter", "modules": "bypasses it"}
    with pytest.raises(dni_fx.DniFxError, match=refused[frontend]):
        dni_fx.transform(model, X[:8], cuts=[inside], frontend=frontend, synthesizer="linear")


@pytest.mark.parametrize("frontend", ["fx", "modules"])
def test_adapters_after_the_rewrite(frontend: str) -> None:
    options: dict[str, Any] = {"frontend": frontend, "synthesizer": "linear"}
    net = dni_fx.transform(layers(), X[:8], cuts=["after_first"], **options).train()
    model = adapted(net)
    with pytest.warns(
        UserWarning, match=r"frozen the synthesizer cut0_after_first, .* net\.dni\.requires_grad_\(True\)"
    ):
        model(X)
    net.dni.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(2):
        train(model, adam([p for p in net.parameters() if p.requires_grad]), torch.Tensor.backward, context=False)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora" in name or name.startswith("dni.")}
