"""The command line: results go to stdout, progress and errors to stderr.

In: arguments. Out: text or JSON, files, and an exit code.
"""

from dni_fx.cli.commands import app
from dni_fx.cli.run import main

__all__ = ["app", "main"]
