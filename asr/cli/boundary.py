"""Where every command ends: what went wrong becomes a line and an exit code.

=========================  ====  =====================================================
what                       code  what is printed on standard error
=========================  ====  =====================================================
a mistake in the command   2     ``error: ...``, the usage, where help is
:class:`AsrError`          2     ``error: ...``
``asr info`` finds damage  2     nothing: it stands on standard output
anything else              1     ``internal error: ... (run again with --debug)``
Ctrl-C                     130   what is kept, and how to go on
a closed pipe              1     nothing
=========================  ====  =====================================================

``--debug``, anywhere on the line, shows the traceback as well.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from asr.cli.output import fail, is_main_process, stderr
from asr.errors import AsrError, did_you_mean

# typer brings its own copy of click in newer versions: whichever it is, these are its errors.
_UsageError: Any = typer.BadParameter.__base__
_ClickError: Any = _UsageError.__base__

INTERRUPTED = 130


class StoppedError(KeyboardInterrupt):
    """Ctrl-C, with what the user can do next."""


class Command(TyperCommand):
    """A command; its usage names required arguments without typer's braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands after the command's name in the usage line."""
        pieces = super().collect_usage_pieces(ctx)
        return [re.sub(r"^\{(.+)\}$", r"\1", piece) for piece in pieces]


class Boundary(TyperGroup):
    """The group of all commands; see the module."""

    debug = False

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit, or return the exit code (``standalone_mode=False``)."""
        given = list(sys.argv[1:] if args is None else args)
        given, self.debug = without_debug(given)
        try:
            result = super().main(given, "asr", complete_var, False, windows_expand_args, **extra)
            code = result if isinstance(result, int) else 0
        except _ClickError as error:
            self._report_usage(error)
            code = 2
        except typer.Abort:
            code = INTERRUPTED
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the module."""
        try:
            with _quiet(self.debug):
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except BrokenPipeError:
            # Python flushes standard output once more at exit: that must not fail loudly either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (typer.Exit, typer.Abort, _ClickError):
            raise
        except AsrError as error:
            self._report(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            if is_main_process():
                stderr().print(str(error) or "stopped", soft_wrap=True)
            if self.debug:
                traceback.print_exc()
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            # Of any process: what is wrong in one of them alone would go unseen otherwise.
            where = "" if is_main_process() else f" in process {os.environ.get('RANK')}"
            text = str(error).strip().partition("\n")[0]
            kind = type(error).__name__
            hint = "" if self.debug else " (run again with --debug)"
            self._report(
                f"{kind}: {text}{hint}" if text else f"{kind}{hint}",
                f"internal error{where}",
                always=True,
            )
            raise typer.Exit(1) from error

    def _report(self, message: str, label: str = "error", always: bool = False) -> None:
        if self.debug:
            traceback.print_exc()
        if always or is_main_process():
            fail(message, label)

    def _report_usage(self, error: Any) -> None:
        message = _mended(error.format_message().strip())
        if not is_main_process():
            return
        fail(message)
        context = getattr(error, "ctx", None)
        if context is not None:
            console = stderr()
            console.print(context.get_usage().strip(), style="dim", soft_wrap=True)
            console.print(f"help: {context.command_path} --help", style="dim", soft_wrap=True)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, or say which ones there are."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = list(self.commands)
            near = did_you_mean(args[0], known)
            ctx.fail(f"unknown command '{args[0]}'{near}; there are: {', '.join(known)}")
        return super().resolve_command(ctx, args)


def without_debug(args: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out of the arguments, wherever it stands before ``--``."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"]
    return [*kept, *args[end:]], len(kept) < end


def _mended(message: str) -> str:
    """Put click's sentences into the form of our own."""
    message = message.rstrip(".")
    option = re.match(r"No such option:? '?(-[\w-]+)'?", message)
    if option is None:
        return message[:1].lower() + message[1:]
    near = re.findall(r"--[\w-]+", message[option.end() :])
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"unknown option '{option.group(1)}'{hint}"


@contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keep notices of libraries out of the output: a user can do nothing about them."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        yield
