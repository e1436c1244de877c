"""The paper's MNIST network: three hidden layers of 256 with batch norm, cut and trained on synthetic gradients.

dni-fx rewrite examples/mlp.py --cuts auto      shows the rewrite
python examples/mlp.py                          trains it beside backprop on real digits
"""

import statistics
import time

import common
import torch
from torch import Tensor, nn

import dni_fx

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
    steps = common.steps_asked_for(__doc__, 1000)
    digits = common.load_digits()
    criterion = nn.CrossEntropyLoss()
    results = {}
    for name in ("backprop", "decoupled"):
        torch.manual_seed(0)
        net: nn.Module = MLP(digits.side**2)
        if name == "decoupled":
            net = dni_fx.transform(net, digits.train_x[:64], classes=10)
        opt = torch.optim.Adam(net.parameters(), lr=1e-3)
        seconds = []
        for step in range(1, steps + 1):
            rows = torch.randint(len(digits.train_y), (BATCH,))
            x, y = digits.train_x[rows], digits.train_y[rows]
            start = time.perf_counter()
            opt.zero_grad()
            loss = criterion(net(x, dni_context=y) if name == "decoupled" else net(x), y)
            loss.backward()
            opt.step()
            seconds.append(time.perf_counter() - start)
            if step % 200 == 0:
                print(f"{name:9s} step {step:5d}  loss {loss.item():.4f}")
        net.eval()
        with torch.no_grad():
            error = common.error_percent(digits)(net)
        metrics = net.dni.metrics() if isinstance(net, torch.fx.GraphModule) else {}
        results[name] = common.Result(error, statistics.median(seconds) * 1e3, metrics)
    common.table("test error %", digits.name, steps, BATCH, results)


if __name__ == "__main__":
    main()
