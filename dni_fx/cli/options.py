"""The options that several commands share: declared once, as fields of a dataclass."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dni_fx.cli.parsing import parse_cuts, parse_mix, parse_state

if TYPE_CHECKING:
    from dni_fx.compiler import Request
    from dni_fx.settings import Settings

__all__ = [
    "ClassesOption",
    "InputOption",
    "PlanOptions",
    "RewriteOptions",
    "SynthesizerOption",
    "Target",
    "with_options",
]

Target = Annotated[
    str,
    typer.Argument(
        help="path/to/model.py, path/to/model.py:attr or package.module:attr; attr is a module, or a class or function "
        "without arguments that makes one. The file is imported, which runs it.",
        show_default=False,
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Example input, one for each argument: [name=]SHAPE[:DTYPE[:LOW-HIGH]], batch first, as in 64x784 or "
        "ids=8x128:int64:0-1000 (HIGH not included). Else `example_inputs` in the file, else shapes are tried.",
        show_default=False,
    ),
]
SynthesizerOption = Annotated[str, typer.Option(help="auto, or a name that `dni-fx synthesizers` lists.")]
ClassesOption = Annotated[
    int | None, typer.Option(help="Condition the synthesizers on so many labels.", show_default=False)
]


@dataclass(frozen=True)
class PlanOptions:
    """How a model is captured, and where it is cut."""

    cuts: Annotated[
        str,
        typer.Option(
            help="auto, a number of segments, names to cut after (layer2,add_7), every:Block, leaves (every layer "
            "that trains), marked (where the code says dni_fx.cut_after()), or a plan.json to repeat.",
        ),
    ] = "auto"
    input: InputOption = None
    synthesizer: SynthesizerOption = "auto"
    classes: ClassesOption = None
    loss: Annotated[
        str | None,
        typer.Option(
            help="The training loss in torch.nn.functional, as cross_entropy; needs --classes.", show_default=False
        ),
    ] = None
    objective: Annotated[
        str,
        typer.Option(
            help="What chosen cuts make least, with a charge for each synthesizer. memory: the peak of a training "
            "step; throughput: the time of the slowest segment with its synthesizers, each on a device of its own."
        ),
    ] = "memory"
    memory_budget: Annotated[
        str | None,
        typer.Option(help="The fewest segments found whose predicted peak fits, as in 2GiB.", show_default=False),
    ] = None
    synthesizer_share: Annotated[
        float | None,
        typer.Option(
            help="What the synthesizers may take of the time of backprop's step. Default: 0.05, or 1.5 of the least.",
            show_default=False,
        ),
    ] = None
    profile: Annotated[bool, typer.Option("--profile", help="Measure times on real tensors; else count FLOPs.")] = False
    frontend: Annotated[
        str,
        typer.Option(
            help="What captures the model: fx, export, modules, or auto: the first that proves to be the same network."
        ),
    ] = "auto"
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the capture with the eager model: for models too big.")
    ] = False
    state: Annotated[
        str | None,
        typer.Option(
            help="Cut a recurrent model in time: auto for forward(x, state) -> (y, state), or NAME=OUTPUT, the "
            "argument that is its state, and the place or key of the output that it becomes.",
            show_default=False,
        ),
    ] = None

    def settings(self) -> "Settings":
        """How the cuts are rewritten.

        Raises:
            DniFxError: If an option is wrong.
        """
        from dni_fx.settings import Settings, check_settings

        settings = Settings(classes=self.classes, loss=self.loss)
        check_settings(settings)
        return settings

    def request(self) -> "Request":
        """The options, checked, as the compiler takes them.

        Raises:
            DniFxError: If an option is wrong.
        """
        from dni_fx.api import limits_of
        from dni_fx.capture import check_frontend
        from dni_fx.compiler import Request
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
        )


@dataclass(frozen=True)
class RewriteOptions(PlanOptions):
    """The same, and how the cuts are rewritten."""

    unlock: Annotated[str, typer.Option(help="Which locks are removed: backward or none.")] = "backward"
    mix: Annotated[
        str, typer.Option(help="Share of the true gradient, BP(lambda), or START:END:STEPS; needs --unlock none.")
    ] = "0"

    def settings(self) -> "Settings":
        from dni_fx.settings import Settings, check_settings

        settings = Settings(self.unlock, parse_mix(self.mix), self.classes, loss=self.loss)
        check_settings(settings)
        return settings


def with_options(options: type[PlanOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes `options=` the fields of this dataclass as options: Typer reads the signature."""
    hints = get_type_hints(options, include_extras=True)
    names = [field.name for field in fields(options)]
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(*args: Any, **kwargs: Any) -> None:
            own = {name: value for name, value in kwargs.items() if name not in names}
            command(*args, **own, options=options(**{name: kwargs[name] for name in names}))

        signature = inspect.signature(command, eval_str=True)
        first, *rest = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != "options"
        ]
        signature = signature.replace(parameters=[first, *shared, *rest])
        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return called

    return decorate
