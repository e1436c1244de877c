"""Example inputs that are given."""

import torch

from dni_fx.model.inputs import describe, to_inputs


def test_describe() -> None:
    inputs = to_inputs((torch.ones(2, 3), 4, None, [torch.ones(1), torch.tensor(2)]), {"flag": True})
    assert describe(inputs) == ("0: 2x3 float32", "1: 4", "2: None", "3: 1 float32, scalar int64", "flag: True")


def test_given() -> None:
    x = torch.ones(2)
    assert to_inputs(x, None).args == (x,)
    assert to_inputs([x, 3], None).args == (x, 3)
    assert to_inputs(None, {"a": x}) == to_inputs((), {"a": x})
    assert [t is x for t in to_inputs(({"deep": [x]}, 3), {"y": x}).tensors()] == [True, True]
    mapped = to_inputs(({"deep": [x]}, 3), None).map(lambda t: t + 1)
    assert mapped.args[0]["deep"][0].tolist() == [2, 2]
    assert mapped.args[1] == 3
