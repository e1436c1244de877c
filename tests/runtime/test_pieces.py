"""Segments that compute their activations again train exactly as segments that keep them."""

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from exit_nets import NETS
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx import ops
from dni_fx.errors import BackwardOrderError, DniFxError
from dni_fx.runtime.module import DecoupledModule

pytestmark = pytest.mark.slow


class Remembers(nn.Module):
    """Subtracts a running mean, which it reads and then moves; the front end fx keeps it whole."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x - self.mean)) ** 2
        if self.training:
            self.mean = self.mean.lerp(x.detach().mean(0), 0.5)
        return y


class Random(nn.Module):
    """Residual blocks with dropout, batch norm, and a parameter that all blocks use."""

    def __init__(self, remembers: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, 6), nn.Tanh())
            for _ in range(6)
        )
        self.remembers = Remembers() if remembers else nn.Identity()
        self.drop, self.scale, self.head = nn.Dropout(0.1), nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.drop(block(x)) * self.scale
            x = self.remembers(x)
        return self.head(x)


X, Y = torch.rand(32, 6, dtype=torch.float64), torch.randint(3, (32,))


def make(inside: str = "checkpoint", model: nn.Module | None = None, **options: Any) -> DecoupledModule:
    torch.manual_seed(0)
    model = Random().double() if model is None else model
    options = {"cuts": 2, "loss": "cross_entropy", "verify": False} | options
    return dni_fx.transform(model, X, inside=inside, **options).train()


def loss_of(net: nn.Module) -> Tensor:
    context = {"dni_context": Y} if net.dni.plan.takes_context else {}  # type: ignore[union-attr]
    return F.cross_entropy(net(X, **context), Y)


def steps(net: DecoupledModule, count: int = 1, optimizer: Any = None) -> dict[str, Tensor]:
    """The gradients of the last step, and all parameters and buffers after it."""
    torch.manual_seed(1)
    optimizer = optimizer or torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(net).backward()
        found = {f"gradient of {n}": p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
    return found | {name: value.clone() for name, value in net.state_dict().items()}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name].nan_to_num(), value.nan_to_num()), name


def pieces_of(net: DecoupledModule) -> int:
    return sum(len(segment.recomputed) for segment in net.dni.plan.segments)


@pytest.mark.parametrize("unlock", ["backward", "none"])
@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_training_is_the_same_bit_for_bit(frontend: str, unlock: str) -> None:
    """Dropout draws the same numbers again, and running statistics move once."""
    kept, again = (make(inside, frontend=frontend, unlock=unlock) for inside in ("keep", "checkpoint"))
    assert pieces_of(kept) == 0 and pieces_of(again) > 3
    check_equal(steps(again, 3), steps(kept, 3))


@pytest.mark.parametrize("synthesizer", ["mlp", "exit(weights='copy')"])
def test_other_synthesizers(synthesizer: str) -> None:
    kept, again = (make(inside, synthesizer=synthesizer) for inside in ("keep", "checkpoint"))
    check_equal(steps(again, 3), steps(kept, 3))


@pytest.mark.parametrize("name", ["transformer", "resnet", "writes", "encoder-decoder", "unet", "own loss"])
def test_other_nets(name: str) -> None:
    """In-place writes, skips over pieces, several inputs."""
    case = NETS[name]
    nets = [case.transform(case.model(), unlock="none", inside=inside) for inside in ("keep", "checkpoint")]
    assert pieces_of(nets[1]) > 0
    kept, again = map(case.step, nets)
    check_equal(again, kept)
    buffers = [dict(net.named_buffers()) for net in nets]
    check_equal(buffers[1], buffers[0])


def test_a_module_that_reads_a_buffer_and_moves_it() -> None:
    model = Random(remembers=True).double()
    kept, again = (make(inside, copy.deepcopy(model)) for inside in ("keep", "checkpoint"))
    assert any(node.op == "call_module" and node.target == "remembers" for node in again.graph.nodes)
    check_equal(steps(again, 3), steps(kept, 3))
    assert again.get_submodule("remembers").mean.any()  # type: ignore[operator]


def test_an_optimizer_for_each_segment() -> None:
    kept, again = (
        make(inside, step="segment", optimizer=lambda p: torch.optim.SGD(p, 0.1)) for inside in ("keep", "checkpoint")
    )
    check_equal(steps(again, 3, again.dni.optimizer), steps(kept, 3, kept.dni.optimizer))


def test_accumulated_gradients() -> None:
    found = []
    for inside in ("keep", "checkpoint"):
        net = make(inside, accumulate=2)
        torch.manual_seed(1)
        for _ in range(2):
            (loss_of(net) / 2).backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    check_equal(found[1], found[0])


def test_autocast() -> None:
    found = []
    for inside in ("keep", "checkpoint"):
        net = make(inside).float()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(X.float(), dni_context=Y).float(), Y)
        loss.backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    check_equal(found[1], found[0])


def test_nothing_runs_twice_in_eval_mode_and_without_gradients() -> None:
    net = make()
    plain = dni_fx.restore(make())
    net.get_submodule("dni.pieces").programs = []  # type: ignore[assignment]  # any piece would raise an error
    with torch.no_grad():
        net(X, dni_context=Y)
    assert torch.equal(net.eval()(X), plain.eval().load_state_dict(net.state_dict(), strict=False) and plain(X))


def test_restore_gives_the_captured_graph(tmp_path: Path) -> None:
    texts = []
    for inside in ("keep", "checkpoint"):
        dni_fx.save(make(inside), tmp_path / inside)
        texts.append(str(dni_fx.restore(dni_fx.load(tmp_path / inside)).graph))
    assert texts[0] == texts[1] and "piece" not in texts[0]


@pytest.mark.parametrize("frontend", ["fx", "export"])
def test_saved_and_copied_nets_train_the_same(frontend: str, tmp_path: Path) -> None:
    net = make(frontend=frontend)
    dni_fx.save(net, tmp_path / "net")
    model = Random().double() if frontend == "export" else None
    others = [dni_fx.load(tmp_path / "net", model=model), copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    expected = steps(net)
    for other in others:
        assert other.dni.plan == net.dni.plan
        check_equal(steps(other.double().train()), expected)


def test_check_passes() -> None:
    report = dni_fx.check(make(), X)
    assert report, [c for c in report.checks if not c.passed]


def test_an_error_in_a_piece_leaves_autograd_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def gelu(x: Tensor, **_: Any) -> Tensor:
        if saving_hooks() is not None:
            raise ValueError("on purpose")
        return x

    saving_hooks = functools.partial(torch._C._autograd._top_saved_tensors_default_hooks, True)
    net = make()
    expected = steps(copy.deepcopy(net))
    with monkeypatch.context() as patched:
        patched.setattr(F, "gelu", gelu)
        with pytest.raises(ValueError, match="on purpose") as kept:  # the traceback keeps the frame alive
            loss_of(net)
    assert saving_hooks() is None and kept.tb is not None
    found = steps(net)
    check_equal(*({n: v for n, v in one.items() if n.startswith("gradient")} for one in (found, expected)))


def test_a_step_before_the_backward_pass_raises_an_error() -> None:
    net = make(unlock="none")
    loss = loss_of(net)
    with torch.no_grad():
        net.get_parameter("blocks.0.0.bias").mul_(2.0)
    with pytest.raises(BackwardOrderError, match="step the optimizer after the backward pass"):
        loss.backward()


def test_nothing_of_a_piece_stays_after_the_step() -> None:
    net = make()
    loss_of(net).backward()
    assert net.get_submodule("dni.pieces").running is None


def test_what_has_no_pieces_says_so() -> None:
    with pytest.raises(DniFxError, match="inside='checkpoint' needs a graph"):
        make(frontend="modules")
    with pytest.raises(DniFxError, match="inside='checkpoint' cannot be compiled"):
        make(compile=True)
    with pytest.raises(DniFxError, match="inside='twice': there are keep, checkpoint"):
        make("twice")
    cell = nn.RNNCell(3, 4)
    with pytest.raises(DniFxError, match="for segments between cuts in depth: give cuts="):
        dni_fx.transform(cell, (torch.rand(2, 3), torch.rand(2, 4)), state={"hx": 0}, inside="checkpoint")


def test_torch_compile_raises_an_error() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(make(unlock="none"), backend="eager")
    with pytest.raises(Exception, match="inside='checkpoint' cannot be compiled"):
        compiled(X, dni_context=Y)


def test_pieces_lie_between_boundaries() -> None:
    net = make(cuts=3)
    inside = False
    for node in net.graph.nodes:
        inside = node.target is ops.begin_piece or (inside and node.target is not ops.end_piece)
        assert not (inside and node.target is ops.decouple)
