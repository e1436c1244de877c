"""What every test runs with: one thread, one seed, and the option `--fuzz`."""

import gc

import pytest
import torch

torch.set_num_threads(1)  # threads that wait for each other make small tensors ten times slower on a busy machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=float, default=1, help="how many times as much to fuzz")


def pytest_collection_finish() -> None:
    gc.freeze()  # torch and the tests stay alive: collections need not look at them


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers whichever tests run: a tiny ReLU net may be dead on some."""
    torch.manual_seed(0)
