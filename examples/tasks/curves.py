"""A run's curves as a picture."""

from pathlib import Path


def draw(path: Path, title: str, unit: str, rows: list[dict[str, float]]) -> None:
    """Loss, share that is right, and curriculum over the steps, as a PNG.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(7, 7), layout="constrained")
    above, middle, below = figure.subplots(3, sharex=True)
    above.plot(steps, [row["loss"] for row in rows])
    above.set(title=title, ylabel=f"loss ({unit})")
    middle.plot(steps, [row["right"] for row in rows], label="right")
    if rows and "cosine" in rows[0]:
        middle.plot(steps, [row["cosine"] for row in rows], label="cosine of the synthesizer")
    middle.legend()
    for name in [name for name in (rows[0] if rows else {}) if name not in ("step", "loss", "right", "cosine")]:
        below.plot(steps, [row[name] for row in rows], label=name)
    if below.lines:
        below.legend()
    below.set(xlabel="step", ylabel="curriculum")
    figure.savefig(path)
