"""DistributedDataParallel: two processes, each with half of the batch, train what one trains with all of it."""

from typing import Any

import pytest
import torch
from processes import in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import CUT_IN_TIME, HELD, OPTIONS, Holder, X, in_windows, process, trained

import dni_fx


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(process, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", [*OPTIONS, "accumulated"])
def test_two_processes_train_what_one_does(name: str, found: list[dict[str, Any]]) -> None:
    alone = trained("backward" if name == "accumulated" else name, slice(None), False, name == "accumulated")
    for key, value in alone.named_parameters():
        assert torch.equal(found[0][name][key], found[1][name][key]), key
        torch.testing.assert_close(found[0][name][key], value, msg=key, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HELD)
def test_two_processes_train_a_net_inside_of_a_module(name: str, found: list[dict[str, Any]]) -> None:
    for key, value in trained(name, slice(None), False, held=True).named_parameters():
        own = [here[f"{name}, held"][key] for here in found]
        assert torch.equal(*own), key
        torch.testing.assert_close(own[0], value, msg=key, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CUT_IN_TIME)
def test_two_processes_go_from_window_to_window_as_one_does(name: str, found: list[dict[str, Any]]) -> None:
    for k, alone in enumerate(in_windows(name, slice(None), False)):
        one, other = (here[name][k] for here in found)
        for key, gradient in one.items():
            assert torch.equal(gradient, other[key]), key
            # Alone, the synthesizer takes no part where nothing comes back.
            wanted = alone.get(key, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, wanted, msg=f"{key}, window {k}", rtol=1e-4, atol=1e-6)
        assert any(gradient.any() for key, gradient in one.items() if key.startswith("dni.time")) == (k > 0)


def test_a_wrapper_without_a_reducer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dni_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), X, cuts=["1"]).train()
    wrapper = DistributedDataParallel.__new__(Ignoring)
    nn.Module.__init__(wrapper)
    wrapper.module = Holder(net)
    monkeypatch.setattr("dni_fx.runtime.averaging._wrapper", lambda: wrapper)
    with pytest.raises(dni_fx.DniFxError, match="must wrap the net itself"):
        net(X)


class Ignoring(DistributedDataParallel):
    parameters_to_ignore: set[str] = set()
    _use_python_reducer = True
