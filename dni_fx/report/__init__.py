"""Show a plan and a rewrite to people.

In: a plan, or a model and its rewritten form. Out: rich tables and diffs.
"""

from dni_fx.report.graph_diff import code_lines, diff, paint
from dni_fx.report.plan import plan_table
from dni_fx.report.tables import Fitted, add_row, plain_table

__all__ = ["Fitted", "add_row", "code_lines", "diff", "paint", "plain_table", "plan_table"]
