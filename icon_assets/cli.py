"""The command `icon-assets`: parsing, calling, printing. Exit code 0, 1 when something failed, 2 for bad usage."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
from rich.console import Console

from icon_assets.core.errors import IconError
from icon_assets.interrupts import end_like_ctrl_c
from icon_assets.settings import WORKSPACE_VARIABLE, Workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.workspace:
        os.environ[WORKSPACE_VARIABLE] = arguments.workspace
    try:
        return arguments.command(arguments)
    except IconError as error:
        _fail(arguments, str(error))
        return 1
    except KeyboardInterrupt:
        _fail(arguments, "interrupted; finished work is kept, run again to go on")
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (flushed once more on the way out)
        return 1


def entry() -> NoReturn:
    """The console script. Leaves without tearing the interpreter down: with torch loaded too, DuckDB's bindings would
    print pages of leak notices then, and nothing is left to do.
    """
    end_like_ctrl_c()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="icon-assets", description="Which instruction samples are worth training on.")
    parser.add_argument(
        "-w", "--workspace", metavar="DIR", help=f"workspace (default: ${WORKSPACE_VARIABLE}, then ./data)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument(
            "-w", "--workspace", metavar="DIR", default=argparse.SUPPRESS, help="workspace, as before COMMAND"
        )
        command.set_defaults(command=function)
        return command

    init = add("init", _init, "lay out a workspace with sample data")
    init.add_argument("directory", type=Path)
    add("plan", _plan, "what the next run will score, and what it costs")
    run = add("run", _run, "materialize the graph; what has not changed is kept")
    run.add_argument("--select", nargs="+", default=[], metavar="ASSET", help="only these assets")
    run.add_argument("--shards", nargs="+", default=[], metavar="FILE", help="of the pool, only these files")
    sql = add("sql", _sql, "query the published views")
    sql.add_argument("query")
    add("status", _status, "what the workspace holds")
    ui = add("ui", _ui, "open Dagster's web interface on 127.0.0.1")
    ui.add_argument("--port", type=int, default=3000)
    return parser


def _fail(arguments: argparse.Namespace, message: str) -> None:
    if arguments.json:
        print(json.dumps({"error": message}))
    else:
        print(f"icon-assets: {message}", file=sys.stderr)


def _init(arguments: argparse.Namespace) -> int:
    from icon_assets.home import create_workspace

    workspace = create_workspace(arguments.directory)
    if arguments.json:
        print(json.dumps({"workspace": str(workspace.root)}))
    else:
        print(f"Workspace {workspace.root} is ready. Next: icon-assets -w {arguments.directory} run")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from icon_assets.progress import plan_lines
    from icon_assets.resources import WorkspaceResource

    plan = WorkspaceResource(root=str(Workspace.load().root)).plan()
    print(json.dumps(plan.to_json()) if arguments.json else "\n".join(plan_lines(plan)))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    warnings.filterwarnings("ignore", category=Warning, module="dagster")
    from icon_assets.definitions import build_assets
    from icon_assets.home import open_instance
    from icon_assets.progress import RunDisplay
    from icon_assets.runner import run_stages, stages_of

    workspace = Workspace.load()
    stages = stages_of(arguments.select)
    assets = build_assets(workspace)
    with open_instance(workspace) as instance, RunDisplay(silent=arguments.json) as display:
        outcomes = []
        for outcome in run_stages(
            assets, workspace, instance, stages, files=arguments.shards, asked=arguments.select, on_start=display.start
        ):
            display.finish(outcome)
            outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if outcome.error]
    if arguments.json:
        print(
            json.dumps({"failed": len(failed), "runs": [_outcome_json(outcome) for outcome in outcomes]}, default=str)
        )
    elif "leaderboard" in stages and not failed:
        _print_results(workspace)
    return 1 if failed else 0


def _outcome_json(outcome: Any) -> dict[str, Any]:
    figures = {name: value for name, value in outcome.metadata.items() if isinstance(value, bool | int | float)}
    return {
        "asset": outcome.asset,
        "partition": outcome.partition,
        "error": outcome.error,
        "warning": outcome.warning,
        **figures,
    }


def _print_results(workspace: Workspace) -> None:
    from icon_assets.assets.evaluation import wide_board
    from icon_assets.core.store import Store

    board = Store(workspace.store_dir).query("FROM leaderboard ORDER BY task, metric, arm")
    print("\nLeaderboard (mean ± spread over seeds; base: before fine-tuning)")
    _print_frame(wide_board(board))
    command = f"icon-assets -w {os.path.relpath(workspace.root)}"
    print(f"""
Where to look next
  every score             {command} sql "FROM current_scores ORDER BY contribution DESC LIMIT 10"
  any DuckDB client       {workspace.store_dir / "scores.duckdb"} (read-only)
  assets and lineage      {command} ui, then http://127.0.0.1:3000""")


def _sql(arguments: argparse.Namespace) -> int:
    from icon_assets.core.store import Store

    frame = Store(Workspace.load().store_dir).query_published(arguments.query)
    if arguments.json:
        print(json.dumps(frame.to_dicts(), default=str))
    else:
        _print_frame(frame)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from icon_assets.core.store import Store, sql_text

    workspace = Workspace.load()
    row = Store(workspace.store_dir).query(sql_text("status.sql")).row(0, named=True)
    if arguments.json:
        print(json.dumps({"workspace": str(workspace.root), **row}, default=str))
        return 0
    print(f"workspace  {workspace.root}")
    for name, value in row.items():
        print(f"{name.replace('_', ' '):<24} {'-' if value is None else value}")
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    from icon_assets.home import dagster_home

    workspace = Workspace.load()
    dagster_home(workspace)
    os.environ[WORKSPACE_VARIABLE] = str(workspace.root)
    command = ["-m", "icon_assets.definitions", "-h", "127.0.0.1", "-p", str(arguments.port)]
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *command])  # noqa: S606


def _print_frame(frame: pl.DataFrame) -> None:
    """A table for people: one line per row, long texts cut, and no control characters: data don't steer a terminal."""
    frame = frame.with_columns(pl.col(pl.String).str.replace_all(r"[\s\p{Cc}]+", " "))
    width = Console().width if sys.stdout.isatty() else 200
    with pl.Config(
        tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_formatting="UTF8_FULL_CONDENSED",
        tbl_rows=200, tbl_cols=-1, fmt_str_lengths=60, tbl_width_chars=width, float_precision=4,
    ):  # fmt: skip
        print(frame)


if __name__ == "__main__":
    entry()
