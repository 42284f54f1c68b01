"""Commands that write what leaves the workspace."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from icon_assets.cli.command import PUBLISH, Json, command
from icon_assets.cli.opening import arms, opened
from icon_assets.core.strict_json import strict_json


@command(
    PUBLISH,
    "Write an arm's samples with a data card, for training elsewhere.",
    "icon-assets export --arm icon --format messages",
    "icon-assets export --arm icon --format parquet --out chosen",
)
def export(
    arm: Annotated[str, typer.Option(metavar="ARM", help="Whose samples.", autocompletion=arms)],
    format: Annotated[Literal["alpaca", "messages", "parquet"], typer.Option(help="What a row looks like.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to (default: exports/ARM-FORMAT in the workspace).")
    ] = None,
    json: Json = False,
) -> int:
    from icon_assets.core.publish.export import export

    done = export(opened(), arm, format, out)
    if json:
        print(strict_json({**vars(done), "directory": str(done.directory)}))
        return 0
    print(f"{done.samples:,} samples of arm {done.arm} as {done.format} in {done.directory} (digest {done.digest})")
    if done.flattened:
        print(
            f"{done.flattened:,} chats have their earlier turns in the instruction; --format messages keeps turns "
            "separate"
        )
    return 0


@command(
    PUBLISH,
    "Write one HTML page about everything the workspace holds.",
    "icon-assets report",
    "icon-assets report --out page.html",
)
def report(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to (default: exports/report.html in the workspace).")
    ] = None,
    json: Json = False,
) -> int:
    from icon_assets.core.publish.report import write_report

    done = write_report(opened(), out)
    if json:
        print(strict_json({**vars(done), "path": str(done.path)}))
        return 0
    print(f"{done.path} ({done.n_bytes / 1e6:.2f} MB, one file, open it in any browser)")
    if done.missing:
        print(f"nothing to show yet for: {', '.join(done.missing)}; the page says what to run")
    return 0
