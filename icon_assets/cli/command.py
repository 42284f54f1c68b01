"""What all commands share: how one is added, its help, the options that every one has, and what becomes of errors."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from icon_assets.cli.printing import harmless
from icon_assets.cli.spelling import spelled_out
from icon_assets.core.errors import IconError, is_out_of_memory
from icon_assets.core.strict_json import strict_json

NAME = "icon-assets"
SET_UP = "Set up"
RUN = "Run"
LOOK = "Look"
PUBLISH = "Publish"
KEEP_SAFE = "Keep safe"
_GROUPS = (SET_UP, RUN, LOOK, PUBLISH, KEEP_SAFE)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Before = Annotated[
    str | None,
    typer.Option("-w", "--workspace", metavar="DIR", help="Workspace (default: $ICON_WORKSPACE, then ./data)."),
]
_After = Annotated[
    str | None, typer.Option("-w", "--workspace", metavar="DIR", help="Workspace, as before the command.")
]


class _Command(TyperCommand):
    """A command; its epilog is examples, one a line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spelled_out(ctx, self, args, until_positional=False))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write(f"  {line}\n")


class _Commands(TyperGroup):
    """All commands, in groups by what they are for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelled = spelled_out(ctx, self, args, until_positional=True)
        has_command = "--" in spelled
        rest = super().parse_args(ctx, spelled)  # help and version end here
        if not has_command and not ctx.resilient_parsing:
            ctx.fail(f"COMMAND is missing, one of {', '.join(self.list_commands(ctx))}")
        return rest

    def list_commands(self, ctx: Any) -> list[str]:
        return [each.name for group in _GROUPS for each in self._members(group)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group in _GROUPS:
            with formatter.section(group):
                formatter.write_dl([(each.name, each.help) for each in self._members(group)])

    def _members(self, group: str) -> list[Any]:
        commands: list[Any] = list(self.commands.values())
        return [each for each in commands if each.rich_help_panel == group]


app = typer.Typer(
    cls=_Commands,
    help="Which instruction samples are worth training on.",
    epilog=f"`{NAME} COMMAND --help` shows a command's options and examples.",
    subcommand_metavar="COMMAND ...",
    context_settings=_CONTEXT,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"{NAME} {version(NAME)}")
        raise typer.Exit


@app.callback()
def _before(
    workspace: _Before = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _use(workspace)


def _use(workspace: str | None) -> None:
    from icon_assets.workspace import WORKSPACE_VARIABLE

    if workspace:
        os.environ[WORKSPACE_VARIABLE] = workspace


def command(group: str, description: str, *examples: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a command of a function that prints and returns the exit code.

    Its parameters are the options and arguments; `json` is one of them. The option for the workspace is added here.
    """

    def add(function: Callable[..., int]) -> Callable[..., int]:
        app.command(
            cls=_Command,
            help=description,
            epilog="\n".join(examples),
            rich_help_panel=group,
            context_settings=_CONTEXT,
        )(_guarded(function))
        return function

    return add


def _guarded(function: Callable[..., int]) -> Callable[..., int]:
    """The function in the workspace that is named; an error that a user can mend is one line and exit code 1."""

    @wraps(function)
    def call(*, workspace: str | None, json: bool, **values: Any) -> int:
        _use(workspace)
        try:
            return function(json=json, **values)
        except IconError as error:
            fail(str(error), json)
        except KeyboardInterrupt:
            fail("interrupted; finished work is kept, run again to continue", json)
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (flushed once more on the way out)
        except (Exception, _panic()) as error:
            fault = _fault(error)
            if fault is None:
                raise
            fail(fault, json)
        return 1

    own = signature(function, eval_str=True)
    added = Parameter("workspace", Parameter.KEYWORD_ONLY, default=None, annotation=_After)
    call.__signature__ = own.replace(parameters=[*own.parameters.values(), added])  # pyright: ignore[reportAttributeAccessIssue]
    return call


def fail(message: str, json: bool) -> None:
    """Print what went wrong."""
    message = harmless(message)
    if json:
        print(strict_json({"error": message}))
    else:
        print(f"{NAME}: {message}", file=sys.stderr)


def _panic() -> type[BaseException]:
    """What polars raises where it can't go on, such as without memory for its threads; no `Exception`."""
    import polars as pl

    return pl.exceptions.PanicException


def _fault(error: BaseException) -> str | None:
    """One line that tells the user what to do about an error of a library; None for other errors."""
    import duckdb

    from icon_assets.core.store.tables import Store
    from icon_assets.workspace import Workspace

    if is_out_of_memory(error):
        said = " ".join(str(error).split())[:150] or type(error).__name__
        return f"out of memory ({said}); free some, or raise its limit, then run again: finished work is kept"
    damage = Store(Workspace.load().store_dir).damage_of(error) if isinstance(error, duckdb.Error) else None
    return str(damage) if damage else None
