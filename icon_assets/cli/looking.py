"""Commands that show what is there."""

from typing import Annotated

import typer

from icon_assets.cli.command import LOOK, Json, command, fail
from icon_assets.cli.opening import arms, opened
from icon_assets.cli.printing import print_frame
from icon_assets.core.errors import IconError
from icon_assets.core.strict_json import strict_json

_INTERRUPTED = 130  # the exit code of a shell for a command that Ctrl-C ended


@command(LOOK, "Show what the workspace holds.", "icon-assets status", "icon-assets -w mine status --json")
def status(json: Json = False) -> int:
    from icon_assets.core.store.schema import sql_text
    from icon_assets.core.store.tables import Store

    workspace = opened()
    row = Store(workspace.store_dir).query(sql_text("status.sql")).row(0, named=True)
    if json:
        print(strict_json({"workspace": str(workspace.root), **row}))
        return 0
    print(f"workspace  {workspace.root}")
    for name, value in row.items():
        print(f"{name.replace('_', ' '):<24} {'-' if value is None else value}")
    return 0


def _positive(seconds: float | None) -> float | None:
    if seconds is not None and not seconds > 0:
        raise typer.BadParameter(f"must be more than 0, not {seconds:g}")
    return seconds


@command(
    LOOK,
    "Query the published views.",
    'icon-assets sql "FROM leaderboard"',
    'icon-assets sql "SELECT file, count(*) FROM samples GROUP BY file" --json',
    'icon-assets sql "FROM current_scores ORDER BY rank LIMIT 10" --timeout 5',
)
def sql(
    query: Annotated[str, typer.Argument(help="A query in DuckDB's SQL.")],
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", callback=_positive, help="Stop the query after this time (default: sql.timeout_seconds)."
        ),
    ] = None,
    json: Json = False,
) -> int:
    from icon_assets.core.store.queries import Bounds
    from icon_assets.core.store.tables import Store

    workspace = opened()
    bounds = Bounds.of(workspace.settings.sql, timeout)
    try:
        answer = Store(workspace.store_dir).answer(query, bounds)
    except KeyboardInterrupt:
        fail("sql: interrupted", json)
        return _INTERRUPTED
    if json:
        print(strict_json(answer.rows()))
    else:
        print_frame(answer.frame)
    return 0


@command(LOOK, "Show whether to trust the selections.", "icon-assets trust", "icon-assets trust --arm icon")
def trust(
    arm: Annotated[
        str | None, typer.Option(metavar="ARM", help="Only this arm, with every figure.", autocompletion=arms)
    ] = None,
    json: Json = False,
) -> int:
    import polars as pl

    from icon_assets.core.store.tables import Store
    from icon_assets.core.trust.warnings import summary, warnings

    workspace = opened()
    figures = Store(workspace.store_dir).query("FROM trust_figures ORDER BY arm, figure, against")
    if arm:
        figures = figures.filter(pl.col("arm") == arm)
    if figures.is_empty():
        raise IconError(
            f"trust: no figures for {arm or 'any arm'}; run `icon-assets run --select selected_subset selection_trust`"
        )
    lines = warnings(figures, workspace.settings.selection.length_warning)
    if json:
        print(strict_json({"figures": figures.to_dicts(), "warnings": lines}))
        return 0
    print_frame(figures.drop("subset_id", "arm") if arm else summary(figures))
    print("\n".join([f"! {line}" for line in lines] or ["No warnings."]))
    return 0


@command(
    LOOK,
    "Say why a sample was chosen or not.",
    "icon-assets why a.jsonl:2",
    "icon-assets why a.jsonl:2 --arm icon --json",
)
def why(
    sample: Annotated[
        str, typer.Argument(help="A sample's id, its first characters (at least 8), or FILE:ROW of the pool.")
    ],
    arm: Annotated[
        str | None, typer.Option(metavar="ARM", help="Only this arm, and probes by its control.", autocompletion=arms)
    ] = None,
    json: Json = False,
) -> int:
    from dataclasses import asdict

    from icon_assets.core.publish import why as reasons
    from icon_assets.core.publish.why_lines import why_lines

    found = reasons.why(opened(), sample, arm)
    print(strict_json(asdict(found)) if json else "\n".join(why_lines(found)))
    return 0


@command(
    LOOK,
    "Open Dagster's web interface on 127.0.0.1.",
    "icon-assets ui",
    "icon-assets -w mine ui --port 8080 --read-only",
)
def ui(
    port: Annotated[int, typer.Option(metavar="PORT", help="Where it is heard; 0 takes a free one.")] = 3000,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="View only: nothing can be started or changed.")
    ] = False,
    json: Json = False,
) -> int:
    from icon_assets.ui.terminal import run_ui

    opened()
    return run_ui(port, read_only, json)
