"""Check that a rewrite is the same network, decoupled.

In: a rewritten net and inputs. Out: a report of checks that hold or fail.
"""

from dni_fx.proof.report import Check, Report, check, check_table

__all__ = ["Check", "Report", "check", "check_table"]
