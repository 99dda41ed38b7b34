"""The `lowbit` command: its subcommands, and what becomes of every way in which one can end."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import click

import lowbit
from lowbit.cli.check import check
from lowbit.cli.compare import compare
from lowbit.cli.compress import compress
from lowbit.cli.diagnose import diagnose
from lowbit.cli.export import export
from lowbit.cli.import_ import import_
from lowbit.cli.inspect import inspect
from lowbit.cli.outputs import Outputs
from lowbit.cli.pack import pack, unpack
from lowbit.cli.probe import probe
from lowbit.cli.prune import prune
from lowbit.cli.quantize import quantize
from lowbit.cli.targets import targets
from lowbit.cli.train import train
from lowbit.exceptions import LowbitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

__all__ = ["BUG", "INTERRUPTED", "OK", "WRONG_INPUT", "application", "main"]

OK = 0
BUG = 1
"""An error that lowbit did not foresee."""
WRONG_INPUT = 2
"""The command line, a file or the machine is not what is needed; the line on stderr says what to change."""
INTERRUPTED = 130
"""128 + SIGINT, as shells report it; SIGTERM gives 143."""
_BROKEN_PIPE = 141

_EPILOG = (
    "Exit status: 0 done, 1 a bug in lowbit, 2 wrong input (one line on stderr says what), 130 interrupted. "
    "Files are written whole or not at all. LOWBIT_TRACEBACK=1 adds the Python traceback to an error."
)


_WORD = re.compile(r"^[a-z]+(?=[ ,;]|$)")


class _Stopped(KeyboardInterrupt):
    """SIGTERM: everything is cleaned up as after Ctrl-C."""


class _Ended(Exception):  # noqa: N818 - not an error: it carries the exit status through click, which would alter others
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Application(click.Group):
    """A group whose commands end in one line on stderr and an exit status, whatever happens in them."""

    def invoke(self, context: click.Context) -> object:
        context.obj = Outputs()
        # NOTE: since 1.29 the engine's package reports its use to its maker, and leaves files in the temporary folder,
        # unless this is set before it is imported. Whoever wants that sets the variable to 0.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BaseException as error:
            raise _Ended(_report(error, context.obj)) from error


@click.group(
    cls=_Application,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=_EPILOG,
)
@click.version_option(lowbit.__version__, "--version", message="lowbit %(version)s")
@click.pass_context
def application(context: click.Context) -> None:
    """Make trained neural networks small and fast for the device they will run on, and prove that they still work.

    \b
      lowbit quantize model.onnx --data calib/    an ONNX model in, a verified INT8 model out
      lowbit compare model.onnx model.int8.onnx --data test/
      lowbit diagnose model.onnx --data calib/    why layers are bad, and what helps
      lowbit check model.onnx                     what would run in integers, and why not
      lowbit inspect model.int8.onnx              what a file contains
      lowbit export model.int8.onnx -o model.tflite
      lowbit import model.keras                   a model of another framework in, ONNX out
      lowbit probe model.onnx                     what its operators cost on this machine
      lowbit train model.onnx --data calib/       few bits, learned from the float model, without labels
      lowbit prune model.onnx --data calib/       weights become zero, or channels go (`--channels`)
      lowbit compress model.onnx --data calib/    prune, quantize and code: a file tens of times smaller
      lowbit pack model.int8.onnx                 one small file for download; `lowbit unpack` gives the same bytes
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    quantize,
    compare,
    diagnose,
    check,
    inspect,
    import_,
    export,
    probe,
    train,
    prune,
    compress,
    pack,
    unpack,
    targets,
):
    application.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: What stands behind `lowbit`; by default what this process was started with.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a question mark where the terminal lacks a character, no traceback
    try:
        with _terminable():
            status = application.main(
                args=None if arguments is None else list(arguments), prog_name="lowbit", standalone_mode=False
            )
    except _Ended as ended:
        return ended.status
    except click.ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, click.Abort):
        return _report(KeyboardInterrupt(), Outputs())
    return status if isinstance(status, int) else OK


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files go."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(error: BaseException, outputs: Outputs) -> int:
    """Print what happened on one line and return the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BUG
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    if os.environ.get("LOWBIT_TRACEBACK", "") not in {"", "0"}:
        import traceback

        traceback.print_exception(error)
    written = ", ".join(str(path) for path in outputs.written())
    if isinstance(error, KeyboardInterrupt):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal shows ^C at the cursor
        _line("interrupted", f"only {written} was written before" if written else "nothing was written", end="; ")
        return 128 + int(signal.SIGTERM) if isinstance(error, _Stopped) else INTERRUPTED
    suffix = f" ({written} was written before)" if written else ""
    if isinstance(error, LowbitError):
        _line("error", f"{_sentences(error)}{suffix}")
        return WRONG_INPUT
    if isinstance(error, MemoryError):
        _line("error", f"Out of memory. Use a machine with more, or fewer and smaller samples.{suffix}")
        return WRONG_INPUT
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = " Temporary files lie where TMPDIR says." if error.filename is None else ""
        _line("error", f"{where}{error.strerror}.{remedy}{suffix}")
        return WRONG_INPUT
    said = " ".join(f"{type(error).__name__}: {error}".split())
    _line("error", f"{said}. This is a bug in lowbit; LOWBIT_TRACEBACK=1 shows where it happened.{suffix}")
    return BUG


def _usage(error: click.ClickException) -> int:
    """Print a wrong command line on one line."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "lowbit"
    said = " ".join(error.format_message().split()).rstrip(".")
    _line("error", f"{said}{'' if said.endswith('?') else '.'} See `{command} --help`.")
    return WRONG_INPUT


def _sentences(error: LowbitError) -> str:
    """Return value, cause and remedy as sentences; a name at the start of one keeps its spelling."""
    parts = [" ".join(part.split()).rstrip(".") for part in (error.what, error.cause, error.remedy) if part.strip()]
    return " ".join(f"{part if number == 0 else _WORD.sub(_capital, part)}." for number, part in enumerate(parts))


def _capital(found: re.Match[str]) -> str:
    return found[0].capitalize()


def _line(label: str, text: str, *, end: str = ": ") -> None:
    click.secho(label, fg="red" if label == "error" else None, bold=True, nl=False, err=True)
    click.echo(f"{end}{text}", err=True)
