"""Sequential in 2 segments, written by dni-fx.

Importing it gives the class with fresh weights; `dni_fx.load(folder)` reads the trained ones.
"""

import torch

import dni_fx.artifact
import dni_fx.ops


class Sequential(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("0", torch.nn.Linear(in_features=3, out_features=4))
        self.add_module("1", torch.nn.ReLU())
        self.add_module("2", torch.nn.Linear(in_features=4, out_features=2))
        self.dni = dni_fx.artifact.read_dni(__file__)

    def forward(self, input):
        input_1 = input
        _0 = getattr(self, "0")(input_1)
        _1 = getattr(self, "1")(_0)
        _1_detached = _1.detach()
        _1_synthetic = self.dni.cut0__1(_1_detached)
        dni_segment0 = self.dni.segment0
        decouple = dni_fx.ops.decouple((_1,), (_1_detached,), (_1_synthetic,), dni_segment0)
        _1_next = decouple[0]
        _2 = getattr(self, "2")(_1_next)
        return _2
