"""Random models for hypothesis: a drawn program of small instructions, and a module that runs it.

A program counts its values: 0 is the vector `x`, 1 is the map `m`, and instruction i makes value i + 2. A value is a
vector (rows, features), a map (rows, features, 4, 4), a mask of one feature, or the tuple that a split gives.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")
__all__ = ["Op", "Program", "RandomNet", "programs", "random_inputs", "random_nets"]

_ROWS, _VECTOR, _MAP, _SIDE = 3, 4, 3, 4
_INPUTS = 2
_MIN_OPS, _MAX_OPS = 4, 25
_WIDEST, _LARGEST = 6, 30.0  # features of a value that is made; entries of a value that is summed or multiplied


# ------------------------------------------------------------------------------------------- instructions
@dataclass(frozen=True, repr=False)
class Op:
    """An instruction; its fields `a`, `b`, `mask` and `of` are numbers of earlier values."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, astuple(self)))})"

    def state(self) -> "nn.Module | nn.Parameter | None":
        """What the instruction owns."""
        return None

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        """The new value."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class _Unary(Op):
    a: int


@dataclass(frozen=True, repr=False)
class _Binary(Op):
    a: int
    b: int


@dataclass(frozen=True, repr=False)
class _Layer(_Unary):
    """An instruction that owns a module."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return own(v[self.a])


@dataclass(frozen=True, repr=False)
class Linear(_Layer):
    n_in: int
    n_out: int

    def state(self) -> nn.Module:
        return nn.Linear(self.n_in, self.n_out)


@dataclass(frozen=True, repr=False)
class Conv(_Layer):
    n_in: int
    n_out: int

    def state(self) -> nn.Module:
        return nn.Conv2d(self.n_in, self.n_out, 3, padding=1)


@dataclass(frozen=True, repr=False)
class Norm(_Layer):
    features: int
    axes: int

    def state(self) -> nn.Module:
        return nn.BatchNorm1d(self.features) if self.axes == 2 else nn.BatchNorm2d(self.features)


@dataclass(frozen=True, repr=False)
class Drop(_Layer):
    def state(self) -> nn.Module:
        return nn.Dropout(0.25)


@dataclass(frozen=True, repr=False)
class Block(_Layer):
    """An nn.Sequential with an in-place activation function."""

    n: int
    axes: int

    def state(self) -> nn.Module:
        if self.axes == 2:
            return nn.Sequential(nn.Linear(self.n, self.n), nn.ReLU(inplace=True), nn.Linear(self.n, self.n))
        first, second = (nn.Conv2d(self.n, self.n, 3, padding=1) for _ in range(2))
        return nn.Sequential(first, nn.ReLU(inplace=True), second)


@dataclass(frozen=True, repr=False)
class Again(_Unary):
    """Call the module of value `of` once more."""

    of: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return net.owned(self.of)(v[self.a])


@dataclass(frozen=True, repr=False)
class Tied(_Unary):
    """Multiply by the weight of the linear layer of value `of`, transposed where `turned`."""

    of: int
    turned: bool

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        weight = net.owned(self.of).weight
        return F.linear(v[self.a], weight.t() if self.turned else weight)


@dataclass(frozen=True, repr=False)
class Scale(_Unary):
    """Multiply by a parameter."""

    n: int
    axes: int

    def state(self) -> nn.Parameter:
        return nn.Parameter(1 + 0.1 * torch.randn(self.n, *[1] * (self.axes - 2)))

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return own * v[self.a]


@dataclass(frozen=True, repr=False)
class Shift(_Unary):
    """Add the parameter of the `Scale` of value `of`."""

    of: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a] + net.owned(self.of)


@dataclass(frozen=True, repr=False)
class Relu(_Unary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return F.relu(v[self.a])


@dataclass(frozen=True, repr=False)
class Leaky(_Unary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return F.leaky_relu(v[self.a], 0.1)


@dataclass(frozen=True, repr=False)
class Tanh(_Unary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return torch.tanh(v[self.a])


@dataclass(frozen=True, repr=False)
class Clone(_Unary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].clone()


@dataclass(frozen=True, repr=False)
class Detach(_Unary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].detach()


@dataclass(frozen=True, repr=False)
class Add(_Binary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a] + v[self.b]


@dataclass(frozen=True, repr=False)
class Mul(_Binary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a] * v[self.b]


@dataclass(frozen=True, repr=False)
class Cat(_Binary):
    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return torch.cat([v[self.a], v[self.b]], 1)


@dataclass(frozen=True, repr=False)
class AddTo(_Binary):
    """In place, by a method."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].add_(v[self.b])


@dataclass(frozen=True, repr=False)
class PlusTo(_Binary):
    """In place, by `a += b`; torch.fx traces that as `a + b`, which is wrong where another name of `a` is used."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        value = v[self.a]
        value += v[self.b]
        return value


@dataclass(frozen=True, repr=False)
class MulTo(_Binary):
    """In place."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].mul_(v[self.b])


@dataclass(frozen=True, repr=False)
class ReluTo(_Unary):
    """In place."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].relu_()


@dataclass(frozen=True, repr=False)
class TanhTo(_Unary):
    """In place."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].tanh_()


@dataclass(frozen=True, repr=False)
class DoubleTo(_Unary):
    """In place, by a statement: what it returns is not used."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        v[self.a].mul_(2)
        return v[self.a]


@dataclass(frozen=True, repr=False)
class Split(_Unary):
    """A tuple of two, of which the first has `n` features."""

    n: int
    features: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        if 2 * self.n == self.features:
            return v[self.a].chunk(2, 1)
        return torch.split(v[self.a], [self.n, self.features - self.n], 1)


@dataclass(frozen=True, repr=False)
class Take(_Unary):
    """An element of a tuple."""

    which: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a][self.which]


@dataclass(frozen=True, repr=False)
class Slice(_Unary):
    """Features from `start` up to `stop`: a view."""

    start: int
    stop: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a][:, self.start : self.stop]


@dataclass(frozen=True, repr=False)
class Turn(_Unary):
    """Swap the axes of a map: a view."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].permute(0, 1, 3, 2)


@dataclass(frozen=True, repr=False)
class Fold(_Unary):
    """Reorder the features of a vector: views, then a copy."""

    n: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].view(-1, 2, self.n // 2).transpose(1, 2).reshape(-1, self.n)


@dataclass(frozen=True, repr=False)
class Squash(_Unary):
    """Half as many features: a view of three axes, summed over one."""

    n: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].view(-1, 2, self.n // 2).sum(1)


@dataclass(frozen=True, repr=False)
class Flatten(_Unary):
    """All entries of a map in a vector: a view where the map is contiguous."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].flatten(1)


@dataclass(frozen=True, repr=False)
class Mean(_Unary):
    """Mean over space."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].mean((2, 3))


@dataclass(frozen=True, repr=False)
class Spread(_Unary):
    """A vector in every place of a map: a view."""

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].unsqueeze(-1).unsqueeze(-1).expand(-1, -1, _SIDE, _SIDE)


@dataclass(frozen=True, repr=False)
class Mask(_Unary):
    """A boolean mask, or one of integers, of one feature."""

    integer: bool

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        mask = v[self.a][:, :1] > 0
        return mask.long() if self.integer else mask


@dataclass(frozen=True, repr=False)
class Times(_Unary):
    """Multiply by a mask."""

    mask: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a] * v[self.mask]


@dataclass(frozen=True, repr=False)
class Fill(_Unary):
    mask: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].masked_fill(v[self.mask], 0.5)


@dataclass(frozen=True, repr=False)
class FillTo(_Unary):
    """In place."""

    mask: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return v[self.a].masked_fill_(v[self.mask], 0.5)


@dataclass(frozen=True, repr=False)
class Where(_Binary):
    mask: int

    def run(self, net: "RandomNet", own: Any, v: list[Any]) -> Any:
        return torch.where(v[self.mask], v[self.a], v[self.b])


@dataclass(frozen=True)
class Program:
    """Instructions, the values that are returned, and how: "tensor", "tuple" or "dict"."""

    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    kind: str = "tensor"

    def __repr__(self) -> str:
        return f"Program({self.ops!r}, {self.outputs!r}, {self.kind!r})"


class RandomNet(nn.Module):
    """Runs a program. What instruction `Linear` owns is called `linear5` if it makes value 5."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        with _seeded(0):
            for number, op in enumerate(program.ops, _INPUTS):
                state = op.state()
                if state is not None:
                    setattr(self, f"{type(op).__name__.lower()}{number}", state)

    def owned(self, number: int) -> Any:
        """What the instruction that makes this value owns."""
        return getattr(self, f"{type(self.program.ops[number - _INPUTS]).__name__.lower()}{number}")

    def forward(self, x: Tensor, m: Tensor) -> Any:
        v: list[Any] = [x, m]
        for number, op in enumerate(self.program.ops, _INPUTS):
            own = None if type(op).state is Op.state else self.owned(number)
            v.append(op.run(self, own, v))
        if self.program.kind == "dict":
            return {f"out{number}": v[number] for number in self.program.outputs}
        outputs = tuple(v[number] for number in self.program.outputs)
        return outputs if self.program.kind == "tuple" else outputs[0]

    def __repr__(self) -> str:
        return f"RandomNet({self.program!r})"


def random_inputs(net: RandomNet, rows: int = _ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A vector and a map that the net takes."""
    like = next(net.parameters())
    with _seeded(seed):
        x, m = torch.randn(rows, _VECTOR), torch.randn(rows, _MAP, _SIDE, _SIDE)
    return x.to(like), m.to(like)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    generator = torch.default_generator  # torch.manual_seed asks the GPUs too, which takes longer than a small net
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


# ------------------------------------------------------------------------------------------------ drawing
class _Builder:
    """A program so far, and its values: each instruction runs as soon as it is drawn.

    So shapes, what carries gradient and what shares memory are known, not inferred; autograd itself says which
    memory it has saved, which must not be written to any more.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.ops: list[Op] = []
        self.values: list[Any] = [torch.randn(_ROWS, _VECTOR), torch.randn(_ROWS, _MAP, _SIDE, _SIDE)]
        self.net = RandomNet(Program((), ()))
        self.untouchable = {_storage(value) for value in self.values}
        self.kept: list[Tensor] = []  # so that no address of a storage comes twice
        self.wrote = False
        self.read_only: set[int] = set()  # values that autograd does not allow to write to

    def append(self, op: Op) -> None:
        number = len(self.values)
        self.ops.append(op)
        self.net.program = Program(tuple(self.ops), ())
        state = op.state()
        if state is not None:
            setattr(self.net, f"{type(op).__name__.lower()}{number}", state)
        with torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor):
            value = op.run(self.net, state, self.values)
        self.values.append(value)
        self.wrote |= type(op).__name__.endswith("To")
        if isinstance(op, Split):  # its elements are views, and are lost when their memory is written to
            self.untouchable.add(_storage(value[0]))
        elif isinstance(op, Detach | Spread) or self._is_read_only(op, value):
            self.read_only.add(number)

    def _is_read_only(self, op: Op, value: Any) -> bool:
        """Whether it is a view of what is; what a dropout returns in eval mode is its argument itself."""
        a: int = getattr(op, "a", -1)
        source = self.values[a]
        if not isinstance(value, Tensor) or not isinstance(source, Tensor):
            return False
        if isinstance(op, Drop) or (isinstance(op, Again) and isinstance(self.ops[op.of - _INPUTS], Drop)):
            return a in self.read_only or _storage(source) in self.untouchable
        return a in self.read_only and _storage(value) == _storage(source)

    def _saved(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        self.untouchable.add(_storage(tensor))
        return tensor

    # ----------------------------------------------------------------------------------- sets of values
    def numbers(self, test: Callable[[Tensor], bool]) -> list[int]:
        """The float tensors for which `test` holds, the last first."""
        found = [i for i, v in enumerate(self.values) if isinstance(v, Tensor) and v.is_floating_point() and test(v)]
        return found[::-1]

    def writable(self) -> list[int]:
        return [
            i
            for i in self.numbers(_moderate)
            if i not in self.read_only and _storage(self.values[i]) not in self.untouchable
        ]

    def pick(self, numbers: Sequence[int]) -> int:
        """One of the values, more often a late one."""
        return self.choose([*numbers[:3], *numbers[:3], *numbers])

    def choose(self, items: Sequence[T]) -> T:
        return items[self.integer(0, len(items) - 1)]

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def of_type(self, *types: type[Op]) -> list[int]:
        return [i for i, op in enumerate(self.ops, _INPUTS) if isinstance(op, types)][::-1]


def _storage(value: Any) -> int:
    return int(value.untyped_storage()._cdata)


def _any(value: Tensor) -> bool:
    return True


def _vector(value: Tensor) -> bool:
    return value.dim() == 2


def _map(value: Tensor) -> bool:
    return value.dim() == 4


def _moderate(value: Tensor) -> bool:
    return float(value.detach().abs().max()) < _LARGEST


def _even(value: Tensor) -> bool:
    return value.dim() == 2 and value.shape[1] % 2 == 0 and value.shape[1] <= _WIDEST


def _splits(value: Tensor) -> bool:
    return value.shape[1] >= 4


# Draws an instruction; where it lacks what it needs, one that makes this, or None.
Maker = Callable[[_Builder], Op | None]


def _linear(b: _Builder) -> Op:
    a = b.pick(b.numbers(_vector))
    return Linear(a, b.values[a].shape[1], b.integer(2, _WIDEST))


def _conv(b: _Builder) -> Op:
    a = b.pick(b.numbers(_map))
    return Conv(a, b.values[a].shape[1], b.integer(2, _WIDEST))


def _on_any(make: Callable[[int, int, int], Op], test: Callable[[Tensor], bool] = _any) -> Maker:
    """Of an instruction that takes a value, the number of its features and that of its axes."""

    def maker(b: _Builder) -> Op | None:
        numbers = b.numbers(test)
        if not numbers:
            return None
        a = b.pick(numbers)
        return make(a, b.values[a].shape[1], b.values[a].dim())

    return maker


def _on_written(make: Callable[[int], Op]) -> Maker:
    def maker(b: _Builder) -> Op | None:
        numbers = b.writable()
        return make(b.pick(numbers)) if numbers else None

    return maker


def _on_two(make: Callable[[int, int], Op]) -> Maker:
    """Of an instruction that takes two values of one shape."""

    def maker(b: _Builder) -> Op | None:
        numbers = b.numbers(_moderate)
        if not numbers:
            return None
        a = b.pick(numbers)
        return make(a, b.pick([i for i in numbers if b.values[i].shape == b.values[a].shape]))

    return maker


def _on_written_two(make: Callable[[int, int], Op]) -> Maker:
    """The same, where the first is written to: no memory may be read and written at once."""

    def maker(b: _Builder) -> Op | None:
        numbers = b.writable()
        if not numbers:
            return Clone(b.integer(0, 1))
        constant = [i for i in numbers if not b.values[i].requires_grad]  # may carry gradient from now on
        a = b.choose([*numbers, *constant, *constant, *constant])
        target = b.values[a]
        others = b.numbers(lambda v: v.shape == target.shape and _storage(v) != _storage(target) and _moderate(v))
        others = [i for i in others if b.values[i].requires_grad] or others
        return make(a, b.pick(others)) if others else None

    return maker


def _cat(b: _Builder) -> Op | None:
    numbers = b.numbers(lambda v: v.shape[1] <= _WIDEST)
    a = b.pick(numbers)
    axes, width = b.values[a].dim(), b.values[a].shape[1]
    others = [i for i in numbers if b.values[i].dim() == axes and b.values[i].shape[1] + width <= 2 * _WIDEST]
    return Cat(a, b.pick(others)) if others else None


def _again(b: _Builder) -> Op | None:
    owners = b.of_type(Linear, Conv, Norm, Block, Drop)
    if not owners:
        return None
    of = b.choose(owners)
    shape = b.values[b.ops[of - _INPUTS].a].shape  # type: ignore[attr-defined]
    return Again(b.pick(b.numbers(lambda v: v.shape == shape)), of)


def _tied(b: _Builder) -> Op | None:
    owners = b.of_type(Linear)
    if not owners:
        return None
    of = b.choose(owners)
    n_out, n_in = b.net.owned(of).weight.shape
    turned = n_out <= _WIDEST and bool(b.integer(0, 1)) and n_in <= 2 * _WIDEST
    numbers = b.numbers(lambda v: v.dim() == 2 and v.shape[1] == (n_out if turned else n_in))
    return Tied(b.pick(numbers), of, turned) if numbers else None


_scale = _on_any(Scale)


def _shift(b: _Builder) -> Op | None:
    owners = b.of_type(Scale)
    if not owners:
        return _scale(b)
    of = b.choose(owners)
    shape = b.values[of].shape
    return Shift(b.pick(b.numbers(lambda v: v.shape == shape)), of)


def _split(b: _Builder) -> Op | None:
    numbers = b.numbers(_splits)
    if not numbers:
        return None
    a = b.pick(numbers)
    features = b.values[a].shape[1]
    return Split(a, b.integer(2, min(features - 2, _WIDEST)), features)


def _take(b: _Builder) -> Op | None:
    tuples = b.of_type(Split)
    return Take(b.pick(tuples), b.integer(0, 1)) if tuples else _split(b)


def _slice(b: _Builder) -> Op | None:
    a = b.pick(b.numbers(_any))
    features = b.values[a].shape[1]
    start = b.integer(0, features - 2)
    return Slice(a, start, b.integer(start + 2, min(features, start + _WIDEST)))


def _mask(b: _Builder) -> Op | None:
    return Mask(b.pick(b.numbers(_any)[::-1]), bool(b.integer(0, 1)))  # most often of an input


def _on_masked(make: Callable[[int, int], Op], *, boolean: bool, written: bool = False) -> Maker:
    def maker(b: _Builder) -> Op | None:
        masks = [i for i in b.of_type(Mask) if not boolean or b.values[i].dtype == torch.bool]
        if not masks:
            return _mask(b)
        mask = b.pick(masks)
        axes = b.values[mask].dim()
        numbers = [i for i in (b.writable() if written else b.numbers(_any)) if b.values[i].dim() == axes]
        return make(b.pick(numbers), mask) if numbers else None

    return maker


def _where(b: _Builder) -> Op | None:
    masks = [i for i in b.of_type(Mask) if b.values[i].dtype == torch.bool]
    if not masks:
        return _mask(b)
    mask = b.pick(masks)
    numbers = b.numbers(lambda v: v.dim() == b.values[mask].dim())
    a = b.pick(numbers)
    return Where(a, b.pick([i for i in numbers if b.values[i].shape == b.values[a].shape]), mask)


# How often each is tried; the first ones are what an example shrinks to.
_MAKERS: list[tuple[int, Maker]] = [
    (3, _linear),
    (2, _on_any(lambda a, n, axes: Tanh(a))),
    (4, _conv),
    (1, _on_any(lambda a, n, axes: Relu(a))),
    (1, _on_any(lambda a, n, axes: Leaky(a))),
    (3, _on_two(Add)),
    (2, _on_two(Mul)),
    (2, _cat),
    (3, _on_written_two(AddTo)),
    (2, _on_written_two(PlusTo)),
    (1, _on_written_two(MulTo)),
    (3, _on_written(ReluTo)),
    (1, _on_written(TanhTo)),
    (2, _on_written(DoubleTo)),
    (1, _split),
    (3, _take),
    (2, _slice),
    (1, _on_any(lambda a, n, axes: Turn(a), _map)),
    (1, _on_any(lambda a, n, axes: Fold(a, n), _even)),
    (1, _on_any(lambda a, n, axes: Squash(a, n), lambda v: _even(v) and v.shape[1] >= 4)),
    (1, _on_any(lambda a, n, axes: Flatten(a), _map)),
    (2, _on_any(lambda a, n, axes: Mean(a), _map)),
    (1, _on_any(lambda a, n, axes: Spread(a), lambda v: v.dim() == 2 and v.shape[1] <= _WIDEST)),
    (1, _mask),
    (2, _on_masked(Times, boolean=False)),
    (1, _on_masked(Fill, boolean=True)),
    (2, _on_masked(FillTo, boolean=True, written=True)),
    (3, _where),
    (2, _on_any(Norm)),
    (1, _on_any(lambda a, n, axes: Drop(a))),
    (1, _scale),
    (3, _shift),
    (2, _again),
    (2, _tied),
    (2, _on_any(Block, lambda v: v.shape[1] <= _WIDEST)),
    (1, _on_any(lambda a, n, axes: Detach(a))),
    (1, _on_any(lambda a, n, axes: Clone(a))),
]
_OFTEN = [maker for count, maker in _MAKERS for _ in range(count)]


@st.composite
def programs(draw: st.DrawFn, min_ops: int = _MIN_OPS, max_ops: int = _MAX_OPS) -> Program:
    """Programs that run forward and backward in eager mode, and every output of which depends on a parameter."""
    with _seeded(0):
        b = _Builder(draw)
        count = draw(st.integers(min_ops, max_ops))
        while len(b.ops) < count - 1:
            op = b.choose(_OFTEN if b.ops else [_linear, _conv])(b)
            b.append(op or _linear(b))
        b.append(_last(b))
        late = [i for i in b.numbers(lambda v: v.requires_grad) if i >= len(b.values) - 6]
    others = draw(st.lists(st.sampled_from(late), max_size=2, unique=True))
    outputs = tuple(dict.fromkeys([len(b.values) - 1, *others]))
    kind = draw(st.sampled_from(["tensor", "tuple", "dict"] if len(outputs) == 1 else ["tuple", "dict"]))
    program = Program(tuple(b.ops), outputs, kind)
    assume(not b.wrote or _runs(program))
    return program


def _last(b: _Builder) -> Op:
    """A layer on the last value that is a tensor."""
    a = b.numbers(_any)[0]
    features = b.values[a].shape[1]
    return Linear(a, features, 2) if b.values[a].dim() == 2 else Conv(a, features, 2)


def _runs(program: Program) -> bool:
    """Whether eager mode takes it: an instruction that writes in place may still do so in a way that it refuses."""
    net = RandomNet(program)
    inputs = random_inputs(net)
    try:
        outputs = net(*inputs)
        values = list(outputs.values()) if isinstance(outputs, dict) else outputs
        sum(value.sum() for value in values).backward()
        with torch.no_grad():
            net.eval()(*inputs)
    except RuntimeError:
        return False
    return all(value.requires_grad for value in values) and not any(i._version for i in inputs)


def random_nets(min_ops: int = _MIN_OPS, max_ops: int = _MAX_OPS) -> st.SearchStrategy[RandomNet]:
    """Nets that run drawn programs."""
    return programs(min_ops, max_ops).map(RandomNet)
