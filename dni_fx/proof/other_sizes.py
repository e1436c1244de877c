"""The check of a rewrite on other batch sizes and other lengths of the inputs than those of the example."""

from dni_fx.capture import Run, batch_size, runs_at_other_batch_sizes, runs_at_other_lengths, sizes_near_first
from dni_fx.errors import first_line
from dni_fx.model import Axis, Inputs, by_name, by_path, canonical
from dni_fx.proof.compare import close
from dni_fx.proof.step import StepResult, context_of, named, step, without_dni
from dni_fx.proof.subject import Subject

__all__ = ["other_sizes"]


def other_sizes(subject: Subject) -> tuple[bool, str]:
    """On other sizes that the model takes, the net gives its outputs and, with true gradients, its gradients."""
    figures: list[str] = []
    worst = "exact"
    for run in _runs(subject):
        where = f"size {run.sizes[1]} for {run.sizes[0]} along axis {run.axes[0][1]}"
        try:
            passed, figure = _compare(subject, run)
        except Exception as error:  # where a size is wrong, any operation may fail
            passed, figure = False, f"{type(error).__name__}: {first_line(error)}"
        if not passed:
            return False, f"{where}: {figure}"
        figures.append(where)
        worst = worst if figure == "exact" else figure
    return True, f"{'; '.join(figures)}: {worst}" if figures else "the model takes no other sizes"


def _runs(subject: Subject) -> list[Run[StepResult]]:
    """Steps of the model with one row more, with one row or two, and with other lengths, where the model takes them.

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
    others = [*([smaller] if smaller else []), *lengths]
    return [*([larger] if larger else []), *(one for one in others if not _refused(subject, one.inputs))]


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


def _compare(subject: Subject, run: Run[StepResult]) -> tuple[bool, str]:
    """Compare outputs and buffers of net and model, then gradients: of the uncut net, and with true gradients."""
    model = run.result
    net = step(subject.net, run.inputs, context_of(subject.net, run.inputs))
    buffers = {name: b for name, b in model.buffers.items() if name in net.buffers}
    passed, figure = close(
        named(net.outputs) | {name: net.buffers[name] for name in buffers},
        named(model.outputs) | buffers,
        narrow=model.narrow,
    )
    if not passed:
        return passed, figure
    backprop, through, truth = subject.true_gradients(subject.in_precision(run.inputs))
    ours = subject.with_gradients(truth, subject.in_precision(run.inputs))
    for got in (through, ours):
        passed, figure = close(without_dni(got.gradients), backprop.gradients, narrow=got.narrow)
        if not passed:
            break
    return passed, figure
