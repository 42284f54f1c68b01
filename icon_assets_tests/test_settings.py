"""Settings: validated, refused with one line, overridable."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from icon_assets.core.errors import IconError
from icon_assets.settings import Settings, TrainingSettings
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import change
from icon_assets_tests.furnished import sections_in

MakeWorkspace = Callable[..., Workspace]
TASK = "{name: sums, path: eval/sums.jsonl}"
PAIRWISE = "evaluation: {pairwise: {prompts: [{name: x, path: eval/x}], judge: {url: 'http://a', model: m, %s}}}"


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
        ("selection: {arms: [icon, random, icon]}", "selection.arms: Value error, 'icon' is there twice"),
        ("training: {seeds: [0, 0]}", "training.seeds: Value error, 0 is there twice"),
        ("training: {seeds: [-1]}", "training.seeds.0: Input should be greater than or equal to 0; got '-1'"),
        ("training: {seeds: [4294967296]}", "training.seeds.0: Input should be less than 4294967296"),
        ("selection: {seed: 99999999999999999999}", "selection.seed: Input should be less than"),
        (
            f"evaluation: {{multiple_choice: [{TASK}, {TASK}]}}",
            "multiple_choice: Value error, 'sums' is there twice",
        ),
        (
            f"evaluation: {{multiple_choice: [{TASK}], tasks: [sums]}}",
            "evaluation: Value error, 'sums' is there twice",
        ),
        ("evaluation: {tasks: [piqa, piqa]}", "evaluation: Value error, 'piqa' is there twice"),
        ("probes: {count: 3}\nprobes: {count: 4}", "the key 'probes' is there twice; keep one"),
        ("probes: {count: 3, count: 4}", "the key 'count' is there twice; keep one"),
        ("training: {learning_rate: .inf}", "training.learning_rate: Input should be a finite number; got 'inf'"),
        ("training: {epochs: .nan}", "training.epochs: Input should be a finite number; got 'nan'"),
        ("probes: {budget: .nan}", "probes.budget.constrained-float: Input should be a finite number"),
        ("probes: {count: .inf}", "probes.count: Input should be a finite number"),
        (
            PAIRWISE % "options: {top_p: .nan}",
            "judge.options: Value error, Out of range float values are not JSON compliant",
        ),
        (
            PAIRWISE % "options: {top_p: 2020-01-01}",
            "judge.options: Value error, Object of type date is not JSON serializable",
        ),
        (PAIRWISE.replace("//a", "//a:99999") % "", "judge.url: Value error, Port out of range"),
        ("_env_file: /etc/passwd", "_env_file: unknown key"),
        ("1: 2", "must hold keys such as `model:`, not the key 1"),
        ("automation: {cron: 2020-99-99}", "not valid YAML (month must be in 1..12)"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("a: &a [*a]", "a: unknown key"),
        ("sql: {memory: much}", "sql.memory"),
        ("sql: {timeout_seconds: 0}", "sql.timeout_seconds"),
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


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (".", "is or holds"),
        ("", "is or holds"),
        ("..", "is or holds"),
        ("/", "is or holds"),
        ("pool/..", "is or holds"),
        ("store", "is or holds"),
        ("exports", "is or holds"),
        ("checkpoints", "is or holds"),
        ("linked", "is or holds"),
        ("store/tables/samples", "lies in store/"),
        ("models/x", "lies in models/"),
        ("linked/tables", "lies in store/"),
        ("dagster_home/x", "lies in dagster_home/"),
        ("round", "is not a path"),
        ("a\0b", "is not a path"),
    ],
)
@pytest.mark.parametrize("key", ["pool.path", "probes.path", "evaluation.held_out"])
def test_what_the_platform_writes_is_no_input(make_workspace: MakeWorkspace, key: str, value: str, says: str) -> None:
    root = make_workspace().root
    (root / "store" / "tables").mkdir(parents=True)
    (root / "linked").symlink_to("store")
    (root / "round").symlink_to("round")
    section, name = key.split(".")
    change(Workspace.load(root), section, {name: value})
    if key == "evaluation.held_out" and value == "":
        assert Workspace.load(root).settings.evaluation.held_out == "", "none"
        return
    with pytest.raises(IconError) as caught:
        Workspace.load(root)
    assert f"{root / 'settings.yaml'}: {key}: {says}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["pool/sub", "elsewhere", "exports/icon-alpaca", "stores", "/tmp/somewhere"])
def test_any_other_place_may_be_an_input(make_workspace: MakeWorkspace, value: str) -> None:
    workspace = make_workspace()
    change(workspace, "pool", {"path": value})
    assert Workspace.load(workspace.root).settings.pool.path == value


@pytest.mark.parametrize("value", ["sk-live-0123456789", "sk live"])
def test_a_key_that_was_put_into_the_settings_is_not_shown(tmp_path: Path, value: str) -> None:
    (tmp_path / "settings.yaml").write_text(PAIRWISE % f"api_key_variable: {value}")
    with pytest.raises(IconError, match=r"judge\.api_key_variable") as caught:
        Workspace.load(tmp_path)
    assert value not in "".join(traceback.format_exception(caught.value))


def test_settings_that_may_not_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text("{}")
    monkeypatch.setattr(Path, "read_text", _refused)
    with pytest.raises(IconError, match=r"settings\.yaml: can.t be read \(Permission denied\); fix its permissions"):
        Workspace.load(tmp_path)


def _refused(*_: object) -> str:
    raise PermissionError(13, "Permission denied")
