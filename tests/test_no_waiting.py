"""No step waits for the device: on a stand-in whose tensors have no values, every look at one raises an error.

The steps that may wait, by docs/other-libraries.md, come later: these are the first ones.
"""

import json
import subprocess
import sys

import pytest
import stand_in
from stand_in import FIRST, IN_TIME, OPTIONS


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    done = subprocess.run([sys.executable, str(stand_in.__file__)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", [*OPTIONS, *IN_TIME])
def test_no_look(name: str, first: str, errors: dict[str, str]) -> None:
    assert errors[f"{name}, {first} first"] == ""


def test_a_look_is_seen(errors: dict[str, str]) -> None:
    assert errors["a look"].startswith("DataDependentOutputException")
