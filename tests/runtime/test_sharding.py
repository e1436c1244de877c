"""`fully_shard`: two processes, each with half of the batch and shards of the net, train what one process trains."""

from typing import Any

import pytest
import torch
from in_shards import CASES, process, trained
from processes import in_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return in_processes(process, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize(("place", "name"), CASES)
def test_two_processes_train_what_one_does(place: str, name: str, found: list[dict[Any, Any]]) -> None:
    alone = trained(place, name, slice(None), split=False)
    for one, other in ((here[place, name] for here in found), (alone, found[0][place, name])):
        # The names of the synthesizers are others with the front end modules.
        for own, its in zip(one.values(), other.values(), strict=True):
            torch.testing.assert_close(own, its, rtol=1e-5, atol=1e-6)
