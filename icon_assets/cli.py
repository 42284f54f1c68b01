"""The command `icon-assets`: parsing, calling, printing. Exit code 0, 1 when something failed, 2 for bad usage."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import duckdb
import polars as pl
from rich.console import Console

from icon_assets.core.errors import IconError, is_out_of_memory
from icon_assets.core.strict_json import strict_json
from icon_assets.interrupts import end_like_ctrl_c
from icon_assets.settings import Settings
from icon_assets.workspace import WORKSPACE_VARIABLE, Workspace

_INTERRUPTED = 130  # the exit code of a shell for a command that Ctrl-C ended
# Control characters, line and paragraph separators, and characters that change the writing direction.
_STEERING = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069"


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
        _fail(arguments, "interrupted; finished work is kept, run again to continue")
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (flushed once more on the way out)
        return 1
    except Exception as error:
        fault = _fault(error)
        if fault is None:
            raise
        _fail(arguments, fault)
        return 1


def _fault(error: Exception) -> str | None:
    """One line that tells the user what to do about an error of a library; None for other errors."""
    from icon_assets.core.store.tables import Store

    if is_out_of_memory(error):
        said = " ".join(str(error).split())[:150] or type(error).__name__
        return f"out of memory ({said}); free some, or raise its limit, then run again: finished work is kept"
    damage = Store(Workspace.load().store_dir).damage_of(error) if isinstance(error, duckdb.Error) else None
    return str(damage) if damage else None


def entry() -> NoReturn:
    """The console script. It exits without tearing the interpreter down. Otherwise, with torch loaded, DuckDB's
    bindings would print pages of leak notices.
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

    init = add("init", _init, "create a workspace with sample data")
    init.add_argument("directory", type=Path)
    add("plan", _plan, "show what the next run will score, and its cost")
    run = add("run", _run, "materialize the assets that are not up to date")
    run.add_argument("--select", nargs="+", default=[], metavar="ASSET", help="only these assets")
    run.add_argument("--shards", nargs="+", default=[], metavar="FILE", help="only these files of the pool")
    sql = add("sql", _sql, "query the published views")
    sql.add_argument("query")
    sql.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="stop the query after this time (default: sql.timeout_seconds)",
    )
    trust = add("trust", _trust, "show whether to trust the selections")
    trust.add_argument("--arm", metavar="ARM", help="only this arm, with every figure")
    add("status", _status, "show what the workspace holds")
    add("verify", _verify, "compare everything that is stored with the ledger")
    repair = add("repair", _repair, "show how to repair a damaged store; with --yes do it")
    repair.add_argument("--yes", action="store_true", help="do it")
    export = add("export", _export, "write an arm's samples with a data card, for training elsewhere")
    export.add_argument("--arm", required=True)
    export.add_argument("--format", required=True, choices=("alpaca", "messages", "parquet"))
    export.add_argument("--out", type=Path, metavar="DIR", help="default: exports/ARM-FORMAT in the workspace")
    report = add("report", _report, "write one HTML page about everything the workspace holds")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: exports/report.html in the workspace")
    ui = add("ui", _ui, "open Dagster's web interface on 127.0.0.1")
    ui.add_argument("--port", type=int, default=3000)
    ui.add_argument("--read-only", action="store_true", help="view only: nothing can be started or changed")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def _opened() -> Workspace:
    """The workspace. If it was copied or moved, its published file is made again first."""
    from icon_assets.core.store.tables import Store

    workspace = Workspace.load()
    Store(workspace.store_dir).publish_here()
    return workspace


def _fail(arguments: argparse.Namespace, message: str) -> None:
    message = _harmless(message)
    if arguments.json:
        print(strict_json({"error": message}))
    else:
        print(f"icon-assets: {message}", file=sys.stderr)


def _init(arguments: argparse.Namespace) -> int:
    from icon_assets.home import create_workspace

    workspace = create_workspace(arguments.directory)
    if arguments.json:
        print(strict_json({"workspace": str(workspace.root)}))
    else:
        print(f"Workspace {workspace.root} is ready. Next: icon-assets -w {arguments.directory} run")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from icon_assets.progress import plan_lines
    from icon_assets.resources import WorkspaceResource

    plan = WorkspaceResource(root=str(_opened().root)).plan()
    print(strict_json(plan.to_json()) if arguments.json else "\n".join(plan_lines(plan)))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    warnings.filterwarnings("ignore", category=Warning, module="dagster")
    from icon_assets.definitions import build_assets
    from icon_assets.home import open_instance
    from icon_assets.progress import RunDisplay
    from icon_assets.runner import run_stages, stages_of

    workspace = _opened()
    assets = build_assets(workspace)
    stages = stages_of(assets, arguments.select)
    with open_instance(workspace) as instance, RunDisplay(silent=arguments.json) as display:
        outcomes = []
        for outcome in run_stages(
            assets, workspace, instance, stages, files=arguments.shards, asked=arguments.select, on_start=display.start
        ):
            display.finish(outcome)
            outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if outcome.error]
    if arguments.json:
        print(strict_json({"failed": len(failed), "runs": [_outcome_json(outcome) for outcome in outcomes]}))
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
    from icon_assets.core.evaluation.leaderboard import wide_board
    from icon_assets.core.store.tables import Store

    store = Store(workspace.store_dir)
    print(
        "\nLeaderboard (mean ± spread over seeds; base: before fine-tuning; cost: all of the scoring, one seed's "
        "training)"
    )
    _print_frame(wide_board(store.query("FROM leaderboard ORDER BY task, metric, arm")))
    _print_differences(store, workspace.settings)
    command = f"icon-assets -w {os.path.relpath(workspace.root)}"
    best = f"FROM current_scores WHERE control = '{workspace.settings.controls.primary}' ORDER BY rank LIMIT 10"
    print(f"""
Where to look next
  every score             {command} sql "{best}"
  a page to send          {workspace.exports_dir / "report.html"}
  any DuckDB client       {workspace.store_dir / "scores.duckdb"} (read-only)
  assets and lineage      {command} ui, then http://127.0.0.1:3000""")


def _print_differences(store: Any, settings: Settings) -> None:
    """Differences to the first baseline arm, and the verdict on each arm."""
    from icon_assets.core.evaluation.comparison import AGAINST, differences_of, headline
    from icon_assets.core.evaluation.leaderboard import wide_differences
    from icon_assets.core.evaluation.verdicts import verdicts_of

    differences = differences_of(store)
    for against in [each for each in AGAINST if each in differences["against"].to_list()][:1]:
        n = headline(differences).filter(pl.col("against") == against)["n_comparisons"].max()
        print(
            f"\nDifferences to {against}, {settings.evaluation.confidence:.0%} intervals over items and seeds "
            f"(verdicts: after Holm over {n} comparisons)"
        )
        _print_frame(wide_differences(differences, against))
    for arm, sentence in verdicts_of(differences, settings.selection.reference).items():
        print(f"{arm}: {sentence}")


def _sql(arguments: argparse.Namespace) -> int:
    from icon_assets.core.store.queries import Bounds
    from icon_assets.core.store.tables import Store

    workspace = _opened()
    bounds = Bounds.of(workspace.settings.sql, arguments.timeout)
    try:
        answer = Store(workspace.store_dir).answer(arguments.query, bounds)
    except KeyboardInterrupt:
        _fail(arguments, "sql: interrupted")
        return _INTERRUPTED
    if arguments.json:
        print(strict_json(answer.rows()))
    else:
        _print_frame(answer.frame)
    return 0


def _trust(arguments: argparse.Namespace) -> int:
    from icon_assets.core.store.tables import Store
    from icon_assets.core.trust.warnings import summary, warnings

    workspace = _opened()
    figures = Store(workspace.store_dir).query("FROM trust_figures ORDER BY arm, figure, against")
    if arguments.arm:
        figures = figures.filter(pl.col("arm") == arguments.arm)
    if figures.is_empty():
        raise IconError(
            f"trust: no figures for {arguments.arm or 'any arm'}; run `icon-assets run --select selected_subset "
            "selection_trust`"
        )
    lines = warnings(figures, workspace.settings.selection.length_warning)
    if arguments.json:
        print(strict_json({"figures": figures.to_dicts(), "warnings": lines}))
        return 0
    _print_frame(figures.drop("subset_id", "arm") if arguments.arm else summary(figures))
    print("\n".join([f"! {line}" for line in lines] or ["No warnings."]))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from icon_assets.core.store.schema import sql_text
    from icon_assets.core.store.tables import Store

    workspace = _opened()
    row = Store(workspace.store_dir).query(sql_text("status.sql")).row(0, named=True)
    if arguments.json:
        print(strict_json({"workspace": str(workspace.root), **row}))
        return 0
    print(f"workspace  {workspace.root}")
    for name, value in row.items():
        print(f"{name.replace('_', ' '):<24} {'-' if value is None else value}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from icon_assets.core.quality.verification import verify

    done = verify(Workspace.load())
    if arguments.json:
        print(strict_json(vars(done)))
    else:
        print("\n".join([*(f"! {line}" for line in done.mismatches), *_verified_lines(done)]))
    return 1 if done.mismatches else 0


def _verified_lines(done: Any) -> list[str]:
    lines = [
        f"{table}: written before contents were recorded; its contents are recorded now"
        for table in done.known_from_here
    ]
    verdict = f"{len(done.mismatches)} mismatches" if done.mismatches else "all as recorded"
    way = (
        "; the next run makes again what it can, `icon-assets repair` helps with unreadable files"
        if done.mismatches
        else ""
    )
    return [*lines, f"{done.tables} tables, {done.rows:,} rows: {verdict}{way}"]


def _repair(arguments: argparse.Namespace) -> int:
    from icon_assets.core.store.restoration import repair, repairs
    from icon_assets.core.store.tables import Store

    store = Store(Workspace.load().store_dir)
    lines = list(repair(store)) if arguments.yes else [str(each) for each in repairs(store)]
    if arguments.json:
        print(strict_json({"done" if arguments.yes else "planned": lines}))
    elif not lines:
        print("Nothing to repair.")
    else:
        then = (
            "Next: icon-assets run" if arguments.yes else "Nothing was changed; `icon-assets repair --yes` does this."
        )
        print("\n".join([*lines, then]))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from icon_assets.core.publish.export import export

    done = export(_opened(), arguments.arm, arguments.format, arguments.out)
    if arguments.json:
        print(strict_json({**vars(done), "directory": str(done.directory)}))
        return 0
    print(f"{done.samples:,} samples of arm {done.arm} as {done.format} in {done.directory} (digest {done.digest})")
    if done.flattened:
        print(
            f"{done.flattened:,} chats have their earlier turns in the instruction; --format messages keeps turns "
            "separate"
        )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from icon_assets.core.publish.report import write_report

    done = write_report(_opened(), arguments.out)
    if arguments.json:
        print(strict_json({**vars(done), "path": str(done.path)}))
        return 0
    print(f"{done.path} ({done.n_bytes / 1e6:.2f} MB, one file, open it in any browser)")
    if done.missing:
        print(f"nothing to show yet for: {', '.join(done.missing)}; the page says what to run")
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    from icon_assets.ui.terminal import run_ui

    _opened()
    return run_ui(arguments.port, arguments.read_only, arguments.json)


def _harmless(text: str) -> str:
    return re.sub(f"[{_STEERING}]+", " ", text)


def _print_frame(frame: pl.DataFrame) -> None:
    """A table for people: one line per row, long texts cut, and no control characters, so that data can't control a
    terminal."""
    frame = frame.with_columns(pl.col(pl.String).str.replace_all(rf"[\s{_STEERING}]+", " "))
    names = [_harmless(name) for name in frame.columns]
    if len(set(names)) == len(names):
        frame.columns = names
    width = Console().width if sys.stdout.isatty() else 200
    with pl.Config(
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="UTF8_FULL_CONDENSED",
        tbl_rows=200,
        tbl_cols=-1,
        fmt_str_lengths=60,
        tbl_width_chars=width,
        float_precision=4,
    ):
        print(frame)


if __name__ == "__main__":
    entry()
