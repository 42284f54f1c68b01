"""The workspace that a command works on."""

from typing import TYPE_CHECKING

import typer

from icon_assets.core.errors import IconError

if TYPE_CHECKING:
    from icon_assets.workspace import Workspace


def opened() -> "Workspace":
    """The workspace. If it was copied or moved, its published file is made again first."""
    from icon_assets.core.store.tables import Store
    from icon_assets.workspace import Workspace

    workspace = Workspace.load()
    Store(workspace.store_dir).publish_here()
    return workspace


def arms(context: typer.Context) -> list[str]:
    """The arms that shells offer; none where there is no workspace."""
    from icon_assets.workspace import Workspace

    named = context.params.get("workspace") or context.find_root().params.get("workspace")
    try:
        return list(Workspace.load(named).settings.selection.arms)
    except IconError:
        return []
