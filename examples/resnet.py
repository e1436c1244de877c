"""A residual network with in-place activations and skips: `python examples/resnet.py` trains it beside backprop."""

import common
import torch
from torch import Tensor, nn

BATCH = 64


class Block(nn.Module):
    """Two convolutions; the skip is added in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """Residual blocks, and a vector of 64 that the last layer reads."""

    def __init__(self, side: int = 28, channels: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.pool = nn.MaxPool2d(2)
        self.neck = nn.Sequential(nn.Linear(channels * (side // 4) ** 2, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.neck(self.pool(self.blocks(self.stem(image))).flatten(1)))


def build_model() -> nn.Module:
    return ResNet()


def example_inputs() -> Tensor:
    return torch.rand(BATCH, 1, 28, 28)


def main() -> None:
    steps, digits = common.set_up(__doc__, 200)
    task = common.classification(digits, BATCH, cuts=["neck"])
    common.run(lambda: ResNet(digits.side), task, steps)


if __name__ == "__main__":
    main()
