"""A small convolutional network, cut below its last layer: `python examples/cnn.py` trains it beside backprop."""

import common
import torch
from torch import Tensor, nn

BATCH = 64


class CNN(nn.Module):
    """Two convolutions, one hidden layer."""

    def __init__(self, side: int = 28) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Sequential(nn.Linear(32 * (side // 4) ** 2, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.hidden(self.features(image).flatten(1)))


def build_model() -> nn.Module:
    return CNN()


def example_inputs() -> Tensor:
    return torch.rand(BATCH, 1, 28, 28)


def main() -> None:
    steps, digits = common.set_up(__doc__, 200)
    task = common.classification(digits, BATCH, cuts=["hidden"])
    common.run(lambda: CNN(digits.side), task, steps)


if __name__ == "__main__":
    main()
