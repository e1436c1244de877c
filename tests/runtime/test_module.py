"""The rewritten net of each front end: its class, and its copies."""

import copy
import pickle

import pytest
import torch
from nets import perceptron

import dni_fx
from dni_fx.runtime.flat import FlatModule
from dni_fx.runtime.hooked import HookedModule
from dni_fx.runtime.module import DecoupledModule

X = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("frontend", "cls"), [("fx", DecoupledModule), ("export", FlatModule), ("modules", HookedModule)]
)
def test_a_copy_has_the_same_class_and_an_original_of_its_own(frontend: str, cls: type[DecoupledModule]) -> None:
    net = dni_fx.transform(perceptron(), X, cuts=2, frontend=frontend)
    assert isinstance(net, cls)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert isinstance(copied, cls)
        assert type(copied.dni_captured) is type(net.dni_captured)
        original = copied.dni_captured.original
        assert original is not None and original is not net.dni_captured.original
        shared = dict(copied.named_parameters())
        assert all(shared[name] is parameter for name, parameter in original.named_parameters())
        for mode in (True, False):
            torch.manual_seed(0)
            expected = net.train(mode)(X)
            torch.manual_seed(0)
            torch.testing.assert_close(copied.train(mode)(X), expected)
