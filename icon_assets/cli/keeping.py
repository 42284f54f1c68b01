"""Commands that keep what is stored safe."""

from typing import Annotated, Any

import typer

from icon_assets.cli.command import KEEP_SAFE, Json, command
from icon_assets.core.strict_json import strict_json


@command(
    KEEP_SAFE,
    "Compare everything that is stored with the ledger.",
    "icon-assets verify",
    "icon-assets -w mine verify --json",
)
def verify(json: Json = False) -> int:
    from icon_assets.core.quality.verification import verify
    from icon_assets.workspace import Workspace

    done = verify(Workspace.load())
    if json:
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


@command(
    KEEP_SAFE,
    "Show how to repair a damaged store; with --yes do it.",
    "icon-assets repair         # what would be done",
    "icon-assets repair --yes   # do it",
)
def repair(
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    json: Json = False,
) -> int:
    from icon_assets.core.store.restoration import repair, repairs
    from icon_assets.core.store.tables import Store
    from icon_assets.workspace import Workspace

    store = Store(Workspace.load().store_dir)
    lines = list(repair(store)) if yes else [str(each) for each in repairs(store)]
    if json:
        print(strict_json({"done" if yes else "planned": lines}))
    elif not lines:
        print("Nothing to repair.")
    else:
        then = "Next: icon-assets run" if yes else "Nothing was changed; `icon-assets repair --yes` does this."
        print("\n".join([*lines, then]))
    return 0
