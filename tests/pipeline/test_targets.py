"""Gradients that come too late are dropped, and counted; a state that goes from call to call is refused."""

import torch
from in_stages import X, made

from dni_fx.pipeline import stages
from dni_fx.pipeline.targets import Targets


def test_a_limit_of_the_age() -> None:
    stage = stages(made("linear"))[0]
    targets = Targets(stage, False, 2)
    for number in range(3):
        targets.keep(number, *stage(X))
    for number in range(3):
        targets.learn(number, [torch.zeros_like(X)], 3)
    assert targets.metrics() == {"gradients": 2, "too_old": 1, "mean_age": 1.5, "max_age": 2}


def test_an_exit_wants_no_gradients() -> None:
    stage = stages(made("unit"))[0]
    assert not Targets(stage, False, 2).wanted and Targets(stage, True, 2).wanted
    assert not Targets(stages(made("linear"))[1], True, 2).wanted
