"""Run a function in a forked process that ends at a chosen file operation, as a killed one does."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.listdir", "os.scandir", "ctypes.dlsym"}

KILLED = 9


def run_until(step: int, function: Callable[[], object], below: Path) -> int:
    """The exit status: `KILLED` before the file operation number `step`; 0: there were fewer operations.

    Args:
        below: Only files that are opened below this folder count.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def count_operations(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in EVENTS or (event == "open" and str(below) in str(arguments[0])):
            count += 1
            if count == step:
                os._exit(KILLED)

    status = 1
    try:
        sys.addaudithook(count_operations)
        function()
        status = 0
    finally:
        os._exit(status)


def raced(functions: list[Callable[[], object]]) -> list[int]:
    """The exit statuses of functions that run at the same time, in a process each: 0, or 1 after an exception."""
    ready, go = os.pipe()
    children = []
    for function in functions:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(go)
                os.read(ready, 1)  # returns when the parent closes its end
                function()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(go)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(ready)
    return statuses
