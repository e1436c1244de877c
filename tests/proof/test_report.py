"""The report of a check, and what cannot be checked."""

import io

import pytest
import torch
from nets import ResNet, two_layers
from rich.console import Console

import dni_fx
from dni_fx.errors import DniFxError
from dni_fx.proof.report import Check, Report, check_table

X = torch.rand(5, 6)


def test_what_is_no_rewrite_is_refused() -> None:
    with pytest.raises(DniFxError, match="expected what dni_fx"):
        dni_fx.check(ResNet(), X)  # type: ignore[arg-type]
    net = dni_fx.transform(ResNet(), X, cuts=2)
    with pytest.raises(DniFxError, match="cannot be checked on these inputs"):
        dni_fx.check(net, torch.rand(5, 7))


def test_a_report_is_plain_data() -> None:
    report = Report((Check("one", True, "exact"), Check("two", False, "off by 1")))
    assert not report
    assert report.to_dict()["checks"][1] == {"name": "two", "passed": False, "figure": "off by 1"}


@pytest.mark.parametrize(
    ("cuts", "words"), [(2, "cuts: 1 in depth, 0 in time"), ("auto", "cuts: auto makes none, since")]
)
def test_the_table_says_why_there_are_no_cuts(cuts: int | str, words: str) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(check_table(dni_fx.plan(two_layers(6), X, cuts=cuts), Report(())))
    assert words in " ".join(console.export_text().split())
