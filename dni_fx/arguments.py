"""The kinds of values that the public arguments take: one table, one check, one form of message."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dni_fx.errors import DniFxError, described

__all__ = ["FRONTENDS", "KINDS", "Kind", "check_arguments"]

FRONTENDS = ("fx", "export", "modules")  # in the order in which "auto" tries them

MOST = 2**31 - 1  # of counts and sizes: torch fails above with errors of its own


@dataclass(frozen=True)
class Kind:
    """The values that an argument takes: a test, and the same in words."""

    words: str
    takes: Callable[[Any], bool]

    def or_none(self) -> "Kind":
        """The same kind, and None."""
        return Kind(f"{self.words}, or None", lambda value: value is None or self.takes(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


def _are_positive(value: object) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(_is_positive(one) for one in value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return _is_number(value) and bool(0.0 <= value <= 1.0)


def _is_mix(value: Any) -> bool:
    if not isinstance(value, tuple):
        return _is_share(value)
    start_and_end, steps = value[:2], value[2:]
    return len(value) == 3 and all(map(_is_share, start_and_end)) and all(map(_is_count, steps))


def _is_cuts(value: Any) -> bool:
    if _is_whole(value):
        return bool(2 <= value <= MOST)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, str) or hasattr(value, "fingerprint")  # a Plan


def _is_factory(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module | torch.optim.Optimizer)


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return value is None or isinstance(value, bool)
    return all(isinstance(k, str) and (_is_whole(v) or isinstance(v, str)) for k, v in value.items())


def whole(words: str, least: int) -> Kind:
    """A whole number of `least` or more."""
    return Kind(words, lambda value: _is_whole(value) and least <= value <= MOST)


def one_of(*names: str) -> Kind:
    """One of these texts."""
    return Kind(f"there are {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


POSITIVE = Kind("a positive number", _is_positive)
SHARE = Kind("a share, 0 to 1", _is_share)
SWITCH = Kind("give True or False", lambda value: isinstance(value, bool))
MODEL = Kind("an nn.Module", lambda value: isinstance(value, nn.Module))
OPTIMIZER = Kind("a torch optimizer", lambda value: isinstance(value, torch.optim.Optimizer))
TRAINING = Kind("a dni_fx.Training", lambda value: hasattr(value, "for_time"))
MIX = Kind(
    "the share of the true gradient lies between 0 and 1; a schedule is (start, end, steps), as in (1.0, 0.0, 1000)",
    _is_mix,
)
KEYWORDS = Kind(
    "a dict of keyword arguments, by name",
    lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
)

# By the name of the argument; where a class or function has another kind under the same name, by "owner.name".
KINDS: dict[str, Kind] = {
    # how the model is captured and cut
    "example_kwargs": KEYWORDS.or_none(),
    "cuts": Kind(
        "a number of segments is 2 or more; or give 'auto', a list of names of modules or nodes, 'every:Class', "
        "'leaves', 'marked' or a Plan",
        _is_cuts,
    ),
    "synthesizer": Kind(
        "a name, as in 'mlp(hidden_layers=2)', or a class or function that makes a synthesizer",
        lambda value: isinstance(value, str) or _is_factory(value),
    ),
    "frontend": one_of("auto", *FRONTENDS),
    "verify": SWITCH,
    "profile": SWITCH,
    "state": Kind('True, or a dict such as {"hidden": 1}', _is_state),
    "objective": one_of("memory", "throughput"),
    "memory_budget": Kind(
        "a number of bytes, or a text such as '2GiB'", lambda value: _is_whole(value) or isinstance(value, str)
    ).or_none(),
    "synthesizer_share": Kind("a number above 0, as in 0.05 for 5 % of a step", _is_positive).or_none(),
    "speeds": Kind("a positive number for each segment, as in (1, 0.5)", _are_positive).or_none(),
    "inside": one_of("keep", "checkpoint"),
    # how the cuts are rewritten
    "unlock": one_of("none", "backward"),
    "mix": MIX,
    "classes": whole("the number of classes must be 2 or more, a whole number", 2).or_none(),
    "context_size": whole("the number of entries of the context must be 1 or more, a whole number", 1).or_none(),
    "context_from": Kind(
        "the name of an argument of the model, or a key of one that is a dict", lambda value: isinstance(value, str)
    ).or_none(),
    "loss": Kind(
        "a function of (output, labels), or its name in torch.nn.functional, such as 'cross_entropy'",
        lambda value: isinstance(value, str) or callable(value),
    ).or_none(),
    # how the synthesizers are trained
    "training": TRAINING,
    "SegmentOptimizer.training": TRAINING.or_none(),
    "scale": Kind('a positive number, "rms", or None', lambda v: v is None or v == "rms" or _is_positive(v)),
    "clip": Kind("the largest norm of a target is a positive number, or None", lambda v: v is None or _is_positive(v)),
    "warmup": whole("a number of steps, 0 or more", 0),
    "every": whole("a number of steps, 1 or more", 1),
    "lr": Kind("the multiple of the learning rate is a positive number", lambda v: v is None or _is_positive(v)),
    "Training.optimizer": Kind(
        "a function from parameters to an optimizer, such as torch.optim.Adam, or None",
        lambda value: value is None or _is_factory(value),
    ),
    "discount": SHARE,
    "centered": Kind("True, False or None", lambda value: value is None or isinstance(value, bool)),
    "auxiliary": Kind("the weight of a loss is 0 or more", lambda v: _is_positive(v) or (_is_number(v) and v == 0)),
    "horizon": whole("a number of windows, 1 or more", 1),
    "trace": SHARE,
    # the step
    "step": one_of("loop", "segment"),
    "accumulate": whole("the number of batches whose gradients are accumulated, 1 or more", 1).or_none(),
    "factor": Kind("the number by which the loop multiplies the loss, above 0", _is_positive),
    "scaler": Kind("a torch.amp.GradScaler", lambda value: isinstance(value, torch.amp.GradScaler)).or_none(),
    "compile": Kind(
        "True, False, or a dict of arguments for torch.compile",
        lambda value: isinstance(value, bool) or KEYWORDS.takes(value),
    ),
    # `dni_fx.DNI`
    "DNI.network": MODEL,
    "dni_params": KEYWORDS.or_none(),
    "optim": OPTIMIZER.or_none(),
    "grad_lr": POSITIVE,
    "hidden_size": whole("a whole number, 1 or more", 1).or_none(),
    "λ": MIX,
    "lam": MIX.or_none(),
    "recursive": SWITCH,
    "skip_last_layer": SWITCH,
    "gpu_id": whole("the number of a CUDA device, or -1", -1),
    # files, and measurements
    "force": SWITCH,
    "model": MODEL.or_none(),
    "model_or_graph": Kind("a model, or its fx.Graph", lambda value: isinstance(value, nn.Module | torch.fx.Graph)),
    "steps": whole("two or more, for a spread", 2),
    "compare.steps": whole("10 or more", 10),
    "compare.optimizer": Kind(
        "a function from parameters to an optimizer, such as torch.optim.Adam", lambda value: _is_factory(value)
    ),
    "compare.model": MODEL,
    "compare.seed": whole("0 or more", 0),
    "ways": Kind(
        "a list of dicts of arguments of dni_fx.transform, such as [{'cuts': 2}]",
        lambda value: isinstance(value, list | tuple) and all(KEYWORDS.takes(way) for way in value),
    ),
    "others": SWITCH,
}


def check_arguments(values: Mapping[str, Any], owner: str = "") -> None:
    """Check values by the table `KINDS`; names that are not in the table are left out.

    Raises:
        DniFxError: If a value is not of its kind; the message names the argument, the value and the kind.
    """
    for name, value in values.items():
        kind = KINDS.get(f"{owner}.{name}") or KINDS.get(name)
        if kind is not None and not kind.takes(value):
            words = "the number is too large" if _is_whole(value) and value > MOST else kind.words
            raise DniFxError(f"{name}={described(value)}: {words}")
