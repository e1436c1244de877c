"""A small convolutional network, cut once in the middle: `python examples/cnn.py` trains it beside backprop."""

import argparse

import common
import torch
from torch import Tensor, nn

import dni_fx


class CNN(nn.Module):
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
    return torch.rand(64, 1, 28, 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    digits = common.load_digits()
    results = {}
    for name in ("backprop", "decoupled"):
        torch.manual_seed(0)
        net: nn.Module = CNN(digits.side)
        if name == "decoupled":
            net = dni_fx.transform(net, digits.train_x[:64], cuts=2, classes=10)
        batch = common.batches(digits.train_x, digits.train_y)
        score = common.error_percent(digits)
        results[name] = common.train(net, steps, batch, nn.functional.cross_entropy, score, name)
    common.table("test error %", digits.name, steps, results)


if __name__ == "__main__":
    main()
