"""The paper's MNIST network: three hidden layers of 256 with batch norm, cut and trained on synthetic gradients.

dni-fx rewrite examples/mlp.py --cuts 2      shows the rewrite
python examples/mlp.py                       trains it beside backprop on real digits
"""

import common
import torch
from torch import Tensor, nn

BATCH = 256


class MLP(nn.Module):
    """784-256-256-256-10."""

    def __init__(self, pixels: int = 784) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(pixels, 256), nn.BatchNorm1d(256)
        self.fc2, self.bn2 = nn.Linear(256, 256), nn.BatchNorm1d(256)
        self.fc3, self.bn3 = nn.Linear(256, 256), nn.BatchNorm1d(256)
        self.head = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        h1 = self.bn1(self.fc1(image.flatten(1))).relu()
        h2 = self.bn2(self.fc2(h1)).relu()
        h3 = self.bn3(self.fc3(h2)).relu()
        return self.head(h3)


def build_model() -> nn.Module:
    return MLP()


def example_inputs() -> Tensor:
    return torch.rand(64, 1, 28, 28)


def main() -> None:
    steps, digits = common.set_up(__doc__, 1000)
    task = common.classification(digits, BATCH, cuts=2)
    common.run(lambda: MLP(digits.side**2), task, steps)


if __name__ == "__main__":
    main()
