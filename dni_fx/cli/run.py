"""`main`: run a command, and turn every error into one line and an exit code."""

import contextlib
import io
import os
import sys
import traceback

from dni_fx.cli.commands import app
from dni_fx.cli.messages import in_options
from dni_fx.cli.progress import say, say_error
from dni_fx.errors import DniFxError, TargetError, first_line

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run a command; turn an error into one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has a character for every name
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_exit_code())


def _exit_code() -> int | str | None:
    """Run the command that the arguments name; return its exit code, after the message of an error."""
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error has a message
        if code == _INTERRUPTED:  # typer's code after Ctrl-C
            say("interrupted")
        return code
    except KeyboardInterrupt:
        say("interrupted")
        return _INTERRUPTED
    except DniFxError as error:
        # The text of the user's own error stays as it is.
        say_error(str(error) if isinstance(error, TargetError) else in_options(str(error)))
        return error.exit_code
    except BrokenPipeError:
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()
        where = "cannot write" if error.filename is None else os.fsdecode(error.filename)
        say_error(f"{where}: {error.strerror or first_line(error)}")
        return 2
    except Exception as error:
        if _is_out_of_memory(error):
            say_error(f"not enough memory: {first_line(error)}; give smaller sizes")
            return 2
        say("".join(traceback.format_exception(error)))
        say_error("this is a bug of dni-fx; please report the lines above")
        return 70


def _run() -> int | str | None:
    try:
        app()
    except SystemExit as end:
        return end.code
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, torch on a CPU or torch on a GPU could not allocate memory."""
    texts = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "invalid storage size")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _discard_output() -> None:
    """Send what stdout still holds to nowhere: the interpreter would try to write the rest again, and fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
