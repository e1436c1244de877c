"""A save that is killed, or runs out of space, leaves the folder of before or the new one, and nothing else."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import KILLED, raced, run_until
from nets import two_layers

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.store.destination import FILES
from dni_fx.store.digests import check_digests

X = torch.rand(4, 8)


@pytest.fixture(scope="module")
def nets() -> Any:
    made = [dni_fx.transform(two_layers(8), X, cuts=["1"], verify=False) for _ in range(2)]
    made[1].get_parameter("0.weight").data += 1
    return made


@contextmanager
def file_size(most: int) -> Iterator[None]:
    """No file may be longer: every write beyond fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def holds(folder: Path, net: Any) -> bool:
    assert check_digests(folder, FILES)
    weights = dni_fx.load(folder).get_parameter("0.weight")
    return torch.equal(weights, net.get_parameter("0.weight"))


def test_a_save_that_is_killed(nets: Any, tmp_path: Path) -> None:
    old, new = nets
    folder, found = tmp_path / "out", []
    for step in [*range(1, 40, 4), 1000]:
        dni_fx.save(old, folder, force=True)
        assert os.listdir(tmp_path) == ["out"]  # the one before was killed
        status = run_until(step, lambda: dni_fx.save(new, folder, force=True), tmp_path)
        assert status in (0, KILLED)
        assert check_digests(folder, FILES)
        found.append((folder / "weights.safetensors").read_bytes())
    assert len(set(found)) == 2 and found[0] != found[-1] and holds(folder, new)


def test_of_two_saves_of_one_new_name_one_succeeds(nets: Any, tmp_path: Path) -> None:
    statuses = raced([lambda: dni_fx.save(nets[0], tmp_path / "out"), lambda: dni_fx.save(nets[1], tmp_path / "out")])
    assert sorted(statuses) == [0, 1]
    assert holds(tmp_path / "out", nets[statuses.index(0)]) and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("most", [0, 700, 1500])
def test_no_space(most: int, nets: Any, tmp_path: Path) -> None:
    dni_fx.save(nets[0], tmp_path / "out")
    dni_fx.save_checkpoint(tmp_path / "run.pt", nets[0])
    whole = (tmp_path / "run.pt").read_bytes()
    calls: list[Any] = [
        lambda: dni_fx.save(nets[1], tmp_path / "out", force=True),
        lambda: dni_fx.save(nets[1], tmp_path / "new"),
        lambda: dni_fx.save_checkpoint(tmp_path / "run.pt", nets[1]),
    ]
    for call in calls:
        with pytest.raises(DniFxError, match="cannot write") as caught, file_size(most):
            call()
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["out", "run.pt"] and (tmp_path / "run.pt").read_bytes() == whole
    assert holds(tmp_path / "out", nets[0])


def test_a_checkpoint_that_is_killed(nets: Any, tmp_path: Path) -> None:
    path, status = tmp_path / "run.pt", KILLED
    for step in range(1, 40, 3):
        dni_fx.save_checkpoint(path, nets[0], number=0)
        assert os.listdir(tmp_path) == ["run.pt"]
        status = run_until(step, lambda: dni_fx.save_checkpoint(path, nets[1], number=1), tmp_path)
        assert dni_fx.load_checkpoint(path, nets[0])["number"] in ((1,) if status == 0 else (0, 1))
        if status == 0:
            break
    assert status == 0


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(mask: int, nets: Any, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        dni_fx.save(nets[0], tmp_path / "out")
        dni_fx.save_checkpoint(tmp_path / "run.pt", nets[0])
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    for path in [tmp_path / "run.pt", *(tmp_path / "out").iterdir()]:
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path.name
