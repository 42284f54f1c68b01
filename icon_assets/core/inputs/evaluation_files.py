"""The files of evaluation data and probes that the settings name."""

from pathlib import Path

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.source_files import SourceFile, discover
from icon_assets.settings import EvaluationSettings
from icon_assets.workspace import Workspace

HELD_OUT = "held_out"
TARGET = "target"

PROMPT_FILE = "prompt_file"


def probe_inputs(workspace: Workspace) -> list[tuple[str, SourceFile]]:
    """The files besides the pool that determine the probe set, each with its kind."""
    sources = discover(workspace.input_path(workspace.settings.probes.path), "probes.path")
    evaluation = [(kind, SourceFile(name, name, path)) for kind, name, path in evaluation_files(workspace)]
    return [*(("probe_file", source) for source in sources), *evaluation]


def target_files(settings: EvaluationSettings) -> list[str]:
    """The files of the sealed test, if there is one."""
    return [path for name, path in (*choice_files(settings), *sample_files(settings)) if name == TARGET]


def choice_files(settings: EvaluationSettings) -> list[tuple[str, str]]:
    """Task and path of every file of multiple-choice items."""
    target = settings.target.choices if settings.target else None
    return [*((task.name, task.path) for task in settings.multiple_choice), *([(TARGET, target)] if target else [])]


def sample_files(settings: EvaluationSettings) -> list[tuple[str, str]]:
    """Task and path of every file of samples whose loss is measured."""
    target = settings.target.samples if settings.target else None
    return [(name, path) for name, path in ((HELD_OUT, settings.held_out), (TARGET, target)) if path]


def evaluation_files(workspace: Workspace) -> list[tuple[str, str, Path]]:
    """The evaluation data named in the settings: (kind, name, path), prompts of the pairwise comparison among them.

    Raises:
        IconError: one of them is missing.
    """
    settings = workspace.settings.evaluation
    names = [path for _, path in (*choice_files(settings), *sample_files(settings))]
    prompts = [each.path for each in settings.pairwise.prompts] if settings.pairwise else []
    paths = [("evaluation_file", name, workspace.input_path(name)) for name in names]
    paths += [(PROMPT_FILE, name, workspace.input_path(name)) for name in prompts]
    for _, name, path in paths:
        if not path.is_file():
            raise IconError(f"{path}: no such file; create it or take {name!r} out of the evaluation settings")
    return paths
