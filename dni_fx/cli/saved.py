"""What a saved folder or a plan.json holds, without running code of the folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from dni_fx.paths import is_file
from dni_fx.units import bytes_text

if TYPE_CHECKING:
    from dni_fx.plans import Plan

__all__ = ["SavedNet", "inspect_saved"]


@dataclass(frozen=True)
class SavedNet:
    """A saved plan, and the files beside it.

    Attributes:
        model: The name of the model's class.
        frontend: The front end that captured the model.
        tried: The front ends that could not capture the model, each with the reason.
        inputs: The example inputs: the name, shape and dtype of each.
        inputs_from: The source of the example inputs.
        cuts: The last node below each cut in depth.
        states: The inputs that hold the state of each cut in time.
        unlock: "none" or "backward"; None: the plan is only a decision.
        synthesizers: The names of the synthesizers, by crossing.
        why: The reason for these cuts.
        files: The bytes of each file of the folder; empty: a plan alone.
        unchanged: Whether the files are those that were saved; None: the folder has no digests, or a plan alone.
    """

    model: str
    frontend: str
    tried: tuple[str, ...]
    inputs: tuple[str, ...]
    inputs_from: str
    cuts: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]
    unlock: str | None
    synthesizers: dict[str, str]
    why: str
    files: dict[str, int]
    unchanged: bool | None


def inspect_saved(path: Path) -> tuple[RenderableType, dict[str, Any]]:
    """A view of a saved folder or plan, and the same as plain data.

    Raises:
        DniFxError: If there is no plan.
    """
    from dni_fx.plans import Plan

    found = _saved_net(Plan.load(path), path)
    return _view(found), asdict(found)


def _saved_net(plan: "Plan", path: Path) -> SavedNet:
    from dni_fx.errors import DniFxError
    from dni_fx.store import has_saved_files

    weights = path / "weights.safetensors"
    files: dict[str, int] = {}
    unchanged: bool | None = None
    if is_file(weights):
        files = {one.name: one.stat().st_size for one in sorted(path.iterdir()) if one.is_file()}
        try:
            unchanged = has_saved_files(path) or None
        except DniFxError:
            unchanged = False
    return SavedNet(
        model=plan.model,
        frontend=plan.frontend,
        tried=plan.tried,
        inputs=plan.inputs,
        inputs_from=plan.inputs_from,
        cuts=tuple(cut.after for cut in plan.cuts),
        states=tuple(tuple(tensor.input for tensor in state.tensors) for state in plan.states),
        unlock=None if plan.rewrite is None else plan.rewrite.unlock,
        synthesizers={} if plan.rewrite is None else plan.rewrite.synthesizers,
        why=plan.why,
        files=files,
        unchanged=unchanged,
    )


def _view(found: SavedNet) -> RenderableType:
    what = "A rewritten" if found.files else "A plan of a rewritten" if found.unlock else "A plan for"
    where = f", cut after {', '.join(found.cuts)}" if found.cuts else ", without cuts in depth"
    segments = f"{len(found.cuts) + 1} segment{'s' * bool(found.cuts)}"
    lines = [
        f"{what} {found.model}: {segments}{where}; captured by the front end {found.frontend}.",
        "",
        f"inputs: {'; '.join(found.inputs) or 'none'} ({found.inputs_from})",
        f"cuts: {found.why}",
        *(f"not by {reason}" for reason in found.tried),
        *(f"cut in time: {', '.join(names)}" for names in found.states),
        *([f"unlock: {found.unlock}"] if found.unlock else []),
        *(f"synthesizer {name}: {synthesizer}" for name, synthesizer in found.synthesizers.items()),
    ]
    if found.files:
        same = {
            True: "those that were saved",
            False: "NOT those that were saved, and dni_fx.load refuses the folder",
            None: "not checked: the folder has no digests",
        }
        lines.append(f"files: {', '.join(f'{name} {bytes_text(size)}' for name, size in found.files.items())}")
        lines.append(f"the files are {same[found.unchanged]}")
    return Group(*(Text(line) for line in lines))
