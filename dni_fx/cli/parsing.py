"""Parse the texts of command-line options."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dni_fx.errors import DniFxError, described
from dni_fx.paths import as_path, is_file

if TYPE_CHECKING:
    from dni_fx.capture import StateOption
    from dni_fx.cuts import Cuts
    from dni_fx.settings import Mix, Training

__all__ = ["default_folder", "parse_cuts", "parse_mix", "parse_state", "parse_training"]


def parse_cuts(text: str) -> "Cuts":
    """Parse `--cuts`: a saved plan, a keyword, a number of segments, or names with commas."""
    from dni_fx.plans import Plan

    path = as_path(text, "--cuts")
    if text.endswith(".json") or is_file(path / "plan.json"):
        return Plan.load(path)
    if text in ("auto", "marked", "leaves") or text.startswith("every:"):
        return text
    try:
        return int(text)
    except ValueError:
        return [name.strip() for name in text.split(",") if name.strip()]


def parse_mix(text: str) -> "Mix":
    """Parse `--mix`: a share as in `0.5`, or `START:END:STEPS`.

    Raises:
        DniFxError: If the text is neither.
    """
    try:
        parts = text.split(":")
        if len(parts) == 3:
            return float(parts[0]), float(parts[1]), int(parts[2])
        return float(text)
    except ValueError:
        raise DniFxError(f"mix={described(text)}: a number from 0 to 1, or START:END:STEPS") from None


def parse_state(text: str | None) -> "StateOption | None":
    """Parse `--state`: `auto`, or `NAME=OUTPUT`, several with commas.

    Raises:
        DniFxError: If the text is neither.
    """
    if text is None or text == "auto":
        return None if text is None else True
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise DniFxError(f"--state {described(text)}: auto, or NAME=OUTPUT, as in hidden=1 or hidden=last,cell=2")
    return {name.strip(): int(key) if re.fullmatch(r"\s*-?\d{1,9}\s*", key) else key.strip() for name, key in pairs}


def parse_training(texts: Sequence[str] | None) -> "Training":
    """Parse `--training`: `KEY=VALUE` for fields of `dni_fx.Training`, but no function.

    Raises:
        DniFxError: If there is no such field, or the value is not of its kind.
    """
    from dni_fx.settings import Training

    names = [field.name for field in fields(Training) if field.name != "optimizer"]
    values: dict[str, Any] = {}
    for text in texts or []:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator or name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]}?" if near and name not in names else ""
            raise DniFxError(f"--training {described(text)}: KEY=VALUE, with {', '.join(names)}{hint}")
        values[name] = _plain(value)
    try:
        return Training(**values)
    except DniFxError as error:
        raise DniFxError(f"--training {error}") from None


def _plain(text: str) -> Any:
    """A number, a switch or None, as Python or TOML write them; else the text."""
    known = {"true": True, "false": False, "none": None}
    if text.lower() in known:
        return known[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def default_folder(target: str) -> Path:
    """The output folder `NAME_dni` of a target `path/NAME.py:attr` or `package.NAME:attr`."""
    path = target.split(":")[0]
    name = Path(path).stem if path.endswith(".py") else path.rsplit(".", 1)[-1]
    return Path(f"{name}_dni")
