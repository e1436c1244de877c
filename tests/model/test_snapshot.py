"""What a snapshot reaches and restores: values, shapes, storages and flags of tensors; containers; generators."""

import random
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dni_fx.errors import DniFxError
from dni_fx.model import Snapshot, preserved
from dni_fx.model.saved_tensor import SavedTensor


class Notes:
    """An object of the same package as the model."""

    def __init__(self) -> None:
        self.calls = 0
        self.mean = torch.zeros(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.register_buffer("empty", torch.tensor([]))
        self.optimizer = torch.optim.Adam(self.layer.parameters())
        self.teacher = [nn.Linear(3, 2)]
        self.queue = deque([torch.zeros(2)], maxlen=3)
        self.notes = {"nested": [Notes(), {"more": torch.ones(1)}]}
        self.generator, self.random, self.numpy = torch.Generator(), random.Random(0), np.random.default_rng(0)
        self.sparse, self.expanded = torch.eye(2).to_sparse(), torch.ones(1).expand(4)
        self.meta = torch.ones(2, device="meta")


def set_data(m: Model) -> None:
    m.layer.weight.data = torch.zeros(5, 5)


def set_dtype(m: Model) -> None:
    m.layer.double()


def write_data(m: Model) -> None:
    m.layer.weight.data.mul_(2)


def write_without_grad(m: Model) -> None:
    with torch.no_grad():
        m.layer.weight.mul_(2)


def set_fake_data(m: Model) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        m.layer.weight.data = torch.ones(2, 3)


def set_storage(m: Model) -> None:
    with torch.no_grad():
        m.layer.weight.set_(torch.zeros(1))  # type: ignore[call-overload]


def replace(m: Model) -> None:
    m.layer.weight = nn.Parameter(torch.zeros(2, 3))


def flags(m: Model) -> None:
    m.layer.requires_grad_(False)


def hook(m: Model) -> None:
    m.layer.weight.register_hook(lambda g: g * 2)


def gradient(m: Model) -> None:
    m.layer(torch.ones(1, 3)).sum().backward()


def gradient_in_place(m: Model) -> None:
    assert m.layer.bias.grad is not None
    m.layer.bias.grad.mul_(3)


def step(m: Model) -> None:
    m.layer(torch.ones(1, 3)).sum().backward()
    m.optimizer.step()


def teach(m: Model) -> None:
    m.teacher[0].weight.data.mul_(2)
    m.teacher.append(nn.Linear(1, 1))


def resize_buffer(m: Model) -> None:
    m.empty.resize_(6).fill_(1)


def replace_buffer(m: Model) -> None:
    m.empty = torch.ones(2, 2)


def write_gradient_into_buffer(m: Model) -> None:
    m.norm.running_mean.add_(m.layer.bias)  # type: ignore[union-attr]


def containers(m: Model) -> None:
    m.queue.append(torch.ones(1))
    m.queue[0].add_(1)
    notes = m.notes["nested"][0]
    assert isinstance(notes, Notes)
    notes.calls, notes.late = notes.calls + 1, 1  # type: ignore[attr-defined]
    notes.mean.add_(1)
    m.notes["nested"][1]["more"].add_(1)  # type: ignore[index]
    m.notes["new"] = []


def draw(m: Model) -> None:
    torch.rand(2, generator=m.generator)
    m.random.random()
    m.numpy.random()


CHANGES: list[Callable[[Model], None]] = [
    set_data,
    set_dtype,
    write_data,
    write_without_grad,
    set_fake_data,
    set_storage,
    replace,
    flags,
    hook,
    gradient,
    gradient_in_place,
    step,
    teach,
    resize_buffer,
    replace_buffer,
    write_gradient_into_buffer,
    containers,
    draw,
]


def described(m: Model) -> list[object]:
    """Everything that a test changes, in a form that `==` compares."""
    found: list[object] = [len(m.teacher), len(m.queue), sorted(m.notes), len(m.optimizer.state)]
    notes, more = m.notes["nested"]
    assert isinstance(notes, Notes) and isinstance(more, dict)
    found += [notes.calls, sorted(vars(notes)), notes.mean.tolist(), more["more"].tolist(), m.queue[0].tolist()]
    found += [m.generator.get_state().tolist(), m.random.getstate(), str(m.numpy.bit_generator.state)]
    for name, t in [*m.named_parameters(), *m.named_buffers(), *m.teacher[0].named_parameters()]:
        found += [name, id(t), t.data_ptr() * t.numel(), t.dtype, t.tolist(), t.requires_grad, t._backward_hooks]
        found += [id(t.grad), None if t.grad is None else t.grad.tolist()]
    return found


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_everything_is_restored(change: Callable[[Model], None]) -> None:
    model = Model()
    model.layer.bias.grad = torch.ones(2)
    before, version = described(model), model.layer.weight._version
    with preserved(model):
        change(model)
        if change not in (set_fake_data, write_gradient_into_buffer):  # they cannot be described
            assert described(model) != before
    assert described(model) == before
    if change is write_data:
        assert model.layer.weight._version == version  # so that an earlier forward can still go backward
    model.layer(torch.ones(1, 3)).sum().backward()


def test_a_storage_that_was_freed_is_allocated_again() -> None:
    model = nn.Linear(3, 2)
    old = model.weight.detach().clone()
    with preserved(model):
        model.weight.untyped_storage().resize_(0)
    assert torch.equal(model.weight, old)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (write_data, ["layer.weight"]),
        (replace, ["layer.weight"]),
        (flags, ["requires_grad of layer.weight", "requires_grad of layer.bias"]),
        (teach, ["teacher.0.weight"]),
        (resize_buffer, []),
        (gradient, []),
    ],
)
def test_changed(change: Callable[[Model], None], names: list[str]) -> None:
    model = Model()
    snapshot = Snapshot(model)
    change(model)
    assert [name for name in snapshot.changed() if name != "sparse"] == names
    assert snapshot.reshaped_buffers() == (["empty"] if change is resize_buffer else [])


def test_what_fails_is_reported_after_the_rest_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    old = model[1].weight.detach().clone()
    restore = SavedTensor.restore

    def failing(saved: SavedTensor) -> None:
        if saved.name == "0.weight":
            raise RuntimeError("it cannot be written")
        restore(saved)

    monkeypatch.setattr(SavedTensor, "restore", failing)
    with pytest.raises(DniFxError, match=r"left as it was: tensor '0\.weight': it cannot be written"), preserved(model):
        model[1].weight.data.zero_()
    assert torch.equal(model[1].weight, old)


def test_a_large_container_is_copied_but_not_walked() -> None:
    model = nn.Linear(2, 2)
    values: list[Tensor] = [torch.zeros(1)] * 20_000
    model.values = values  # type: ignore[assignment]
    with preserved(model):
        values.append(torch.ones(1))
    assert len(values) == 20_000


def test_snapshots_share_the_copy_of_an_unchanged_value() -> None:
    tensor = torch.zeros(2)
    outer = SavedTensor("a", tensor)
    assert SavedTensor("a", tensor)._value is outer._value
    tensor.add_(1)
    inner = SavedTensor("a", tensor)
    tensor.add_(1)
    inner.restore()
    assert tensor.tolist() == [1, 1]
    outer.restore()
    assert tensor.tolist() == [0, 0]
