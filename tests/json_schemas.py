"""The JSON schemas of what `--json` prints: made from the dataclasses; `python tests/json_schemas.py` writes the files.

The descriptions are those of the docstrings. `check_schema` is for the tests that run a command with `--json`.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NotRequired, get_args, get_type_hints

import jsonschema
from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from dni_fx.bench import Row
from dni_fx.cli.inspection import Inspection
from dni_fx.cli.saved import SavedNet
from dni_fx.comparison import Comparison, Record
from dni_fx.plans import SCHEMA, Plan
from dni_fx.proof import Check
from dni_fx.report import Line

FILES = Path(str(resources.files("dni_fx.cli"))) / "schemas"


def descriptions(cls: Any) -> dict[str, str]:
    """The description of each field: in the section "Attributes" of the docstring, or a docstring of its own."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = [entry.partition(": ") for entry in re.split(r"(?m)^    (?=\w+: )", section)]
    found = {name: " ".join(text.split()) for name, _, text in entries if text}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for entry, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(entry.target, ast.Name)
            found[entry.target.id] = " ".join(str(after.value.value).split("\n\n")[0].split())
    return found


def documented(cls: type, name: str) -> Any:
    """The description of a field as it stands in the docstring of its class."""
    return Field(description=descriptions(cls)[name])


class Ratio(TypedDict):
    """The time of a step, divided by that of a step of backprop just before or after."""

    median: Annotated[float, Field(description="The median.")]
    low: Annotated[float, Field(description="The 10th percentile.")]
    high: Annotated[float, Field(description="The 90th percentile.")]


class Measured(TypedDict):
    """The numbers of one way to train."""

    name: Annotated[str, Field(description='The way, such as "2 segments, stepping".')]
    activation_bytes: Annotated[int, documented(Row, "activations")]
    peak_bytes: Annotated[int, documented(Row, "peak")]
    milliseconds: Annotated[float, documented(Row, "milliseconds")]
    time_ratio: Annotated[Ratio, documented(Row, "ratio")]


class NotMeasured(TypedDict):
    """A way to train without numbers."""

    name: Annotated[str, Field(description='The way, such as "2 segments".')]
    failed: Annotated[str, documented(Row, "failed")]


class Checks(TypedDict):
    """What `dni-fx check --json` prints."""

    passed: Annotated[bool, Field(description="Whether every check passed.")]
    checks: Annotated[list[Check], Field(description="One for each property of the rewrite.")]


class Interval(TypedDict):
    """How much higher a loss is than that of backprop."""

    value: Annotated[float | None, Field(description="The difference; null: not measured.")]
    error: Annotated[float | None, Field(description="Half its 95 % interval; null: too few steps.")]


class Final(TypedDict):
    """The figures of a way in the table."""

    loss: Annotated[float | None, Field(description="The mean loss of the last fifth of the steps.")]
    difference: Annotated[Interval, Field(description="Of this loss from that of backprop, on the same batches.")]
    loss_in_equal_time: Annotated[
        float | None, Field(description="The loss when the fastest way has done all steps; null: not measured.")
    ]
    step_seconds: Annotated[float | None, Field(description="The median time of a step.")]


class Way(TypedDict):
    """One way to train."""

    name: Annotated[str, documented(Record, "name")]
    segments: Annotated[int, documented(Record, "segments")]
    losses: Annotated[list[float], documented(Record, "losses")]
    seconds: Annotated[list[float | None], Field(description="Of each step; null where memory was measured.")]
    scores: Annotated[list[tuple[int, float | None]], documented(Record, "scores")]
    activations: Annotated[int, documented(Record, "activations")]
    peak: Annotated[int, documented(Record, "peak")]
    cosines: Annotated[dict[str, float | None], documented(Record, "cosines")]
    failed: Annotated[str, Field(description="The reason why the way trained no further; empty: it did.")]
    final: NotRequired[Annotated[Final, Field(description="Missing if the way failed.")]]


class Compared(TypedDict):
    """What `dni-fx compare --json` prints."""

    verdict: Annotated[list[str], Field(description="What decoupling costs and gains, in sentences.")]
    steps: Annotated[int, documented(Comparison, "steps")]
    of: Annotated[int, documented(Comparison, "of")]
    samples: Annotated[int, Field(description="The number of samples in a batch.")]
    loss: Annotated[str, documented(Comparison, "loss")]
    has_data: Annotated[bool, documented(Comparison, "has_data")]
    ways: Annotated[list[Way], documented(Comparison, "records")]


class Changed(TypedDict):
    """A field of a plan that differs."""

    field: Annotated[str, Field(description="Its name.")]
    before: Annotated[str, Field(description="What the first plan has, in words.")]
    after: Annotated[str, Field(description="What the second plan has.")]


OUTPUTS: dict[str, tuple[Any, str]] = {
    "plan": (Plan, "What `dni-fx plan --json` and `dni-fx rewrite --json` print, and plan.json in a written folder."),
    "check": (Checks, "What `dni-fx check --json` prints."),
    "bench": (list[Measured | NotMeasured], "What `dni-fx bench --json` prints."),
    "compare": (Compared, "What `dni-fx compare --json` prints."),
    "diff": (list[Line], "What `dni-fx diff --json` prints for graphs: all lines of both."),
    "diff-plans": (list[Changed], "What `dni-fx diff --json` prints for two plans, or a folder and a plan."),
    "inspect": (Inspection, "What `dni-fx inspect --json` prints for a model."),
    "inspect-saved": (SavedNet, "What `dni-fx inspect --json` prints for a written folder or a plan.json."),
}


def check_schema(name: str, data: Any) -> None:
    """Raise an error if what a command printed does not fit its shipped schema."""
    jsonschema.validate(data, json.loads((FILES / f"{name}.json").read_text(encoding="utf-8")))


class _Schemas(GenerateJsonSchema):
    def callable_schema(self, schema: Any) -> dict[str, Any]:  # a function is not saved
        return {"type": "null"}


def made(name: str) -> dict[str, Any]:
    """The schema of an output."""
    output, title = OUTPUTS[name]
    found = TypeAdapter(output).json_schema(mode="serialization", schema_generator=_Schemas)
    classes = dict(_classes(output))
    if is_dataclass(output):
        _complete(found, output)  # type: ignore[arg-type]
    for part, schema in found.get("$defs", {}).items():
        _complete(schema, classes.get(part))
    if output is Plan:
        number = {"const": SCHEMA, "description": "The version of the format."}
        digests = {"type": "object", "additionalProperties": {"type": "string"}}
        words = {"description": "In a written folder: the SHA-256 of each file."}
        found["properties"] = {"schema": number} | found["properties"] | {"digests": digests | words}
        found["required"].insert(0, "schema")
    found.pop("title", None)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | _without_titles(found | ({"additionalProperties": False} if "properties" in found else {}))


def _classes(kind: Any) -> Iterator[tuple[str, type]]:
    """The dataclasses that a type holds, by name."""
    if is_dataclass(kind):
        yield kind.__name__, kind  # type: ignore[union-attr]
    nested = (
        get_type_hints(kind).values() if is_dataclass(kind) or hasattr(kind, "__required_keys__") else get_args(kind)
    )
    for one in nested:
        yield from _classes(one)


def _complete(schema: dict[str, Any], cls: type | None) -> None:
    """Allow no other entries; of a dataclass, whose fields are all written, describe and require each."""
    schema["additionalProperties"] = False
    schema["description"] = str(schema.get("description", "")).split("\n")[0]
    if cls is None:
        return
    known = descriptions(cls)
    missing = [f"{cls.__name__}.{name}" for name in schema["properties"] if name not in known]
    assert not missing, f"the docstring has no description of {', '.join(missing)}"
    schema["required"] = list(schema["properties"])
    for name, entry in schema["properties"].items():
        entry.pop("default", None)
        entry["description"] = known[name]


def _without_titles(schema: Any) -> Any:
    """Without the titles that repeat the names."""
    if isinstance(schema, list):
        return [_without_titles(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
    return {key: _without_titles(value) for key, value in kept.items()}


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for name in OUTPUTS:
        (FILES / f"{name}.json").write_text(json.dumps(made(name), indent=2) + "\n", encoding="utf-8")
