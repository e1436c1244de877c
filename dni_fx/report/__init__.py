"""Show a plan and a rewrite to people.

In: a plan, or a model and its rewritten form. Out: rich tables and diffs.
"""

from dni_fx.report.calls import calls_of, outputs_of, record_lines
from dni_fx.report.exits import exit_text
from dni_fx.report.graph_diff import GraphDiff, compare_lines, diff
from dni_fx.report.graph_lines import Line, code_lines, lines_of
from dni_fx.report.plan import plan_table
from dni_fx.report.plan_diff import plan_changes, plan_diff_table
from dni_fx.report.tables import Fitted, abridged, add_row, plain_table
from dni_fx.report.verdict import allocated, plan_verdict

__all__ = [
    "Fitted",
    "GraphDiff",
    "Line",
    "abridged",
    "add_row",
    "allocated",
    "calls_of",
    "code_lines",
    "compare_lines",
    "diff",
    "exit_text",
    "lines_of",
    "outputs_of",
    "plain_table",
    "plan_changes",
    "plan_diff_table",
    "plan_table",
    "plan_verdict",
    "record_lines",
]
