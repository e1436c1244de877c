"""`dni_fx.shard_segments`, and what `fully_shard` must leave whole. In two processes: `test_sharding.py`."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from in_shards import Model, X, Y, by_block, sgd
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import dni_fx
from dni_fx import DniFxError
from dni_fx.graph import record_of

EXIT: dict[str, Any] = {"synthesizer": "exit", "loss": "cross_entropy"}


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def made(model: nn.Module | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"cuts": ["blocks.0", "blocks.2"], "synthesizer": "linear"} | options
    return dni_fx.transform(Model() if model is None else model, X, **options).train()


def split(net: Any) -> list[list[str]]:
    """The parameters of each group, by name."""
    names = {id(p): name for name, p in net.named_parameters()}
    states = {id(s): s for m in net.modules() if hasattr(m, "_get_fsdp_state") for s in [m._get_fsdp_state()]}
    return [sorted(names[id(p.sharded_param)] for p in s._fsdp_param_group.fsdp_params) for s in states.values()]


def test_each_segment_is_a_group() -> None:
    net = made()
    dni_fx.shard_segments(net)
    groups = [{name[:8] if "blocks" in name else name.partition(".")[0] for name in group} for group in split(net)]
    wanted: list[set[str]] = [{"stem", "blocks.0"}, {"blocks.1", "blocks.2"}, {"blocks.3", "head"}, {"position", "dni"}]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, wanted))


def test_what_exits_run_stays_whole() -> None:
    net = made(**EXIT)
    dni_fx.shard_segments(net)
    borrowed = {path for cut in net.dni.plan.cuts for path in cut.exit.borrowed}
    of_net = next(group for group in split(net) if "head.weight" in group)
    assert borrowed and borrowed <= {name.rpartition(".")[0] for name in of_net}
    assert "blocks.0.inner.weight" not in of_net


def test_what_is_refused() -> None:
    with pytest.raises(DniFxError, match="shard_segments needs a graph"):
        dni_fx.shard_segments(made(frontend="modules"))
    net = made()
    dni_fx.shard_segments(net)
    with pytest.raises(DniFxError, match="split parameters of the net already"):
        dni_fx.shard_segments(net)
    fully_shard(nn.Sequential(held := made()))
    with pytest.raises(DniFxError, match="split parameters of the net already"):
        dni_fx.shard_segments(held)


def test_blocks_whose_forward_does_not_run() -> None:
    net = made()
    by_block(net)
    with pytest.raises(DniFxError, match=r"fully_shard was called on 'blocks.0'.*dni_fx\.shard_segments"):
        net(X)


def test_exits_find_no_layer_split() -> None:
    net = made(**EXIT)
    fully_shard(net.head)
    fully_shard(net)
    with pytest.raises(DniFxError, match="exits run 'head' at a cut"):
        net(X, dni_context=Y)
    fully_shard(model := Model())
    with pytest.raises(DniFxError, match="transform the model before fully_shard splits it"):
        made(model, **EXIT)


def test_running_means_of_weights() -> None:
    net = made(synthesizer="exit(weights='ema')", loss="cross_entropy")
    fully_shard(net)
    with pytest.raises(DniFxError, match="has running means, which fully_shard splits"):
        net(X, dni_context=Y)


def test_a_model_that_was_split_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    by_block(model := Model())
    with torch.no_grad():
        expected = model(X)
    net = made(model)
    with torch.no_grad():
        assert torch.equal(model(X), expected)
        assert torch.equal(net.eval()(X), expected)


def test_a_forward_pass_that_fails() -> None:
    weights = []
    for fails in (True, False):
        net = made()
        dni_fx.shard_segments(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        optimizer = sgd(net.parameters())
        for k in range(3):
            optimizer.zero_grad()
            if fails and k == 1:
                with pytest.raises(RuntimeError, match="must match the size"):
                    net(X[:, :5])
            nn.functional.cross_entropy(net(X).float(), Y).backward()
            optimizer.step()
        weights.append([p.full_tensor() for p in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_record_of_a_model_that_was_split() -> None:
    """A layer has the same parameters in it as of a model that is whole, and so has the model itself."""
    records = []
    for splits in (False, True):
        torch.manual_seed(0)
        model = Model()
        if splits:
            by_block(model)
        net = made(model, frontend="modules")
        records.append([sorted(record_of(node).parameters) for node in net.graph.nodes])
    assert records[0] == records[1]
    assert any("position" in names for names in records[0])
