"""The options that several commands share: declared once, as fields of a dataclass.

Rich renders help texts: `\\[` is a bracket, and `:end:` would be an emoji.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dni_fx.cli.defaults import is_from_file
from dni_fx.cli.parsing import parse_cuts, parse_mix, parse_state, parse_training
from dni_fx.cli.progress import verbosity
from dni_fx.errors import DniFxError

if TYPE_CHECKING:
    from dni_fx.planning import Request
    from dni_fx.settings import Settings

__all__ = [
    "AllOption",
    "ClassesOption",
    "ContextSizeOption",
    "FrontendOption",
    "InputOption",
    "LossOption",
    "NoVerifyOption",
    "PlanOptions",
    "ProfileOption",
    "RewriteOptions",
    "StateOption",
    "SynthesizerOption",
    "Target",
    "TrainingOption",
    "with_options",
]

Target = Annotated[
    str,
    typer.Argument(
        help="The model: path/to/model.py, path/to/model.py:NAME or package.module:NAME. NAME is a module, or a class "
        "or function without arguments that makes one. dni-fx imports the file, which runs its code.",
        show_default=False,
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="An example input; repeat it for each argument of the model. \\[NAME=]SHAPE[:DTYPE[:LOW-HIGH]], batch "
        "size first, as in 64x784 or ids=8x128:int64:0-1000 (without 1000). Default: `example_inputs` in the file; "
        "without them, dni-fx tries shapes until one fits.",
        show_default=False,
    ),
]
SynthesizerOption = Annotated[
    str,
    typer.Option(
        help="What predicts gradients: auto, or a name that `dni-fx synthesizers` lists, with options as in "
        "mlp(hidden_layers=2)."
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(help="Number of classes. Synthesizers then see the labels, too.", show_default=False),
]
ContextSizeOption = Annotated[
    int | None,
    typer.Option(
        help="Number of entries of a vector for each sample. Synthesizers then see the vector, too.",
        show_default=False,
    ),
]
TrainingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--training",
        help="How the synthesizers are trained: KEY=VALUE, as in warmup=100 or scale=rms; repeat it for each. The keys "
        "are the fields of dni_fx.Training.",
        show_default=False,
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option(
        help="The training loss: a name in torch.nn.functional, such as cross_entropy. With a loss, auto is an "
        "exit through the model's own later layers, which trains better.",
        show_default=False,
    ),
]
FrontendOption = Annotated[
    str,
    typer.Option(
        help="How to capture the model: fx, export, modules, or auto: the first of these whose capture proves to be "
        "the same network."
    ),
]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Measure the time of each operation. Default: count its FLOPs.")
]
NoVerifyOption = Annotated[
    bool,
    typer.Option(
        "--no-verify", help="Do not compare the capture with the model. Saves time and memory for large models."
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="Show all rows of long tables.")]
StateOption = Annotated[
    str | None,
    typer.Option(
        help="Cut a recurrent model in time, where its state goes from one call to the next. auto: for "
        "forward(x, state) -> (y, state). NAME=OUTPUT: the argument that takes the state, and the position or key "
        "of the output that is the next state, as in hidden=1; several with commas.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class PlanOptions:
    """How to capture a model, and where to cut it."""

    cuts: Annotated[
        str,
        typer.Option(
            help="Where to cut. auto, which makes no cut where cuts are predicted to save nothing; a number of "
            "segments; names to cut after, as in layer2,add_7; every:Block, after each call of that class; leaves, "
            "after every layer that trains, but the last; marked, where the code has `with dni_fx.cut_after():`; or a "
            "plan.json, whose cuts are made again.",
        ),
    ] = "auto"
    input: InputOption = None
    synthesizer: SynthesizerOption = "auto"
    classes: ClassesOption = None
    context_size: ContextSizeOption = None
    loss: LossOption = None
    inside: Annotated[
        str,
        typer.Option(
            help="What autograd does inside of a segment. keep: it keeps activations until the backward pass. "
            "checkpoint: the backward pass computes them again; with --memory-budget, in as many segments as have to."
        ),
    ] = "keep"
    objective: Annotated[
        str,
        typer.Option(
            help="What to minimise where dni-fx chooses the cuts; each synthesizer adds a charge. memory: the peak "
            "memory of a training step. throughput: the time of the slowest segment with its synthesizers, if each "
            "segment has a device of its own."
        ),
    ] = "memory"
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Choose the fewest segments whose predicted peak memory fits into this, as in 2GiB.",
            show_default=False,
        ),
    ] = None
    synthesizer_share: Annotated[
        float | None,
        typer.Option(
            help="The largest time of all synthesizers together, as a share of the time of backprop's step. Default: "
            "0.05, for the units of exits 0.15, from four segments on 0.2; if no cuts are so cheap, 1.5 times the "
            "cheapest; no limit with --memory-budget.",
            show_default=False,
        ),
    ] = None
    profile: ProfileOption = False
    frontend: FrontendOption = "auto"
    no_verify: NoVerifyOption = False
    state: StateOption = None

    def settings(self) -> "Settings":
        """The settings for `compiler.rewrite`.

        Raises:
            DniFxError: If an option is wrong.
        """
        from dni_fx.settings import Settings

        return Settings(classes=self.classes, context_size=self.context_size, loss=self.loss)

    def request(self) -> "Request":
        """The checked options, for the compiler.

        Raises:
            DniFxError: If an option is wrong.
        """
        from dni_fx.api import limits_of
        from dni_fx.capture import check_frontend
        from dni_fx.planning import Request
        from dni_fx.settings import loss_function
        from dni_fx.synthesizers import resolve

        settings = self.settings()
        resolve(self.synthesizer, (), -1, None if self.loss is None else loss_function(self.loss))
        check_frontend(self.frontend)
        return Request(
            parse_cuts(self.cuts),
            self.synthesizer,
            settings,
            limits_of(self.objective, self.memory_budget, self.synthesizer_share),
            self.profile,
            self.frontend,
            not self.no_verify,
            parse_state(self.state),
            self.inside,
        )


@dataclass(frozen=True)
class RewriteOptions(PlanOptions):
    """How to capture a model, where to cut it, and how to rewrite the cuts."""

    unlock: Annotated[
        str,
        typer.Option(
            help="Which lock to remove. backward: each segment runs its backward pass right after its forward pass, "
            "which frees its activations. none: one ordinary backward pass."
        ),
    ] = "backward"
    mix: Annotated[
        str,
        typer.Option(
            help="Share of the true gradient in what goes upstream, 0 to 1, or a schedule, as in 1:0:1000: from 1 to "
            "0 in 1000 steps. Needs --unlock none."
        ),
    ] = "0"
    training: TrainingOption = None

    def settings(self) -> "Settings":
        from dni_fx.settings import Settings

        context = self.classes, self.context_size
        return Settings(self.unlock, parse_mix(self.mix), *context, self.loss, parse_training(self.training))


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Write only results and errors: no progress, hints and warnings.")
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also write the seconds of each stage, why a front end was refused, and each warning, to stderr.",
    ),
]


def with_options(options: type[PlanOptions] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options to a command that works long: --quiet and --verbose, and one for each field of `options`.

    These replace the parameter `options` of the command: Typer reads the signature.
    """
    shared = [] if options is None else _parameters(options)
    names = [parameter.name for parameter in shared]
    own_shared = [
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption),
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VerboseOption),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> None:
            own = {name: value for name, value in kwargs.items() if name not in names}
            if options is not None:
                own["options"] = options(**{name: kwargs[name] for name in names})
            with verbosity(**_levels(quiet=quiet, verbose=verbose)):
                command(*args, **own)

        signature = inspect.signature(command, eval_str=True)
        first, *rest = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != "options"
        ]
        signature = signature.replace(parameters=[first, *shared, *rest, *own_shared])
        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return called

    return decorate


def _parameters(options: type[PlanOptions]) -> list[inspect.Parameter]:
    """A parameter for each field."""
    hints = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]


def _levels(*, quiet: bool, verbose: bool) -> dict[str, bool]:
    """The options --quiet and --verbose: one on the command line goes before the other in a file."""
    if not (quiet and verbose):
        return {"quiet": quiet, "verbose": verbose}
    on_line = {name: not is_from_file(name) for name in ("quiet", "verbose")}
    if on_line["quiet"] == on_line["verbose"]:
        raise DniFxError("--quiet and --verbose exclude each other: give one of them")
    return on_line
