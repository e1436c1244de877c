"""What a stage that `fully_shard` has split cannot train with. Runs: see test_schedule.py."""

from collections.abc import Iterator
from typing import Any

import pytest
from in_pipeline import optimizer_of
from in_stages import loss_of, made
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, stages


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "stage"))
    distributed.destroy_process_group()


def refused(mesh: DeviceMesh, stage: Any, message: str, **options: Any) -> None:
    options = {"optimizer": optimizer_of(stage), "sync": True, "group": mesh["stage"].get_group()} | options
    with pytest.raises(DniFxError, match=message):
        ScheduleDecoupled(stage, 2, loss_of, **options).step()


def test_an_optimizer_of_whole_parameters(mesh: DeviceMesh) -> None:
    stage = stages(made("linear"))[0]
    optimizer = optimizer_of(stage)
    fully_shard(stage, mesh=mesh["replica"])
    refused(mesh, stage, r"make it after fully_shard\(stage\)", optimizer=optimizer)


def test_replicas_that_average_shards(mesh: DeviceMesh) -> None:
    stage = fully_shard(stages(made("linear"))[0], mesh=mesh["replica"])
    refused(mesh, stage, "omit replicas=", replicas=mesh["replica"].get_group())


def test_a_mesh_of_several_stages(mesh: DeviceMesh) -> None:
    stage = fully_shard(stages(made("linear"))[0], mesh=mesh["stage"])
    refused(mesh, stage, "over processes that have other stages")


def test_a_part_of_a_stage(mesh: DeviceMesh) -> None:
    net = made("linear")
    fully_shard(stages(net)[1].get_submodule("4"), mesh=mesh["replica"])
    refused(mesh, stages(net)[1], "has split the net, or a part of the stage")


def test_synthesizers_that_learn_late(mesh: DeviceMesh) -> None:
    stage = fully_shard(stages(made("linear"))[0], mesh=mesh["replica"])
    refused(mesh, stage, r"late to the synthesizers of stage 0.*ignored_params=stage\.late_parameters", sync=False)
