"""Find example inputs by trial: run shapes that fit the first layers under fake tensors."""

import inspect
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from dni_fx.errors import DniFxError
from dni_fx.model.fake import any_fake, fake_mode, quiet
from dni_fx.model.inputs import Inputs
from dni_fx.model.preserve import preserved
from dni_fx.model.specs import example_tensor

__all__ = ["probe"]

_BATCH, _LENGTH, _LAYERS, _TRIES = 4, 16, 6, 128
_SHOWN = 4  # arguments in a message

_SIDES = (32, 64, 224, 28, 128, 16)

Candidate = tuple[tuple[int, ...], torch.dtype, int]


def probe(model: nn.Module) -> Inputs:
    """Inputs of a shape that the model accepts, found by running the model under fake tensors.

    For each argument without a default, the shapes tried are shapes that fit the first layers with parameters.

    Raises:
        DniFxError: If no shape fits.
    """
    required = _required_arguments(model)
    shapes = list(dict.fromkeys(itertools.islice(_candidates(model), 64)))
    fitting: list[Inputs] = []
    for choice in itertools.islice(_choices(shapes, len(required)), _TRIES):
        if _runs(model, choice):
            fitting.append(_example(model, choice))
            if any_fake(model.parameters()) or _takes(model, fitting[-1]):
                return fitting[-1]
    if fitting:  # forward refuses the values of all of them: the error of a call says more
        return fitting[0]
    raise DniFxError(
        f"no example inputs for {type(model).__name__}.forward({_arguments(model)}), and no shape that was tried "
        "fits: give --input SHAPE for each argument, such as --input input_ids=2x16:int64:0-100, or `example_inputs` "
        "or `example_kwargs` in the file, or example_inputs=... in code"
    )


def _arguments(model: nn.Module) -> str:
    """The first arguments of forward, in words."""
    names = list(inspect.signature(model.forward).parameters)
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])


def _example(model: nn.Module, choice: Sequence[Candidate]) -> Inputs:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=()):
        tensors = tuple(example_tensor(shape, dtype, 0, high).to(device) for shape, dtype, high in choice)
    return Inputs(tensors, {}, "probed")


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
    mode = fake_mode([*model.parameters()])
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with preserved(model), quiet(), mode, torch.enable_grad():  # forward may differentiate itself
        tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, _ in choice]
        try:
            model(*tensors)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return True  # forward has come to a branch on values, so the shapes fit
        except Exception:  # user code may raise any error on inputs of a wrong shape
            return False
    return True


def _takes(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model runs on real tensors: on fake ones some operations take a dtype that they refuse else."""
    with preserved(model), quiet(), torch.enable_grad():
        try:
            model(*inputs.map(torch.clone).args)
        except Exception:  # user code may raise any error on values
            return False
    return True
