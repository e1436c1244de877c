"""Example inputs: what the person gives, or shapes that are tried until one fits."""

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from dni_fx.errors import DniFxError, first_line
from dni_fx.preserve import preserved

__all__ = ["Inputs", "describe", "given", "like", "parse_specs", "probe", "tensors_in"]


@dataclass(frozen=True)
class Inputs:
    """Arguments for one call of the model, and where they come from."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    source: str = "given"

    def map(self, function: Callable[[Tensor], Any]) -> "Inputs":
        """The same arguments with `function` applied to each tensor, however nested."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Inputs(args, kwargs, self.source)

    def with_rows(self, rows: int) -> "Inputs":
        """Another batch size, for every tensor that has as many rows as the first; the last row is repeated."""
        tensors = self.tensors()
        if not tensors or not tensors[0].dim():
            return self
        now = tensors[0].shape[0]

        def resized(tensor: Tensor) -> Tensor:
            if not tensor.dim() or tensor.shape[0] != now:
                return tensor
            return torch.cat([tensor, *[tensor[-1:]] * (rows - now)])[:rows]

        return self.map(resized)

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a nested value, in order; dataclasses that pytree does not know are opened too."""
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, f.name) for f in fields(leaf)])
    return found


def given(example_inputs: Any, example_kwargs: Mapping[str, Any] | None, source: str = "given") -> Inputs:
    """Inputs from what the person passes: a tensor or a tuple of positional arguments, and keywords."""
    if example_inputs is None:
        args: tuple[Any, ...] = ()
    else:
        args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    return Inputs(args, dict(example_kwargs or {}), source)


def describe(inputs: Inputs) -> tuple[str, ...]:
    """One line an argument: `ids 8x128 int64`."""

    def leaf(value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"

    named = [(str(i), v) for i, v in enumerate(inputs.args)] + list(inputs.kwargs.items())
    return tuple(f"{name}: {', '.join(map(leaf, pytree.tree_leaves(value)))}" for name, value in named)


# --------------------------------------------------------------------------------- --input 8x128:int64:0-1000
_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?::(?P<low>-?\d+)-(?P<high>-?\d+))?"
)


def parse_specs(specs: Sequence[str]) -> Inputs:
    """Inputs from `--input` texts: `[name=]SHAPE[:DTYPE[:LOW-HIGH]]`, HIGH not included.

    Raises:
        DniFxError: If a text does not read so.
    """
    args: list[Tensor] = []
    kwargs: dict[str, Any] = {}
    for spec in specs:
        match = _SPEC.fullmatch(spec.strip())
        if match is None:
            raise DniFxError(
                f"--input {spec!r} is not [name=]SHAPE[:DTYPE[:LOW-HIGH]], as in 64x784 or ids=8x128:int64:0-1000"
            )
        try:
            tensor = _from_match(spec, match)
        except (RuntimeError, ValueError, OverflowError) as error:  # torch cannot make such a tensor
            raise DniFxError(f"--input {spec!r}: {first_line(error)}") from None
        if match["name"] in kwargs:
            raise DniFxError(f"--input {spec!r}: {match['name']!r} is given twice")
        if match["name"]:
            kwargs[match["name"]] = tensor
        else:
            args.append(tensor)
    return Inputs(tuple(args), kwargs, "--input")


def like(described: Sequence[str]) -> Inputs:
    """Inputs of the shapes that a plan tells of, as `describe` wrote them.

    Raises:
        DniFxError: If an argument is no tensor, and no tuple of some.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for line in described:
        name, _, what = line.partition(": ")
        specs = [text.replace(" ", ":") for text in what.split(", ")]
        if not all(_SPEC.fullmatch(spec) for spec in specs):
            raise DniFxError(f"the plan's example inputs hold {line!r}, which are no tensors: give --input")
        values = parse_specs(specs).args
        value = values[0] if len(values) == 1 else values
        if name.isdigit():
            args.append(value)
        else:
            kwargs[name] = value
    return Inputs(tuple(args), kwargs, "--input")


def _from_match(spec: str, match: re.Match[str]) -> Tensor:
    shape = [int(n) for n in match["shape"].split("x")]
    if 0 in shape:
        raise DniFxError(f"--input {spec!r}: a tensor without entries tells nothing; give sizes of 1 or more")
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise DniFxError(f"--input {spec!r}: {match['dtype']!r} is no torch dtype; try float32, int64 or bool")
    if match["low"] is None:
        return _example(shape, dtype, 0, 2)
    low, high = int(match["low"]), int(match["high"])
    if low >= high:
        raise DniFxError(f"--input {spec!r}: the range {low}-{high} is empty")
    if dtype.is_complex or (not dtype.is_floating_point and not _holds(dtype, low, high - 1)):
        raise DniFxError(f"--input {spec!r}: {match['dtype']} does not hold numbers from {low} to {high - 1}")
    if dtype.is_floating_point:
        return torch.empty(shape, dtype=dtype).uniform_(low, high)
    return _example(shape, dtype, low, high)


def _holds(dtype: torch.dtype, low: int, high: int) -> bool:
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return least <= low and high <= most


def _example(shape: Sequence[int], dtype: torch.dtype, low: int, high: int) -> Tensor:
    """Normal numbers for floats, uniform integers from `low` up to, not including, `high` for the rest."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(list(shape), dtype=dtype)
    return torch.randint(low, high, list(shape)).to(dtype)


# ------------------------------------------------------------------------------------------------- probing
_BATCH, _LENGTH, _LAYERS, _TRIES = 4, 16, 6, 128
_SIDES = (32, 64, 224, 28, 128, 16)


def probe(model: nn.Module) -> Inputs:
    """Inputs of some shape that the model accepts, found by running it under fake tensors.

    Shapes that fit the first layers that have parameters are tried, for each argument that has no default.

    Raises:
        DniFxError: If no shape fits.
    """
    required = _required_arguments(model)
    shapes = list(dict.fromkeys(itertools.islice(_candidates(model), 64)))
    for choice in itertools.islice(_choices(shapes, len(required)), _TRIES):
        if _runs(model, choice):
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            with torch.random.fork_rng(devices=()):
                tensors = tuple(_example(shape, dtype, 0, high).to(device) for shape, dtype, high in choice)
            return Inputs(tensors, {}, "probed")
    raise DniFxError(
        f"no example inputs for {type(model).__name__}.forward({', '.join(required)}), and no shape that was tried "
        "fits: give --input SHAPE (one for each argument), `example_inputs` in the file, or example_inputs=... in code"
    )


Candidate = tuple[tuple[int, ...], torch.dtype, int]


def _required_arguments(model: nn.Module) -> list[str]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]


def _candidates(model: nn.Module) -> Iterator[Candidate]:
    layers = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    for layer in layers[:_LAYERS]:
        dtype = next(p.dtype for p in layer.parameters(recurse=False))
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            yield (_BATCH, _LENGTH), torch.int64, layer.num_embeddings
            yield (_BATCH,), torch.int64, layer.num_embeddings
        elif isinstance(layer, nn.Linear | nn.Bilinear):
            widths = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in1_features, layer.in2_features)
            for width in widths:
                yield (_BATCH, width), dtype, 2
                yield (_BATCH, _LENGTH, width), dtype, 2
        elif isinstance(layer, nn.RNNBase):
            yield (_BATCH, _LENGTH, layer.input_size), dtype, 2
        elif isinstance(layer, nn.RNNCellBase):
            yield (_BATCH, layer.input_size), dtype, 2
        elif isinstance(layer, nn.modules.conv._ConvNd):
            axes = len(layer.kernel_size)
            for side in _SIDES:
                yield (_BATCH, layer.in_channels, *[side] * axes), dtype, 2
        elif isinstance(layer, nn.modules.batchnorm._NormBase):
            for axes in (0, 1, 2, 3):
                yield (_BATCH, layer.num_features, *[_LENGTH] * axes), dtype, 2
        elif isinstance(layer, nn.LayerNorm):
            yield (_BATCH, *layer.normalized_shape), dtype, 2
            yield (_BATCH, _LENGTH, *layer.normalized_shape), dtype, 2
        elif isinstance(layer, nn.MultiheadAttention):
            yield (_BATCH, _LENGTH, layer.embed_dim), dtype, 2


def _choices(shapes: list[Candidate], count: int) -> Iterator[tuple[Candidate, ...]]:
    """The same shape for every argument first, then every combination."""
    yield from ((shape,) * count for shape in shapes)
    if count > 1:
        yield from itertools.product(shapes, repeat=count)


def _runs(model: nn.Module, choice: Sequence[Candidate]) -> bool:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with preserved(model), mode, torch.no_grad():
        tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, _ in choice]
        try:
            model(*tensors)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return True  # values decide from here on, so the shapes fit
        except Exception:
            return False
    return True
