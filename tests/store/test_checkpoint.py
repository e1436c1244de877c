"""A run that was stopped goes on as if it had not been."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dni_fx
from dni_fx import DniFxError, Training

X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Noted(nn.Tanh):
    """Works with a buffer that no state_dict holds."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(input.detach().mean(0), 0.1)
        return super().forward(input - self.mean)


def perceptron() -> nn.Module:
    hidden = [m for _ in range(4) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), Noted())]
    return nn.Sequential(*hidden, nn.Linear(8, 3))


class Run:
    """A net, its optimizer and scheduler."""

    def __init__(self, seed: int, **options: Any) -> None:
        torch.manual_seed(seed)
        stepping = options.get("step") == "segment"
        model = perceptron()
        adam = None if stepping else torch.optim.Adam(model.parameters(), 1e-2)
        chosen: dict[str, Any] = {"cuts": 3, "optimizer": torch.optim.Adam if stepping else adam} | options
        self.net = dni_fx.transform(model, X, verify=False, **chosen).train()
        self.optimizer = self.net.dni.optimizer if stepping else adam
        assert self.optimizer is not None
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [4, 6])
        self.own = {"scheduler": self.scheduler} if stepping else {"scheduler": self.scheduler, "optimizer": adam}

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(X + random.random() + np.random.rand()), Y).backward()
            self.optimizer.step()
            self.scheduler.step()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"training": Training(every=3, warmup=4, scale="rms")},
    {"training": Training(optimizer=torch.optim.RMSprop)},
    {"synthesizer": "lstm", "unlock": "none", "mix": (0.5, 0.0, 6)},
    {"synthesizer": "gru(layers=2)", "step": "segment", "accumulate": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_run_goes_on_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    run = Run(0, **options)
    run.train(5)
    dni_fx.save_checkpoint(tmp_path / "deep" / "run.pt", run.net, epoch=5, **run.own)
    run.train(5)
    again = Run(1, **options)
    again.train(2)
    random.seed(1)
    np.random.seed(1)
    assert dni_fx.load_checkpoint(tmp_path / "deep" / "run.pt", again.net, **again.own) == {"epoch": 5}
    again.train(5)
    wanted, found = run.net.state_dict(), again.net.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert str(run.net.dni.metrics()) == str(again.net.dni.metrics())  # NaN is unlike itself
    assert run.net.dni.metrics()["cut0_" + run.net.dni.plan.cuts[0].after]["steps"] == 10


def test_a_run_that_is_cut_in_time(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 8)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            state = torch.tanh(self.inner(torch.cat([x, state], 1)))
            return state, state

    zeros = torch.zeros(16, 8)

    def train(net: nn.Module, state: torch.Tensor) -> torch.Tensor:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            y, state = net(X, state)
            y.square().mean().backward()
            optimizer.step()
        return state

    nets = [dni_fx.transform(Recurrent(), (X, zeros), state=True).train() for _ in range(2)]
    state = train(nets[0], zeros)
    nets[0].dni.reset(torch.arange(16) < 4)
    dni_fx.save_checkpoint(tmp_path / "run.pt", nets[0], state=state)
    train(nets[0], state)
    train(nets[1], dni_fx.load_checkpoint(tmp_path / "run.pt", nets[1])["state"])
    assert all(torch.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True))


def test_a_file_of_an_older_version_that_holds_no_steps(tmp_path: Path) -> None:
    """Then `progress` has the steps."""
    run, path = Run(0, training=Training(every=3)), tmp_path / "run.pt"
    run.train(4)
    dni_fx.save_checkpoint(path, run.net, **run.own)
    content = torch.load(path, weights_only=True)
    steps = [name for name in content["net"] if name.endswith(".steps")]
    assert steps
    for name in steps:
        del content["net"][name]
    torch.save(content, path)
    again = Run(1, training=Training(every=3))
    dni_fx.load_checkpoint(path, again.net, **again.own)
    run.train(3)
    assert {crossing.steps for crossing in again.net.dni.crossings.values()} == {4}
    again.train(3)
    assert {crossing.steps for crossing in again.net.dni.crossings.values()} == {7}


def test_states_that_nobody_took_are_given_back(tmp_path: Path) -> None:
    run = Run(0)
    run.train(1)
    dni_fx.save_checkpoint(tmp_path / "run.pt", run.net, **run.own)
    dni_fx.save_checkpoint(tmp_path / "run.pt", run.net, **run.own)  # takes the place of the first
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    rest = dni_fx.load_checkpoint(tmp_path / "run.pt", run.net, optimizer=run.optimizer)
    assert rest == {"scheduler": run.scheduler.state_dict()}


def test_wrong_checkpoints_are_refused_and_change_nothing(tmp_path: Path) -> None:
    run = Run(0)
    path = tmp_path / "run.pt"
    dni_fx.save_checkpoint(path, run.net, optimizer=run.optimizer)
    other = Run(1)
    before = [p.clone() for p in other.net.parameters()]
    with pytest.raises(DniFxError, match=r"no state to load into scheduler=; beside the net it holds optimizer"):
        dni_fx.load_checkpoint(path, other.net, **other.own)
    assert all(torch.equal(p, q) for p, q in zip(before, other.net.parameters(), strict=True))
    with pytest.raises(DniFxError, match=r"of another net: cuts was \w+, \w+, and is"):
        dni_fx.load_checkpoint(path, Run(0, cuts=2).net)
    with pytest.raises(DniFxError, match="of another net: synthesizers was"):
        dni_fx.load_checkpoint(path, Run(0, synthesizer="mlp").net)
    with pytest.raises(DniFxError, match="of another net: unlock was backward, and is none"):
        dni_fx.load_checkpoint(path, Run(0, unlock="none").net)
    with pytest.raises(DniFxError, match="of another net: optimizer was NoneType, and is SegmentOptimizer"):
        dni_fx.load_checkpoint(path, Run(0, step="segment").net)
    with pytest.raises(DniFxError, match=r"of another net: 0\.bias was .*float32.*float64"):
        dni_fx.load_checkpoint(path, Run(0).net.double())
    with pytest.raises(DniFxError, match="optimizer does not take the state that was saved: loaded state dict has"):
        dni_fx.load_checkpoint(path, other.net, optimizer=torch.optim.SGD(other.net.parameters()))
    with pytest.raises(DniFxError, match="cannot read"):
        dni_fx.load_checkpoint(tmp_path / "none.pt", run.net)
    whole = path.read_bytes()
    at = whole.index(run.net.get_parameter("0.weight").detach().numpy().tobytes())  # torch.load would not see it
    flipped = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    for content in (b"", b"damaged", whole[:1000], flipped):
        (tmp_path / "damaged.pt").write_bytes(content)
        with pytest.raises(DniFxError, match=r"damaged\.pt"):
            dni_fx.load_checkpoint(tmp_path / "damaged.pt", run.net)
    torch.save({"a": 1}, tmp_path / "strange.pt")
    with pytest.raises(DniFxError, match="is not what"):
        dni_fx.load_checkpoint(tmp_path / "strange.pt", run.net)
    with pytest.raises(DniFxError, match="expected what"):
        dni_fx.save_checkpoint(path, nn.Linear(2, 2))  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(DniFxError, match="cannot write"):
        dni_fx.save_checkpoint(tmp_path / "file" / "run.pt", run.net)


def test_values_that_could_not_be_read_again(tmp_path: Path) -> None:
    run = Run(0)
    for value in (tmp_path, lambda: 0, Run):
        with pytest.raises(DniFxError, match="odd= holds what is neither a plain value nor a tensor"):
            dni_fx.save_checkpoint(tmp_path / "run.pt", run.net, odd=value)
    odd = torch.optim.SGD(run.net.parameters(), lr=np.float64(0.1))
    with pytest.raises(DniFxError, match="optimizer= holds what is neither"):
        dni_fx.save_checkpoint(tmp_path / "run.pt", run.net, optimizer=odd)
    assert not list(tmp_path.iterdir())
    dni_fx.save_checkpoint(tmp_path / ".hidden", run.net, path="a", net=np.float64(0.5))
    assert dni_fx.load_checkpoint(tmp_path / ".hidden", run.net) == {"path": "a", "net": 0.5}


def test_not_while_gradients_add_up(tmp_path: Path) -> None:
    run = Run(0, step="segment", accumulate=2)
    run.train(1)
    with pytest.raises(DniFxError, match="save after every 2 passes"):
        dni_fx.save_checkpoint(tmp_path / "run.pt", run.net)
    assert not list(tmp_path.iterdir())
