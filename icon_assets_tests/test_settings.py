"""Settings: validated, refused with one line, overridable."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from icon_assets.core.errors import IconError
from icon_assets.settings import Settings, TrainingSettings, Workspace
from icon_assets_tests.furnished import sections_in

MakeWorkspace = Callable[..., Workspace]


def test_the_shipped_settings_are_valid() -> None:
    workspace = Workspace.load(Path(__file__).parents[1] / "data")
    assert workspace.settings.model.name == "bundled:smollm2-135m-instruct"
    assert len(workspace.settings.selection.arms) >= 3


def test_a_variable_overrides_the_file(make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_workspace(probes={"count": 4, "seed": 3}).root
    monkeypatch.setenv("ICON_PROBES__COUNT", "7")
    monkeypatch.setenv("ICON_TRAINING__SEEDS", "[5, 6]")
    settings = Workspace.load(root).settings
    assert (settings.probes.count, settings.probes.seed, settings.training.seeds) == (7, 3, (5, 6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("probes: {cuont: 3}", "probes.cuont: unknown key"),
        ("probe: {count: 3}", "probe: unknown key"),
        ("probes: {count: 0}", "probes.count: Input should be greater than or equal to 1"),
        ("selection: {fraction: 1.5}", "selection.fraction"),
        ("controls: {kinds: [random_tokens]}", "must contain 'none'"),
        ("controls: {lengths: [64, 16]}", "ascending"),
        ("controls: {primary: random_chars}", "'random_chars' is not among kinds"),
        ("probes: {budget: 1.5}", "probes.budget"),
        ("scoring: {tokens_per_forward: 3}", "scoring.tokens_per_forward"),
        ("training: {preset: huge}", "training.preset: Input should be 'paper' or 'small'"),
        ("training: {preset: [paper]}", "training.preset: Input should be 'paper' or 'small'"),
        ("training: {processes: 0}", "training.processes"),
        ("probes: [", "not valid YAML"),
        ("- a", "must hold keys"),
    ],
)
def test_a_wrong_file_is_refused_with_one_line_that_names_the_key(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "settings.yaml").write_text(content)
    with pytest.raises(IconError) as caught:
        Workspace.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "settings.yaml") in str(caught.value)


def test_a_misspelt_variable_is_refused(make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_workspace().root
    monkeypatch.setenv("ICON_PROBE__COUNT", "7")
    with pytest.raises(IconError, match="ICON_PROBE__COUNT: no such setting"):
        Workspace.load(root)


def test_a_missing_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IconError, match="icon-assets init"):
        Workspace.load(tmp_path / "nowhere")


def test_every_setting_and_every_section_is_described() -> None:
    found = list(_fields(Settings))
    assert {name for name, _ in found} >= {"model", "training.max_tokens", "evaluation.pairwise.judge.url"}
    undescribed = [name for name, field in found if not (field.description or "").endswith(".")]
    assert undescribed == [], "each wants one sentence or more"


def _fields(section: type[Any], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        for inner in sections_in(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def test_what_is_given_wins_over_the_preset_and_the_recipe_holds_what_came_out(
    make_workspace: MakeWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_workspace(training={"preset": "paper", "epochs": 1}).root
    monkeypatch.setenv("ICON_TRAINING__BATCH_SIZE", "64")
    recipe = Workspace.load(root).settings.training.recipe
    assert (recipe["method"], recipe["learning_rate"], recipe["max_tokens"]) == ("full", 2e-5, 2048)
    assert (recipe["epochs"], recipe["batch_size"]) == (1, 64)
    assert not recipe.keys() & {"preset", "seeds", "packing", "processes"}


def test_the_small_preset_is_what_applies_without_one() -> None:
    assert TrainingSettings.model_validate({"preset": "small"}).recipe == TrainingSettings().recipe
