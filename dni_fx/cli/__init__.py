"""The command line: stdout is the result, stderr the progress.

In: arguments. Out: text or JSON, files, and an exit code.
"""

from dni_fx.cli.commands import app, main

__all__ = ["app", "main"]
