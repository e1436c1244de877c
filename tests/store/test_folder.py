"""A saved folder gives the same network in a new process; nothing in it is a pickle; damage gives one clear line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import LongSkip, Recurrent, ResNet, Tied
from oracle import loss_of
from safetensors.torch import load_file, save_file
from torch import nn

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.model.loading import load_target

CUSTOM = """
import torch
from torch import nn

class Gate(nn.Module):  # reads self.training: a leaf of the trace
    def __init__(self, p):
        super().__init__()
        self.p = p
        self.act = torch.nn.functional.relu
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return self.act(x * self.weight) * (self.p if self.training else 1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.gate = Gate(0.5)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.b = nn.Linear(8, 4)
        self.b.bias.requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
        self.shift = torch.ones(4) * 3

    def forward(self, x):
        return self.b(self.attend(self.gate(self.a(x))[:, None])[:, 0]) * self.scale + self.shift
"""

MODELS: dict[str, tuple[type[nn.Module], tuple[torch.Tensor, ...], Any]] = {
    "resnet": (ResNet, (torch.rand(5, 6),), "every:Residual"),
    "long-skip": (LongSkip, (torch.rand(5, 6),), ["tanh", "tanh_1"]),
    "tied": (Tied, (torch.randint(0, 10, (5, 7)), torch.rand(5, 7)), ["tanh"]),
    "recurrent": (Recurrent, (torch.rand(5, 4, 5),), ["lstm"]),
}


def _trained(model: nn.Module, inputs: tuple[torch.Tensor, ...], cuts: Any, **options: Any) -> Any:
    net = dni_fx.transform(model, inputs, cuts=cuts, **options)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(net(*inputs)).backward()
        optimizer.step()
    return net.eval()


def _equal(got: Any, expected: Any) -> None:
    torch.utils._pytree.tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), got, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("unlock", ["none", "backward"])
def test_load_gives_the_same_network(name: str, unlock: str, tmp_path: Path) -> None:
    make, inputs, cuts = MODELS[name]
    net = _trained(make(), inputs, cuts, unlock=unlock)
    dni_fx.save(net, tmp_path / "out")
    for loaded in (dni_fx.load(tmp_path / "out"), dni_fx.load(tmp_path / "out", make())):
        assert [n.name for n in loaded.graph.nodes] == [n.name for n in net.graph.nodes]
        assert list(loaded.state_dict()) == list(net.state_dict())
        assert loaded.dni.plan == net.dni.plan
        loss, expected = (_gradients(n, inputs) for n in (loaded, net))
        assert loss.keys() == expected.keys()
        _equal(loss, expected)
        _equal(loaded.eval()(*inputs), net.eval()(*inputs))
        _equal(dni_fx.restore(loaded).eval()(*inputs), net.eval()(*inputs))


def _gradients(net: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    buffers = {k: b.clone() for k, b in net.named_buffers()}
    net.train().zero_grad()
    loss_of(net(*inputs)).backward()
    for k, b in net.named_buffers():
        b.data.copy_(buffers[k])
    return {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}


def test_ties_survive(tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["tied"]
    model = make()
    model.mix2 = model.mix  # type: ignore[assignment]  # one module under two names
    model.last.weight = model.mix.weight  # type: ignore[union-attr]
    dni_fx.save(_trained(model, inputs, cuts), tmp_path / "out")
    loaded = dni_fx.load(tmp_path / "out")
    assert loaded.mix is loaded.mix2 and loaded.last.weight is loaded.mix.weight  # type: ignore[union-attr]


def test_a_new_process_rebuilds_custom_modules(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CUSTOM)
    model, _ = load_target(f"{tmp_path / 'net.py'}:Net")
    x = torch.rand(5, 6)
    net = _trained(model, (x,), 2, synthesizer="mlp")
    dni_fx.save(net, tmp_path / "out")
    (tmp_path / "net.py").unlink()
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import torch, dni_fx; torch.set_num_threads(1); net = dni_fx.load('out').eval(); x = torch.load('x.pt');"
        "torch.save((net(x), dni_fx.restore(net)(x), net.b.bias.requires_grad, list(net.state_dict())), 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    y, restored, bias_trains, keys = torch.load(tmp_path / "y.pt")
    _equal(y, net(x))
    _equal(restored, net(x))
    assert not bias_trains
    assert keys == list(net.state_dict())


def test_nothing_in_the_folder_is_a_pickle(tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["resnet"]
    dni_fx.save(_trained(make(), inputs, cuts), tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["graph.diff", "model.py", "plan.json", "weights.safetensors"]
    compile((tmp_path / "out/model.py").read_text(), "model.py", "exec")
    json.loads((tmp_path / "out/plan.json").read_text())
    assert not [p for p in tmp_path.iterdir() if p.name != "out"]  # nothing left aside


def test_restore_gives_the_model_itself(tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["resnet"]
    model = make()
    net = _trained(model, inputs, cuts)
    assert dni_fx.restore(net) is model
    assert isinstance(model, ResNet)
    _equal(model.eval()(*inputs), net(*inputs))


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["resnet"]
    net = _trained(make(), inputs, cuts)
    dni_fx.save(net, tmp_path / "out")
    with pytest.raises(dni_fx.DniFxError, match="--force"):
        dni_fx.save(net, tmp_path / "out")
    dni_fx.save(net, tmp_path / "out", force=True)
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(dni_fx.DniFxError, match=r"thesis\.tex"):
        dni_fx.save(net, tmp_path / "out", force=True)
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, inputs, cuts = MODELS["resnet"]
    net = _trained(make(), inputs, cuts)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dni_fx.store.folder.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dni_fx.save(net, tmp_path / "out")
    assert not list(tmp_path.iterdir())


DAMAGE = [
    ("model.py", lambda b: b[: len(b) // 2] + b"\n)("),
    ("model.py", lambda b: b""),
    ("model.py", lambda b: b.replace(b"class ResNet", b"class Other")),
    ("model.py", lambda b: b.replace(b"self.head", b"self.tail")),
    ("plan.json", lambda b: b[:100]),
    ("plan.json", lambda b: b"[]"),
    ("plan.json", lambda b: b.replace(b'"after"', b'"behind"')),
    ("plan.json", lambda b: b.replace(b'"linear"', b'"lineal"')),
    ("plan.json", lambda b: b.replace(b'"schema": 1', b'"schema": 99')),
    ("plan.json", lambda b: b"\xff\xfe"),
    ("weights.safetensors", lambda b: b[:50]),
    ("weights.safetensors", lambda b: b[:-8]),
    ("weights.safetensors", lambda b: b""),
    ("weights.safetensors", lambda b: b.replace(b"head.weight", b"tail.weight")),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_damage_gives_one_clear_line(number: int, tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["resnet"]
    dni_fx.save(dni_fx.transform(make(), inputs, cuts=cuts), tmp_path / "out")
    name, damage = DAMAGE[number]
    path = tmp_path / "out" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(dni_fx.DniFxError) as caught:
        dni_fx.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.py", "plan.json", "weights.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["resnet"]
    dni_fx.save(dni_fx.transform(make(), inputs, cuts=cuts), tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(dni_fx.DniFxError, match=name):
        dni_fx.load(tmp_path / "out")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(dni_fx.DniFxError, match=rf"^no such folder: {tmp_path / 'none'}$"):
        dni_fx.load(tmp_path / "none")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    make, inputs, cuts = MODELS["resnet"]
    dni_fx.save(dni_fx.transform(make(), inputs, cuts=cuts), tmp_path / "out")
    with pytest.raises(dni_fx.DniFxError):
        dni_fx.load(tmp_path / "out", LongSkip())


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("0.weight", torch.int32),
        ("0.bias", torch.bool),
        ("1.running_mean", torch.int64),
        ("1.num_batches_tracked", torch.float32),
        ("dni.cut0__2.synthesizer.net.0.weight", torch.uint8),
    ],
)
def test_weights_of_another_kind_of_dtype_are_refused(
    name: str, dtype: torch.dtype, with_model: bool, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
    dni_fx.save(dni_fx.transform(model, torch.rand(5, 6), cuts=["2"]), tmp_path / "out")
    plan, weights = tmp_path / "out" / "plan.json", tmp_path / "out" / "weights.safetensors"
    plan.write_text(json.dumps({k: v for k, v in json.loads(plan.read_text()).items() if k != "digests"}))
    stored = load_file(weights)
    save_file(stored | {name: stored[name].to(dtype)}, weights)
    nn.init.zeros_(model[0].weight)
    with pytest.raises(dni_fx.DniFxError, match=rf"weights.safetensors: {name} has dtype {dtype}, the model needs "):
        dni_fx.load(tmp_path / "out", model if with_model else None)
    assert not model[0].weight.any()


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(5, 4, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(torch.fft.rfft(torch.tanh(self.a(x)))).abs()
        return y


def test_other_dtypes_of_the_same_kind_are_read(tmp_path: Path) -> None:
    net = dni_fx.transform(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), torch.rand(5, 6), cuts=["1"])
    dni_fx.save(net.bfloat16(), tmp_path / "out")
    assert dni_fx.load(tmp_path / "out").get_parameter("0.weight").dtype is torch.bfloat16
    dni_fx.save(dni_fx.transform(Spectrum(), torch.rand(5, 6), cuts=["tanh"]), tmp_path / "complex")
    assert dni_fx.load(tmp_path / "complex").get_parameter("b.weight").dtype is torch.complex64


@pytest.mark.parametrize("kind", ["parametrization", "hook"])
def test_code_that_cannot_be_written_is_refused_and_loads_into_a_model(kind: str, tmp_path: Path) -> None:
    """A class made on the fly, and a layer that works through a hook: silent loss would be a wrong network."""

    def make() -> nn.Module:
        layer: nn.Module = nn.Linear(6, 8)
        if kind == "hook":
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
        else:
            layer = torch.nn.utils.parametrizations.weight_norm(layer)
        return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4))

    x = torch.rand(5, 6)
    net = dni_fx.transform(make(), x, cuts=["1"]).eval()
    dni_fx.save(net, tmp_path / "out")
    with pytest.raises(dni_fx.DniFxError, match="model=model"):
        dni_fx.load(tmp_path / "out")
    _equal(dni_fx.load(tmp_path / "out", make()).eval()(x), net(x))


@pytest.mark.parametrize("removed", ["critic(fit='value')", "local_head"])
def test_a_removed_synthesizer_is_named(removed: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cuts": 2, "classes": 4, "loss": "cross_entropy", "synthesizer": "guided_head"}
    net = dni_fx.transform(LongSkip(), torch.rand(5, 6), **options)
    dni_fx.save(net, tmp_path / "net")
    plan = json.loads((tmp_path / "net/plan.json").read_text())
    del plan["digests"]
    (tmp_path / "net/plan.json").write_text(json.dumps(plan).replace("guided_head", removed))
    with pytest.raises(DniFxError, match=f"^the synthesizer {removed[:6]}.* was removed .*exit.*guided_head"):
        dni_fx.load(tmp_path / "net")


def test_a_folder_of_version_0_1_0_is_read() -> None:
    """Its model.py names modules that have moved since."""
    net = dni_fx.load(Path(__file__).parent / "saved_0_1_0" / "mlp")
    net(torch.rand(5, 3)).sum().backward()
    assert all(parameter.grad is not None for name, parameter in net.named_parameters() if not name.startswith("dni."))
