"""The ``vtskip`` program: a table of commands, each in its own file and imported when it is named or listed."""

import errno
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from vtskip import __version__
from vtskip.errors import VtskipError, nearest

# In the order of a first use. Every file defines `command`, or `app` with commands of its own.
COMMANDS = (
    *(
        "methods",
        "models",
        "env",
        "config",
        "data",
        "train",
        "export",
        "calibrate",
        "stream",
        "eval",
        "report",
        "bench",
        "cost",
    ),
    "sweep",
)
_PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}
# Faults of a path or disk the user named, not of this program: reported without a traceback.
_USER_IO = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class LazyGroup(TyperGroup):
    """Commands by name, each imported from its file on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module = import_module(f"vtskip.cli.{cmd_name}")
            app = getattr(module, "app", None)
            if app is None:
                app = typer.Typer(**_PLAIN)
                app.command(cmd_name)(module.command)
                self.commands[cmd_name] = get_command(app)
            else:
                self.commands[cmd_name] = get_group(app)
                self.commands[cmd_name].name = cmd_name
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; accepted: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}, **_PLAIN
)


def _version(value: bool) -> None:
    if value:
        print(f"vtskip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Vision tokens that skip layers: cheaper video and multimodal LLMs on stock Hugging Face models."""


def main(argv: list[str] | None = None) -> int:
    """Run the program on ``argv`` (``sys.argv`` by default) and return its exit code.

    0 success, 2 bad usage or input (one line on stderr that starts with ``error:``), 130 interrupted
    (training stopped by a signal: 128 and its number).
    """
    try:
        get_command(app).main(args=argv, prog_name="vtskip")
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except VtskipError as e:
        return _refuse("; ".join(line.strip() for line in str(e).splitlines() if line.strip()), e.exit_code)
    except OSError as e:
        if e.errno not in _USER_IO or e.filename is None:
            raise
        return _refuse(f"{e.filename}: {e.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0


def _refuse(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
