"""The loss of an exit, and the cross entropy of many logits in chunks."""

import functools
from typing import Any

import pytest
import torch
from exit_nets import NETS, error
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.cost import exit_nodes
from dni_fx.errors import ContextError
from dni_fx.runtime import exit_loss, exits
from dni_fx.runtime.exit_loss import chunked_loss

LOSSES = {
    "name": "cross_entropy",
    "function": F.cross_entropy,
    "partial": functools.partial(F.cross_entropy, ignore_index=2, label_smoothing=0.1),
    "module": nn.CrossEntropyLoss(ignore_index=2, weight=torch.arange(1.0, 12.0).double()),
    "smooth": nn.CrossEntropyLoss(ignore_index=2, weight=torch.arange(1.0, 12.0).double(), label_smoothing=0.2),
    "sum": nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.2),
}


class Words(nn.Module):
    """Words to logits of the next; `tied`: the weights of the embedding again, as a function."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tied, self.embed, self.a, self.b = tied, nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, words: Tensor) -> Tensor:
        h = self.embed(words)
        h = h + torch.tanh(self.a(h))
        h = h + torch.tanh(self.b(h))
        return F.linear(h, self.embed.weight) if self.tied else self.head(h)


def step(loss: Any, tied: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The gradients of a step."""
    monkeypatch.setattr(exit_loss, "MOST_LOGITS", most)
    words = torch.arange(20).reshape(2, 10) % 11
    net = dni_fx.transform(Words(tied).double(), words, loss=loss, cuts=["add"], synthesizer="exit(units=0)").train()
    assert net.dni.exits[0].leaves_out_linear
    logits = net(words, dni_context=words.roll(-1, 1))
    F.cross_entropy(logits.flatten(0, 1), words.roll(-1, 1).flatten()).backward()
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("by_torch", [True, False])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_give_the_same_gradients(loss: str, tied: bool, by_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.13, and with label smoothing, torch has no chunks."""
    if not by_torch:
        torch.overrides.get_testing_overrides()  # torch lists its functions at first use, in a trace
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    whole = step(LOSSES[loss], tied, 10**6, monkeypatch)
    monkeypatch.setattr(exit_loss, "exit_loss", lambda *_, **__: pytest.fail("not in chunks"))
    assert error(step(LOSSES[loss], tied, 33, monkeypatch), whole) < 1e-10


@pytest.mark.parametrize("most", [10**6, 33])
@pytest.mark.parametrize("tied", [False, True])
def test_a_large_last_layer_gets_no_gradient_from_exits(tied: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_nodes, "_MANY_WEIGHTS", 10)
    found = step("cross_entropy", tied, most, monkeypatch)
    model, words = Words(tied).double(), torch.arange(20).reshape(2, 10) % 11
    h = model.embed(words)
    h = h + torch.tanh(model.a(h))
    last = model.embed.weight if tied else model.head.weight
    bias = None if tied else model.head.bias.detach()
    F.cross_entropy(F.linear(h, last.detach(), bias).flatten(0, 1), words.roll(-1, 1).flatten()).backward()
    h = h.detach() + torch.tanh(model.b(h.detach()))
    logits = F.linear(h, last, None if tied else model.head.bias)
    F.cross_entropy(logits.flatten(0, 1), words.roll(-1, 1).flatten()).backward()
    assert error(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}) < 1e-10


def test_chunks_keep_no_gradient_of_a_layer_that_exits_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """`linear_cross_entropy` computes the gradient of the weights in the forward pass, if they need one."""
    asked: list[bool] = []

    def chunked(loss: Any, features: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        asked.append(weight.requires_grad or bias.requires_grad)
        return F.cross_entropy(F.linear(features, weight, bias).flatten(0, -2), target.flatten())

    monkeypatch.setattr(exits, "chunked_loss", chunked)
    step("cross_entropy", False, 33, monkeypatch)
    monkeypatch.setattr(exit_nodes, "_MANY_WEIGHTS", 10)
    step("cross_entropy", False, 33, monkeypatch)
    assert asked == [True, False]


def test_what_has_no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_loss, "MOST_LOGITS", 10)
    features, weight, labels = torch.randn(2, 5, 3), torch.randn(7, 3), torch.zeros(2, 5, dtype=torch.long)
    assert chunked_loss(F.cross_entropy, features, weight, None, labels) is not None
    assert chunked_loss(lambda o, t: F.cross_entropy(o, t), features, weight, None, labels) is None
    assert chunked_loss(F.mse_loss, features, weight, None, labels) is None
    assert chunked_loss(F.cross_entropy, features, weight, None, torch.rand(2, 5, 7)) is None
    assert chunked_loss(nn.CrossEntropyLoss(reduction="none"), features, weight, None, labels) is None
    monkeypatch.setattr(exit_loss, "MOST_LOGITS", 1000)
    assert chunked_loss(F.cross_entropy, features, weight, None, labels) is None


def test_a_hook_on_the_last_layer_runs() -> None:
    words = torch.arange(20).reshape(2, 10) % 11
    model = Words(False)
    model.head.register_forward_hook(lambda *_: None)
    net = dni_fx.transform(model, words, loss="cross_entropy", cuts=["add"], synthesizer="exit", verify=False)
    assert not net.dni.exits[0].leaves_out_linear


class Changed(nn.Linear):
    """A linear layer, and more; its `weight` is not all that it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


@pytest.mark.parametrize("change", ["hook", "a layer with a weight", "a layer without"])
def test_the_last_layer_may_change_after_the_rewrite(change: str) -> None:
    words = torch.arange(20).reshape(2, 10) % 11
    model = Words(False).double()
    options: dict[str, Any] = {"loss": "cross_entropy", "cuts": ["add"], "synthesizer": "exit(units='all')"}
    net = dni_fx.transform(model, words, **options).train()
    assert net.dni.exits[0].leaves_out_linear
    if change == "hook":
        net.head.register_forward_hook(lambda _module, _inputs, output: torch.tanh(output))
    else:
        net.head = Changed(6, 11).double() if "with a" in change else nn.Sequential(model.head, nn.Tanh())
    plain = Words(False).double()
    plain.head = net.head
    plain.load_state_dict({n: v for n, v in net.state_dict().items() if not n.startswith("dni.")}, strict=True)
    target = words.roll(-1, 1).flatten()
    F.cross_entropy(net(words, dni_context=words.roll(-1, 1)).flatten(0, 1), target).backward()
    F.cross_entropy(plain(words).flatten(0, 1), target).backward()
    assert error({"a": net.embed.weight.grad}, {"a": plain.embed.weight.grad}) < 1e-10


@pytest.mark.parametrize("length", [11, 12])
def test_as_many_positions_as_classes(length: int) -> None:
    """Outputs (N, 11, 11) have the classes on the last axis, since the graph says so."""
    words = torch.arange(2 * length).reshape(2, length) % 11
    net = dni_fx.transform(
        Words(False).double(), words, loss="cross_entropy", cuts=["add"], synthesizer="exit(units='all')"
    )
    plain = Words(False).double()
    F.cross_entropy(net.train()(words, dni_context=words).flatten(0, 1), words.flatten()).backward()
    F.cross_entropy(plain(words).flatten(0, 1), words.flatten()).backward()
    assert error({"a": net.embed.weight.grad}, {"a": plain.embed.weight.grad}) < 1e-10


def test_no_target() -> None:
    net = NETS["mlp"].net("exit")
    with pytest.raises(ContextError, match="the exits need the target of the loss"):
        net(*NETS["mlp"].inputs)


def sampled_loss(loss: Any, share: float, begin: int, net: Words, words: Tensor, target: Tensor) -> Tensor:
    """The estimate of a loss from a share of the positions."""
    h = net.embed(words)
    some, features, labels, factor = exit_loss.sampled(loss, h, target, share, torch.tensor(begin))
    value: Tensor = some(net.head(features), labels) * factor
    return value.detach()


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.01])
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "name"])
def test_the_mean_of_all_samples_is_the_whole_loss(loss: str, share: float) -> None:
    """Also where the share is no part of the number of positions, and where labels are ignored."""
    words, net = torch.arange(20).reshape(2, 10) % 11, Words(False).double()
    target = words.roll(-1, 1)
    given = LOSSES[loss]
    values = [sampled_loss(given, share, begin, net, words, target) for begin in range(20)]
    whole = given(net.head(net.embed(words)).flatten(0, 1), target.flatten()).detach()
    assert abs(float(torch.stack(values).mean() - whole)) < 1e-10
    assert float(torch.stack(values).std()) > 1e-3


def test_a_sample_without_labels_that_count() -> None:
    """A mean over no label would be NaN."""
    words, net = torch.arange(20).reshape(2, 10) % 11, Words(False).double()
    target = torch.full((2, 10), -100)
    target[0, 0] = 3
    assert float(sampled_loss(F.cross_entropy, 0.1, 1, net, words, target)) == 0.0


def test_an_exit_takes_other_positions_at_each_step() -> None:
    words = torch.arange(20).reshape(2, 10) % 11
    options: dict[str, Any] = {"loss": "cross_entropy", "cuts": ["add"]}
    net = dni_fx.transform(Words(False).double(), words, **options, synthesizer="exit(units=0, tokens=0.1)").train()
    touched = []
    for _ in range(3):
        net.zero_grad()
        net(words, dni_context=words.roll(-1, 1)).sum().backward()
        assert net.embed.weight.grad is not None
        touched.append(frozenset(net.embed.weight.grad.abs().sum(1).nonzero().flatten().tolist()))
    assert touched == [{0, 10}, {1, 0}, {2, 1}]
    again = dni_fx.transform(Words(False).double(), words, **options, synthesizer="exit(units=0, tokens=0.1)")
    again.load_state_dict(net.state_dict())
    assert int(again.dni.exits[0].begin) == 3


def test_all_positions_are_the_whole_loss() -> None:
    words = torch.arange(20).reshape(2, 10) % 11
    gradients = []
    for tokens in ("", ", tokens=1.0", ", tokens=0.999"):  # 0.999 of 20 positions are 20
        synthesizer = f"exit(units=0{tokens})"
        net = dni_fx.transform(
            Words(False).double(), words, loss="cross_entropy", cuts=["add"], synthesizer=synthesizer
        )
        net.train()(words, dni_context=words.roll(-1, 1)).sum().backward()
        gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert error(gradients[1], gradients[0]) == 0 and error(gradients[2], gradients[0]) < 1e-12


def test_tokens_of_a_target_without_positions() -> None:
    words = torch.arange(20).reshape(2, 10) % 11
    net = dni_fx.transform(Words(False), words, loss="cross_entropy", cuts=["add"], synthesizer="exit(tokens=0.5)")
    with pytest.raises(ContextError, match=r"exit: tokens=0.5 needs a label for each position, of the shape \(2, 10\)"):
        net.train()(words, dni_context=torch.rand(2, 10, 11))
