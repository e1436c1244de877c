"""Colour images of letters over coloured clutter, for benchmarks/learning.py; the test letters have unseen fonts."""

import functools
import math
from importlib.util import find_spec
from pathlib import Path

import learning_data
import torch
from common import Digits
from torch import Generator, Tensor, nn

LETTERS = "ABEGHKRSTX"
CLUTTER = "/-(Oeaghy*"
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10")
SIDE, DRAWN = 32, 64  # pixels of an image, and of a drawn character


def drawn(path: Path, characters: str) -> Tensor:
    """Each character in the middle of a square (N, 1, DRAWN, DRAWN), in [0, 1]."""
    from PIL import Image, ImageDraw, ImageFont  # a dependency of matplotlib

    font = ImageFont.truetype(str(path), 40)
    squares = []
    for character in characters:
        image = Image.new("L", (DRAWN, DRAWN))
        left, top, right, bottom = font.getbbox(character)
        corner = ((DRAWN - left - right) / 2, (DRAWN - top - bottom) / 2)
        ImageDraw.Draw(image).text(corner, character, font=font, fill=255)
        squares.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, DRAWN, DRAWN) / 255)
    return torch.stack(squares)


def placed(squares: Tensor, random: Generator, scale: tuple[float, float], turn: float, shift: float) -> Tensor:
    """The squares by random scale (pixels of an image per drawn pixel), rotation and position (N, 1, SIDE, SIDE)."""
    u = torch.rand(4, len(squares), generator=random)
    zoom = SIDE / DRAWN / (scale[0] + (scale[1] - scale[0]) * u[0])
    angle, x, y = turn * (2 * u[1] - 1), shift * (2 * u[2] - 1), shift * (2 * u[3] - 1)
    turned = torch.stack([angle.cos(), -angle.sin(), x, angle.sin(), angle.cos(), y], 1).view(-1, 2, 3)
    grid = nn.functional.affine_grid(turned * zoom[:, None, None], [len(squares), 1, SIDE, SIDE], align_corners=False)
    return nn.functional.grid_sample(squares, grid, align_corners=False)


def rendered(letters: Tensor, clutter: Tensor, size: int, random: Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 3, SIDE, SIDE) and labels. `letters`, `clutter`: fonts by characters by the drawn square."""

    def any_of(squares: Tensor, columns: Tensor) -> Tensor:
        return squares[torch.randint(len(squares), (size,), generator=random), columns]

    def colour() -> Tensor:
        return torch.rand(size, 3, 1, 1, generator=random)

    images = colour().expand(size, 3, SIDE, SIDE)
    for _ in range(5):
        columns = torch.randint(clutter.shape[1], (size,), generator=random)
        mask = placed(any_of(clutter, columns), random, (0.3, 1.2), math.pi, 0.8)
        images = torch.lerp(images, colour(), 0.5 * mask)
    labels = torch.randint(letters.shape[1], (size,), generator=random)
    mask = placed(any_of(letters, labels), random, (0.5, 0.8), 0.35, 0.25)
    base, own = images.mean((2, 3), keepdim=True), colour()
    own = torch.where((own - base).abs().amax(1, keepdim=True) < 0.4, (base + 0.5) % 1, own)  # a letter is seen
    images = torch.lerp(images, own, mask)
    return images + 0.05 * torch.randn(images.shape, generator=random), labels


@functools.cache
def glyphs(train: int = 6000, test: int = 1000) -> Digits:
    if find_spec("matplotlib") is None:
        raise FileNotFoundError("matplotlib, which has the fonts (pip install matplotlib)")
    from matplotlib import get_data_path

    paths = [p for p in sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf")) if p.stem.startswith(FONTS)]
    paths = [p for p in paths if "Display" not in p.stem]  # symbols
    random = Generator().manual_seed(11)
    found: list[Tensor] = []
    for own, size in (([p for i, p in enumerate(paths) if i % 4 != 3], train), (paths[3::4], test)):
        squares = [torch.stack([drawn(path, characters) for path in own]) for characters in (LETTERS, CLUTTER)]
        chunks = [rendered(*squares, 1000, random) for _ in range(math.ceil(size / 1000))]
        found += [torch.cat(part)[:size] for part in zip(*chunks, strict=True)]
    return Digits("glyphs", *found)


def data() -> learning_data.Data:
    return learning_data.images(glyphs(), lambda: learning_data.models.ResNet(5, channels=3))
