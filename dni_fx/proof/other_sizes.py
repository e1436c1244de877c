"""The check of a rewrite on other batch sizes and other lengths of the inputs than those of the example."""

from collections.abc import Callable
from dataclasses import dataclass

from dni_fx.capture import Run, batch_size, runs_at_other_batch_sizes, runs_at_other_lengths, sizes_near_first
from dni_fx.errors import first_line
from dni_fx.model import Axis, Inputs, by_name, by_path, canonical
from dni_fx.proof.compare import same_outputs
from dni_fx.proof.step import StepResult, context_of, step
from dni_fx.proof.subject import Subject

__all__ = ["other_sizes"]


@dataclass(frozen=True)
class _Sizes:
    """Inputs of other sizes, and a step of the model on them."""

    where: str
    inputs: Inputs
    model: StepResult


def other_sizes(subject: Subject) -> tuple[bool, str]:
    """On other sizes that the model takes, the net gives its outputs and, with true gradients, its gradients."""
    figures: list[str] = []
    worst = "exact"
    for sizes in _all_sizes(subject):
        try:
            passed, figure = _compare(subject, sizes)
        except Exception as error:  # where a size is wrong, any operation may fail
            passed, figure = False, f"{type(error).__name__}: {first_line(error)}"
        if not passed:
            return False, f"{sizes.where}: {figure}"
        figures.append(sizes.where)
        worst = worst if figure == "exact" else figure
    return True, f"{'; '.join(figures)}: {worst}" if figures else "the model takes no other sizes"


def _all_sizes(subject: Subject) -> list[_Sizes]:
    """One row more together with all other lengths; and one row or two: where the model takes them.

    A size that the net refuses by name is left out, but not more rows: torch.export fixes some lengths, and some sizes
    of 1.
    """

    def run(other: Inputs) -> StepResult | None:
        try:
            return step(subject.model, other)
        except Exception:  # user code may raise any error on a size that it does not take
            return None

    rows = batch_size(subject.inputs)
    larger = runs_at_other_batch_sizes(subject.inputs, run, [rows + 1, 2 * rows])
    sizes = [size for size in (1, 2) if size < rows]
    axes = larger.axes if larger else ()
    smaller = runs_at_other_batch_sizes(subject.inputs, run, sizes, axes) if sizes else None
    batch = larger or smaller
    fixed = [*(batch.axes if batch else [(0, 0)]), *_state_axes(subject)]
    lengths = runs_at_other_lengths(subject.inputs, fixed, run, sizes_near_first)
    lengths = [one for one in lengths if not _refused(subject, one.inputs)]
    found = _together(subject, [*([larger] if larger else []), *lengths], run)
    if smaller is not None and not _refused(subject, smaller.inputs):
        found.append(_Sizes(_where(smaller), smaller.inputs, smaller.result))
    return found


def _together(
    subject: Subject, runs: list[Run[StepResult]], run: Callable[[Inputs], StepResult | None]
) -> list[_Sizes]:
    """All sizes of some runs in one, which takes less time; each run alone where the model does not take them all."""
    if len(runs) > 1:
        inputs = subject.inputs.resized({axis: one.sizes[1] for one in runs for axis in one.axes})
        result = None if _refused(subject, inputs) else run(inputs)
        if result is not None:
            return [_Sizes(", ".join(map(_where, runs)), inputs, result)]
    return [_Sizes(_where(one), one.inputs, one.result) for one in runs]


def _where(run: Run[StepResult]) -> str:
    return f"size {run.sizes[1]} for {run.sizes[0]} along axis {run.axes[0][1]}"


def _state_axes(subject: Subject) -> list[Axis]:
    """The axes of the state, which a cut in time takes in the sizes of the example, but for the batch."""
    forward = subject.model.forward
    arguments = by_name(forward, *canonical(forward, subject.inputs.args, subject.inputs.kwargs))
    state = {(tensor.input, tensor.path) for tensor in subject.tensors}
    leaves = [
        leaf
        for name, places in subject.net.dni_state_paths(arguments).items()
        if not state.isdisjoint(places)
        for place, leaf in zip(places, by_path(arguments[name]).values(), strict=True)
        if place in state
    ]
    tensors = enumerate(subject.inputs.tensors())
    return [(i, axis) for i, t in tensors if any(t is leaf for leaf in leaves) for axis in range(t.dim())]


def _refused(subject: Subject, inputs: Inputs) -> bool:
    try:
        subject.net.dni_values_for(inputs)
    except TypeError:
        return True
    return False


def _compare(subject: Subject, sizes: _Sizes) -> tuple[bool, str]:
    """Compare outputs and buffers of net and model, then gradients: of the uncut net, and with true gradients."""
    passed, figure = same_outputs(step(subject.net, sizes.inputs, context_of(subject.net, sizes.inputs)), sizes.model)
    if not passed:
        return passed, figure
    precise = subject.in_precision(sizes.inputs)
    return subject.compare_with_backprop(precise, *subject.true_gradients(precise))
