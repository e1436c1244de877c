"""The command line: results go to stdout, progress and errors to stderr.

In: arguments. Out: text or JSON, files, and an exit code.
"""

from dni_fx.cli.commands import app, main

__all__ = ["app", "main"]
