"""Error messages for the command line: arguments become options."""

import re

__all__ = ["in_options"]

# What messages offer that is no option: the text, and its replacement.
_NOT_HERE = {
    ", or example_inputs=... in code": "",
    "(force=True, --force)": "(--force)",
    ", or None": "",
    " or a Plan": " or a plan.json",
}

_WITH_VALUES = {
    r"\bforce=True\b": "--force",
    r"\bprofile=True\b": "--profile",
    r"\bverify=False\b": "--no-verify",
    r"\bstep=(?=['\"])": "--step=",
    r"\bstate=True\b": "--state=auto",
    r"\bstate=\{[^}]*\} \((--state [\w=,.-]+)\)": r"\1",
    r'\bstate=\{"(\w+)": (\w+)\}': r"--state=\1=\2",
}

_OPTIONS = (
    "cuts",
    "synthesizer",
    "classes",
    "context_size",
    "loss",
    "objective",
    "memory_budget",
    "synthesizer_share",
    "speeds",
    "frontend",
    "state",
    "inside",
    "unlock",
    "mix",
    "segments",
    "steps",
    "data",
    "metric",
)


def in_options(message: str) -> str:
    """The message with options of the command line in the place of arguments."""
    for part, here in _NOT_HERE.items():
        message = message.replace(part, here)
    for pattern, option in _WITH_VALUES.items():
        message = re.sub(pattern, option, message)
    names = "|".join(_OPTIONS)
    return re.sub(rf"(?<![\w.-])({names})=(?=(\S?))", _option, message)


def _option(match: re.Match[str]) -> str:
    name = f"--{match[1].replace('_', '-')}"
    has_value = match[2] not in ("", ",", ";", ":", ")")
    return f"{name}=" if has_value else name
