"""Nets whose cuts have exits: each with one thing that is hard for a route, and with its loss, inputs and target."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dni_fx
from dni_fx.compiler import rewrite
from dni_fx.model.inputs import to_inputs
from dni_fx.planning import Request, capture_and_plan
from dni_fx.plans import Plan
from dni_fx.runtime.module import DecoupledModule
from dni_fx.settings import Settings, loss_function


class Attention(nn.Module):
    """One residual block: attention, then a small MLP, with a layer norm before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Three residual blocks, a final norm, and logits at each position (N, T, K)."""

    def __init__(self, width: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class ConvBlock(nn.Module):
    """A residual block with batch norm; a convolution in the shortcut where the shape changes."""

    def __init__(self, below: int, above: int, stride: int, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(below, above, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(above)
        self.conv2 = nn.Conv2d(above, above, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(above)
        self.relu = nn.ReLU(inplace)
        self.shortcut = nn.Identity() if below == above else nn.Conv2d(below, above, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        shortcut = self.shortcut(x)
        y = y.add_(shortcut) if self.inplace else y + shortcut
        return self.relu(y)


class ResNet(nn.Module):
    """Four residual blocks with in-place activations; the third changes the shape."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        shapes = [(3, 3, 1), (3, 3, 1), (3, 4, 2), (4, 4, 1)]
        self.blocks = nn.Sequential(*(ConvBlock(*shape, inplace) for shape in shapes))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def plain_mlp(inplace: bool = False) -> nn.Module:
    """Four hidden layers of equal width."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.ReLU(inplace=inplace))]
    return nn.Sequential(*layers, nn.Linear(6, 3))


class UNet(nn.Module):
    """A map to a map, with two skips that cross the cuts in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up2, self.up1 = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.down1(x))
        b = torch.relu(self.down2(a))
        m = torch.relu(self.middle(b))
        c = F.interpolate(torch.relu(self.up2(torch.cat([m, b], 1))), scale_factor=2.0)
        return self.up1(torch.cat([c, a], 1))


class Writes(nn.Module):
    """Writes to values in place, and then reads them by another name; also to an output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        k = self.b(h)
        k.add_(h)
        j = self.c(torch.tanh(k))
        j.view(-1, 2, 3).mul_(2)
        y = self.d(torch.relu(j))
        y.mul_(3)
        return y


class TwoOutputs(nn.Module):
    """Three hidden layers, and two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.u, self.v = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))))
        return {"u": self.u(h), "v": self.v(h)}


class OwnLoss(nn.Module):
    """Takes labels, and returns the loss beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TwoOutputs()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)["u"]
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def autoencoder() -> nn.Module:
    widths = [6, 5, 3, 5, 6]
    layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class Attends(nn.Module):
    """Attention from x to y, a sum, and a norm after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.norm = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        k, v = self.kv(y).chunk(2, -1)
        return self.norm(x + F.scaled_dot_product_attention(self.q(x), k, v))


class EncoderDecoder(nn.Module):
    """Post-norm, with cross attention: the output of the encoder enters each layer of the decoder."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.encoder, self.own, self.cross = (
            nn.ModuleList(Attends(width) for _ in range(layers)) for layers in (3, 2, 2)
        )
        self.head = nn.Linear(width, width)

    def forward(self, source: Tensor, x: Tensor) -> Tensor:
        for layer in self.encoder:
            source = layer(source, source)
        for own, cross in zip(self.own, self.cross, strict=True):
            x = cross(own(x, x), source)
        return self.head(x)


def at_positions(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


def of_both(outputs: dict[str, Tensor], target: dict[str, Any]) -> Tensor:
    return F.mse_loss(outputs["u"], target["u"]) + F.mse_loss(outputs["v"], target["more"][0])


@dataclass(frozen=True, eq=False)
class Case:
    """A net with the call that trains it.

    Attributes:
        target: The `dni_context` of the call; None: the call gives none.
        cuts: Names of modules or nodes, from below.
        loss: None: the model returns its own.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    target: Any
    cuts: list[str]
    loss: Any

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next((t.dtype for t in self.inputs if t.is_floating_point()), torch.float64)

    @property
    def context(self) -> dict[str, Any]:
        return {} if self.target is None else {"dni_context": self.target}

    def net(
        self, synthesizer: str = "exit", cuts: Any = None, *, frontend: str = "fx", loss: Any = None, **options: Any
    ) -> DecoupledModule:
        """The rewritten net; a model is captured once for each front end and choice of cuts."""
        module, plan = _captured(self, frontend, tuple(self.cuts) if cuts is None else cuts)
        settings = Settings(loss=self.loss if loss is None else loss, **options)
        return rewrite(copy.deepcopy(module), plan, synthesizer, settings).train()

    def transform(self, model: nn.Module | None = None, **options: Any) -> DecoupledModule:
        """What `dni_fx.transform` makes."""
        chosen = {"cuts": self.cuts, "loss": self.loss, "synthesizer": "exit", "verify": False} | options
        return dni_fx.transform(self.model() if model is None else model, self.inputs, **chosen).train()

    def value(self, outputs: Any) -> Tensor:
        """The loss that the training loop computes."""
        if self.loss is None:
            found: Tensor = outputs["loss"]
            return found
        target = self.inputs[0] if self.target is None else self.target
        result: Tensor = loss_function(self.loss)(outputs, target)
        return result

    def step(self, net: nn.Module) -> dict[str, Tensor]:
        """The gradients of one step of a rewritten net, by the names of the model's parameters."""
        net.zero_grad()
        self.value(net(*self.inputs, **self.context)).backward()
        return gradients(net)

    def backprop(self) -> dict[str, Tensor]:
        """The gradients of one step of the plain model."""
        model = self.model()
        self.value(model(*self.inputs)).backward()
        return gradients(model)


@functools.cache
def _captured(made: Case, frontend: str, cuts: Any) -> tuple[DecoupledModule, Plan]:
    example = to_inputs(made.inputs, None)
    chosen = list(cuts) if isinstance(cuts, tuple) else cuts
    request = Request(chosen, "exit", Settings(loss=made.loss), frontend=frontend, verify=False)
    return capture_and_plan(made.model(), example, request)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Gradients of the model's own parameters by name, where there are any."""
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None and not n.startswith("dni.")}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients; infinity if their names differ."""
    if set(found) != set(expected):
        return float("inf")
    return max((float((found[name] - expected[name]).detach().abs().max()) for name in expected), default=0.0)


def in_float64(value: Any) -> Any:
    """Every tensor of floats in a nested value in float64."""
    return torch.utils._pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, value
    )


_draw = torch.Generator().manual_seed(0)


def _rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=_draw)


def _labels(count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape, generator=_draw)


CASES = [
    Case("transformer", Transformer, (_labels(5, 2, 4),), _labels(5, 2, 4), ["blocks.0", "blocks.1"], at_positions),
    Case("resnet", ResNet, (_rand(4, 1, 4, 4),), _labels(3, 4), ["blocks.0", "blocks.2"], "cross_entropy"),
    Case("mlp", plain_mlp, (_rand(4, 6),), _labels(3, 4), ["1", "3"], "cross_entropy"),
    Case("unet", UNet, (_rand(2, 1, 4, 4),), _labels(2, 2, 4, 4), ["relu_1", "relu_2"], "cross_entropy"),
    Case(
        "two outputs",
        TwoOutputs,
        (_rand(4, 6),),
        {"u": _rand(4, 3), "more": [_rand(4, 1)]},
        ["tanh", "tanh_1"],
        of_both,
    ),
    Case("own loss", OwnLoss, (_rand(4, 6), _labels(3, 4)), None, ["net.a", "net.b"], None),
    Case("writes", Writes, (_rand(4, 6),), _labels(3, 4), ["tanh", "b"], "cross_entropy"),
    Case("autoencoder", autoencoder, (_rand(4, 6),), None, ["1", "3"], "mse_loss"),
    Case(
        "encoder-decoder",
        EncoderDecoder,
        (_rand(2, 3, 6), _rand(2, 5, 6)),
        _rand(2, 5, 6),
        ["encoder.0", "cross.0"],
        "mse_loss",
    ),
]
NETS = {case.name: replace(case, inputs=in_float64(case.inputs), target=in_float64(case.target)) for case in CASES}
NAMES = list(NETS)
