"""A U-Net that takes noise off digits; its skips cross several cuts.

`python examples/unet.py` trains it beside backprop.
"""

import common
import torch
from torch import Tensor, nn

BATCH = 64


def level(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Two levels down, two up; each level up also reads its level down."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        c = channels
        self.down1, self.down2, self.bottom = level(1, c), level(c, 2 * c), level(2 * c, 2 * c)
        self.up2, self.up1 = level(4 * c, c), level(2 * c, c)
        self.head = nn.Conv2d(c, 1, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(self.pool(first))
        bottom = self.bottom(self.pool(second))
        up = nn.functional.interpolate(bottom, scale_factor=2.0)
        up = self.up2(torch.cat([up, second], 1))
        up = nn.functional.interpolate(up, scale_factor=2.0)
        return self.head(self.up1(torch.cat([up, first], 1)))


def build_model() -> nn.Module:
    return UNet()


def example_inputs() -> Tensor:
    return torch.rand(BATCH, 1, 28, 28)


def noisy(images: Tensor) -> Tensor:
    return images + 0.5 * torch.randn_like(images)


def main() -> None:
    steps, digits = common.set_up(__doc__, 100)

    def batch() -> common.Batch:
        clean = digits.train_x[torch.randint(len(digits.train_x), (BATCH,))]
        return (noisy(clean),), clean, {}

    def score(net: nn.Module) -> float:
        clean = digits.test_x[:2000]
        return float(nn.functional.mse_loss(net(noisy(clean)), clean)) / float(clean.var())

    # `first` crosses both cuts, and gets a synthesizer at each
    options = {"cuts": ["down2", "up2"]}
    what = "error left (1: none gone)"
    task = common.Task(digits.name, BATCH, batch, nn.functional.mse_loss, what, score, options)
    common.run(UNet, task, steps)


if __name__ == "__main__":
    main()
