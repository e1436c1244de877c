"""Two processes, each with a stage: in sync they train the net of one process; else none waits for one above it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from in_pipeline import MICROBATCHES, NAMES, REPLICATED, STEPS, SYNCED, one_by_one, optimizer_of, process, trained
from in_stages import loss_of, made
from processes import in_processes
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from dni_fx import DniFxError
from dni_fx.pipeline import ScheduleDecoupled, load, stages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_microbatches": 0}, "n_microbatches=0: a whole number, 1 or more"),
        ({"refresh": 0}, "refresh=0"),
        ({"timeout": 0}, "timeout=0: expected seconds, more than 0"),
        ({"max_age": True}, "max_age=True"),
        ({"loss_fn": None}, r"the last stage needs loss_fn"),
        ({"optimizer": None}, r"give optimizer=, or sync=True"),
        ({"optimizer": torch.optim.Adam}, "expected a torch optimizer"),
        ({"sync": True, "elastic": True}, "elastic=True needs sync=False"),
        ({"stage": torch.nn.Linear(2, 2)}, r"expected one of dni_fx\.pipeline\.stages"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    stage = stages(made("linear"))[1]
    given: dict[str, Any] = {"stage": stage, "n_microbatches": 2, "loss_fn": loss_of, "optimizer": optimizer_of(stage)}
    with pytest.raises(DniFxError, match=message):
        ScheduleDecoupled(**given | options)


def test_no_process_group() -> None:
    stage = stages(made("linear"))[1]
    with pytest.raises(DniFxError, match=r"call torch\.distributed\.init_process_group"):
        ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer_of(stage)).step()


def test_no_gloo() -> None:
    stage = stages(made("linear"))[1]
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        with pytest.raises(DniFxError, match=r"the backend cpu:fake.*; the messages of a pipeline need gloo, too"):
            ScheduleDecoupled(stage, 2, loss_of, optimizer=optimizer_of(stage)).step()
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(process, tmp_path_factory.mktemp("pipeline"), 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "segments"), SYNCED)
def test_in_sync_the_weights_are_those_of_one_process(name: str, segments: int, found: list[dict[str, Any]]) -> None:
    """Also with more segments than stages, and with weights that two stages have."""
    wanted = trained(name, segments)
    for here in found[:2]:
        for key, value in here["synced"][f"{name} {segments}"].items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
def test_with_exits_each_stage_trains_by_itself(found: list[dict[str, Any]]) -> None:
    wanted = one_by_one("copy", 2)
    seen = set()
    for here in found[:2]:
        for key in here["unsynced"]["copy"].keys() & wanted.keys():
            torch.testing.assert_close(here["unsynced"]["copy"][key], wanted[key], rtol=1e-6, atol=1e-6, msg=key)
            seen.add(key)
    assert seen == wanted.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "copy"])
def test_what_is_sent(name: str, found: list[dict[str, Any]]) -> None:
    below, above = (here["unsynced"][name]["metrics"] for here in found[:2])
    learns = name in ("linear", "labels")
    assert below["updates"] == above["updates"] == MICROBATCHES * (STEPS + 1)
    assert below["bytes_up"] > 0 and above["bytes_up"] == below["bytes_down"] == 0
    assert (above["bytes_down"] > 0) is learns
    assert (below.get("gradients", 0) > 0) is learns and "gradients" not in above
    assert 0 <= below["waited"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "segments", "how"), REPLICATED)
def test_two_pipelines_train_what_one_process_does(
    name: str, segments: int, how: str, found: list[dict[str, Any]]
) -> None:
    """Their replicas average gradients, or each stage is split over them."""
    wanted = trained(name, segments)
    for here in found:
        for key, value in here["replicated"][f"{name} {segments} {how}"].items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
def test_stages_that_are_split_train_with_exits_what_replicas_do(found: list[dict[str, Any]]) -> None:
    for here in found:
        averaged, split = (here["unsynced replicated"][how] for how in ("averaged", "split"))
        for key in averaged.keys() - {"metrics"}:
            torch.testing.assert_close(split[key], averaged[key], rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
def test_synthesizers_that_are_not_split_learn_late(found: list[dict[str, Any]]) -> None:
    """Gradients come to each replica at times of its own; their average counts in all."""
    runs = [here["unsynced replicated"]["split but late"] for here in found]
    for one, other in ((runs[0], runs[2]), (runs[1], runs[3])):
        assert all(torch.equal(one[key], other[key]) for key in one.keys() - {"metrics"})
    assert all(runs[rank]["metrics"]["gradients"] > 0 for rank in (0, 2))


@pytest.mark.slow
def test_a_copy_of_weights_that_are_split(found: list[dict[str, Any]]) -> None:
    for replica in range(2):
        below, above = (found[2 * replica + stage]["copied"] for stage in range(2))
        assert not torch.equal(below[-1], below[0])
        assert all(any(torch.equal(copy, value) for value in above) for copy in below)


@pytest.mark.slow
def test_whole_stages_go_on_where_split_ones_were(found: list[dict[str, Any]]) -> None:
    stage = stages(made("unit", 3), 2)[1]
    schedule = ScheduleDecoupled(stage, MICROBATCHES, loss_of, optimizer=optimizer_of(stage), sync=True)
    assert load(Path(found[0]["folder"]) / "unit", schedule) == 2 * STEPS
    wanted = found[1]["resumed"]["unit"]["stopped"]
    assert all(torch.equal(value, wanted[key]) for key, value in stage.state_dict().items())


@pytest.mark.slow
def test_outputs_and_losses(found: list[dict[str, Any]]) -> None:
    below, above = (here["unsynced"]["linear"] for here in found[:2])
    assert (below["sizes"], below["losses"]) == ([None, None], 0)
    assert (above["sizes"], above["losses"]) == ([8, 8], MICROBATCHES * STEPS)


@pytest.mark.slow
def test_a_slow_stage_slows_those_below(found: list[dict[str, Any]]) -> None:
    """Few microbatches wait between two stages."""
    passed, begun = (here["slow"] for here in found[:2])
    ahead = [sum(time < begin for time in passed) - k for k, begin in enumerate(begun)]
    assert len(begun) == 30 and 3 <= max(ahead) <= 11


@pytest.mark.slow
def test_processes_that_do_not_fit_are_refused_in_both(found: list[dict[str, Any]]) -> None:
    for here in found[:2]:
        assert here["refused"] == "stage 0 (rank 0) has microbatches=2, and stage 1 (rank 1) has microbatches=3"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "copy", "unit"])
def test_a_run_that_goes_on_has_the_same_numbers(name: str, found: list[dict[str, Any]]) -> None:
    """The one named "unit" has stages that are split."""
    for here in found if name == "unit" else found[:2]:
        through, stopped = here["resumed"][name]["through"], here["resumed"][name]["stopped"]
        assert all(torch.equal(through[key], stopped[key]) for key in through)


@pytest.mark.slow
def test_another_number_of_stages_goes_on(found: list[dict[str, Any]]) -> None:
    """A checkpoint of two processes, read as three stages: weights and momentum of each parameter are there."""
    ends = [here["resumed"]["linear"] for here in found[:2]]
    wanted = ends[0]["stopped"] | ends[1]["stopped"]
    momentum = ends[0]["momentum"] | ends[1]["momentum"]
    for stage in stages(made("linear", 3)):
        optimizer = optimizer_of(stage)
        schedule = ScheduleDecoupled(stage, MICROBATCHES, loss_of, optimizer=optimizer, sync=True)
        assert load(Path(found[0]["folder"]) / "linear", schedule) == 2 * STEPS
        assert all(torch.equal(value, wanted[key]) for key, value in stage.state_dict().items())
        for name, parameter in stage.named_parameters():
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum[name])
