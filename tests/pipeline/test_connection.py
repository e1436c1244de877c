"""Processes that do not fit together are refused before the first step, with both ends named."""

import pytest

from dni_fx import DniFxError
from dni_fx.pipeline.connection import Description, check_descriptions

GOOD = [
    Description(0, 4, 2, 8, False, "net", (), ("h float32 [8]",), False),
    Description(1, 5, 2, 8, False, "net", ("h float32 [8]",), (), False),
]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (GOOD[:1], "the net has 2 stages, but there are 1 processes"),
        ([GOOD[0], GOOD[0]], r"the process with rank 1 has stage 0 \(rank 4\)"),
        (
            [GOOD[0], GOOD[1]._replace(microbatches=4)],
            r"stage 0 \(rank 4\) has microbatches=8, and stage 1 .* has micr",
        ),
        ([GOOD[0], GOOD[1]._replace(sync=True)], "sync=False, and .* sync=True"),
        ([GOOD[0], GOOD[1]._replace(split=(2,))], r"split=\(\), and .* split=\(2,\)"),
        ([GOOD[0], GOOD[1]._replace(stages=3)], "stages=2, and .* stages=3"),
        ([GOOD[0], GOOD[1]._replace(takes=("h float16 [8]",))], r"sends h float32 \[8\], and .* takes h float16 \[8\]"),
        ([GOOD[0], GOOD[1]._replace(net="other")], "stages of different nets"),
    ],
)
def test_what_does_not_fit(found: list[Description], message: str) -> None:
    check_descriptions(GOOD)
    with pytest.raises(DniFxError, match=message):
        check_descriptions(found)
