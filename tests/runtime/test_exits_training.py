"""Nets with exits in people's loops: accumulation, scaler, autocast, segments that step, compiled, copied and saved."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exit_nets import NETS, error, gradients, plain_mlp
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.errors import DniFxError

MLP = NETS["mlp"]
FLOAT = replace(MLP, make=plain_mlp, inputs=tuple(t.float() for t in MLP.inputs))


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("weights", ["shared", "copy"])
def test_accumulation_gives_the_gradients_of_the_full_batch(unlock: str, weights: str) -> None:
    synthesizer = f"exit(weights={weights!r})"
    (x,), y = MLP.inputs, MLP.target
    full = MLP.net(synthesizer, unlock=unlock)
    net = MLP.net(synthesizer, unlock=unlock)
    net.dni.scale_with(accumulate=4)
    MLP.step(full)
    for i in range(4):
        (F.cross_entropy(net(x[i : i + 1], dni_context=y[i : i + 1]), y[i : i + 1]) / 4).backward()
    assert error(gradients(net), gradients(full)) < 1e-12
    assert error(own_gradients(net), own_gradients(full)) < 1e-12
    assert len(own_gradients(net)) == (8 if weights == "copy" else 0)


def test_accumulation_is_noticed_where_units_run_once() -> None:
    """The layers between two cuts are units of the lower exit."""
    net = MLP.net("exit")
    assert all(cut.exit.unit is not None for cut in net.dni.plan.cuts)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(DniFxError, match="the gradients of an earlier batch were still there"):
        for _ in range(3):
            for _ in range(4):
                (MLP.value(net(*MLP.inputs, **MLP.context)) / 4).backward()
            optimizer.step()
            optimizer.zero_grad()


def own_gradients(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None and n.startswith("dni.")}


def test_a_scaled_loss_scales_all_gradients() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain, net = MLP.net("exit"), MLP.net("exit")
    net.dni.scale_with(scaler)
    MLP.step(plain)
    scaler.scale(MLP.value(net(*MLP.inputs, **MLP.context))).backward()
    assert error({n: g / 1024 for n, g in gradients(net).items()}, gradients(plain)) < 1e-12


@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_autocast_to_bfloat16(unlock: str) -> None:
    net, plain = FLOAT.net("exit", unlock=unlock), FLOAT.net("exit", unlock=unlock)
    FLOAT.step(plain)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(*FLOAT.inputs, **FLOAT.context)
        value = FLOAT.value(outputs)
    value.backward()
    assert outputs.dtype == torch.bfloat16
    assert 0 < error(gradients(net), gradients(plain)) < 0.02


def trained(net: Any, optimizer: torch.optim.Optimizer, steps: int = 4) -> dict[str, Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        MLP.value(net(*MLP.inputs, **MLP.context)).backward()
        optimizer.step()
    return dict(net.named_parameters())


@pytest.mark.parametrize("weights", ["readonly", "copy"])
def test_segments_that_step_are_trained_as_the_loop_trains_them(weights: str) -> None:
    synthesizer = f"exit(weights={weights!r})"
    loop = MLP.net(synthesizer)
    expected = trained(loop, torch.optim.SGD(loop.parameters(), 0.1), 1)
    net = MLP.transform(synthesizer=synthesizer, step="segment", optimizer=lambda p: torch.optim.SGD(p, 0.1))
    assert error(trained(net, net.dni.optimizer, 1), expected) < 1e-12


def test_segments_that_step_train_shared_weights() -> None:
    net = MLP.transform(step="segment", optimizer=lambda p: torch.optim.SGD(p, 0.1))
    before = MLP.value(net(*MLP.inputs, **MLP.context))
    before.backward()
    trained(net, net.dni.optimizer, 20)
    assert MLP.value(net.eval()(*MLP.inputs)) < before.detach() - 0.05


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at tensors
@pytest.mark.parametrize("unlock", ["backward", "none"])
def test_compiled(unlock: str) -> None:
    plain, net = MLP.net("exit", unlock=unlock), MLP.net("exit", unlock=unlock)
    net.compile(backend="eager")
    assert error(MLP.step(net), MLP.step(plain)) < 1e-12


@pytest.mark.parametrize("weights", ["shared", "copy", "ema"])
def test_copies_of_a_net(weights: str) -> None:
    made = replace(MLP, loss=F.cross_entropy)
    net = made.net(f"exit(weights={weights!r})")
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert len(list(copied.parameters())) == len(list(net.parameters()))
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(0.5)
        expected = copy.deepcopy(made.net(f"exit(weights={weights!r})"))
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter.mul_(0.5)
        assert error(made.step(copied), made.step(expected)) < 1e-12  # its own weights, not those of `net`
        assert not gradients(net)


def test_a_net_of_an_exported_graph_is_copied() -> None:
    made = NETS["two outputs"]
    net = made.net("exit", ("tanh", "tanh_1"), frontend="export")
    expected = made.step(net)
    assert error(made.step(copy.deepcopy(net)), expected) < 1e-12


@pytest.mark.parametrize("weights", ["shared", "copy", "fresh", "ema"])
def test_saved_and_loaded_without_the_model(weights: str, tmp_path: Path) -> None:
    net = MLP.net(f"exit(weights={weights!r})")
    trained(net, torch.optim.SGD(net.parameters(), 0.5), 2)
    net.zero_grad()
    dni_fx.save(net, tmp_path / "net")
    loaded = dni_fx.load(tmp_path / "net").train()
    assert loaded.dni.plan.cuts == net.dni.plan.cuts
    assert set(loaded.state_dict()) == set(net.state_dict())
    assert error(MLP.step(loaded), MLP.step(net)) < 1e-12
    assert error(own_gradients(loaded), own_gradients(net)) < 1e-12


def test_an_exported_net_is_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    made = NETS["own loss"]
    net = made.net("exit", ("tanh", "tanh_1"), frontend="export")
    dni_fx.save(net, tmp_path / "net")
    loaded = dni_fx.load(tmp_path / "net", made.model()).train()
    assert error(made.step(loaded), made.step(net)) < 1e-12


def test_heads_are_saved_and_loaded(tmp_path: Path) -> None:
    made = NETS["unet"]
    net = made.net("exit")
    assert net.dni.plan.cuts[0].exit.heads
    expected = made.step(net)
    dni_fx.save(net, tmp_path / "net")
    loaded = dni_fx.load(tmp_path / "net", made.model()).train()
    assert error(made.step(loaded), expected) < 1e-12


def test_checkpoints(tmp_path: Path) -> None:
    """Training goes on from a checkpoint as it would have without it."""
    nets = [MLP.net("exit(weights='ema')") for _ in range(2)]
    optimizers = [torch.optim.Adam(net.parameters(), 0.1) for net in nets]
    trained(nets[0], optimizers[0], 2)
    dni_fx.save_checkpoint(tmp_path / "file.pt", nets[0], optimizer=optimizers[0])
    dni_fx.load_checkpoint(tmp_path / "file.pt", nets[1], optimizer=optimizers[1])
    expected = trained(nets[0], optimizers[0], 2)
    assert error(trained(nets[1], optimizers[1], 2), expected) < 1e-12


def test_restore_gives_the_model_with_the_trained_weights() -> None:
    net = MLP.net("exit")
    trained(net, torch.optim.SGD(net.parameters(), 0.5), 2)
    model = dni_fx.restore(net)
    assert set(model.state_dict()) == set(MLP.model().state_dict())
    assert torch.equal(model(*MLP.inputs), net.eval()(*MLP.inputs))


@pytest.mark.parametrize("name", ["mlp", "own loss", "unet", "autoencoder"])
def test_a_plan_in_a_file_is_applied_again(name: str) -> None:
    made = NETS[name]
    net = made.net("exit(weights='readonly')" if name == "mlp" else "exit")
    plan = dni_fx.Plan.from_json(net.dni.plan.to_json())
    assert plan == net.dni.plan
    again = made.transform(cuts=plan, synthesizer="auto")
    assert [cut.exit for cut in again.dni.plan.cuts] == [cut.exit for cut in plan.cuts]
    if not plan.cuts[0].exit.heads:
        assert error(made.step(again), made.step(net)) < 1e-12
