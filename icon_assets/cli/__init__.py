"""The command `icon-assets`: parsing, calling, printing. Exit code 0, 1 when something failed, 2 for bad usage, 130 for
a query that was interrupted.

Loads in a moment, for help and completion: whatever computes is imported by the command that needs it.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from icon_assets.cli import keeping, looking, publishing, running, setting_up  # noqa: F401  (they add their commands)
from icon_assets.cli.command import NAME, app
from icon_assets.cli.printing import harmless
from icon_assets.interrupts import end_like_ctrl_c


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        return typer.main.get_command(app).main(argv, prog_name=NAME, standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else NAME
        message = " ".join(harmless(error.format_message()).split()).rstrip(".")
        print(f"{path}: error: {message}; see `{path} --help`", file=sys.stderr)
        return error.exit_code


def entry() -> NoReturn:
    """The console script. Leaves without tearing the interpreter down: with torch loaded too, DuckDB's bindings would
    print pages of leak notices then, and nothing is left to do.
    """
    end_like_ctrl_c()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
