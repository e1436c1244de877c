"""What long work announces: each of its parts, and a share that grows from 0 towards 1."""

import torch
from nets import Stack

import dni_fx
from dni_fx.progress import announce, announced_to

X = torch.rand(4, 6)


def test_the_parts_of_a_capture_and_of_a_check() -> None:
    announce("nobody listens", 0)
    parts: list[tuple[str, float]] = []
    with announced_to(lambda part, done: parts.append((part, done))):
        net = dni_fx.transform(Stack(), X, cuts=2, frontend="export")
    assert [part for part, _ in parts] == [
        "running the model",
        "front end export",
        "comparing the capture with the model",
        "looking for the axes of the batch",
        "choosing the cuts",
    ]
    checks: list[tuple[str, float]] = []
    with announced_to(lambda part, done: checks.append((part, done))):
        report = dni_fx.check(net, X)
    assert [part for part, _ in checks[1:]] == [check.name for check in report.checks]
    for announced in (parts, checks):
        shares = [done for _, done in announced]
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1
