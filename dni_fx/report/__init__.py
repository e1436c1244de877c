"""Show a plan and a rewrite to people.

In: a plan, or a model and its rewritten form. Out: rich tables and diffs.
"""

from dni_fx.report.calls import calls_of, outputs_of, record_lines
from dni_fx.report.exits import exit_text
from dni_fx.report.graph_diff import code_lines, diff, paint
from dni_fx.report.plan import plan_table
from dni_fx.report.tables import Fitted, abridged, add_row, plain_table
from dni_fx.report.verdict import allocated, plan_verdict

__all__ = [
    "Fitted",
    "abridged",
    "add_row",
    "allocated",
    "calls_of",
    "code_lines",
    "diff",
    "exit_text",
    "outputs_of",
    "paint",
    "plain_table",
    "plan_table",
    "plan_verdict",
    "record_lines",
]
