"""The two pages of `docs/` that are made from code: checks from the rules, settings from their descriptions.

`python -m icon_assets_tests.generated_docs` writes them; a test fails while they are not what this would write.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ByteSize, SecretStr, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from icon_assets.core.quality import RULES
from icon_assets.core.quality.rule import REMAKE, Rule
from icon_assets.settings import ENV_DELIMITER, ENV_PREFIX, Settings

DOCS = Path(__file__).parents[1] / "docs"
_MADE_BY = "<!-- Made by `python -m icon_assets_tests.generated_docs`. Change the code, not this page. -->"

# What happens without the check, in a few words. The docstring of the rule, below the table, gives the details.
PREVENTS = {
    "columns_are_as_declared": "wrong figures from a store that a different version wrote",
    "contents_are_as_recorded": "a changed value in a file that later steps would use",
    "ids_are_of_their_text": "training on a text under the id of a different text",
    "rows_stand_once": "a row that is trained on and counted twice",
    "every_row_is_accounted_for": "half a shard from a killed run that passes for a complete one",
    "holds_no_evaluation_item": "evaluation data in the pool that is found only before training",
    "probes_are_as_recorded": "scores over different probes in one ranking",
    "no_probe_is_in_the_pool": "samples that rank first because they answer themselves",
    "no_probe_is_in_the_evaluation_data": "selecting for the test",
    "model_files_are_as_recorded": "scores and checkpoints of a swapped model under the old name",
    "controls_stand_once": "measurements that count twice",
    "pairs_stand_once": "measurements that count twice",
    "contexts_stand_once": "measurements that count twice",
    "every_probe_has_its_baseline": "probes that drop out of every mean unnoticed",
    "scores_stand_once": "samples ranked twice",
    "no_score_is_a_stranger": "samples ranked by the score of a removed line",
    "scores_are_finite": "NaN, which sorts above every number",
    "every_sample_is_scored": "samples that can't be selected; a mean over some probes that passes for one over all "
    "probes",
    "every_score_has_its_pairs": "scores that nobody can check or compute again",
    "no_sample_is_a_probe": "scoring a file that was added after the probes were drawn and contains some of them",
    "scores_have_not_drifted": "a selection that changes because probes or model did (rank correlation below 0.9, mean "
    "off by half a standard deviation)",
    "features_stand_once": "samples learned from twice",
    "every_sample_has_its_features": "samples chosen from a smaller pool",
    "features_are_finite": "one NaN that spreads to every sample it is compared with",
    "every_probe_has_its_embedding": "probes that choose nothing",
    "selector_is_as_recorded": "a ranking by a different model than the lineage names",
    "selector_knows_more_than_length": "an expensive way to sort by length",
    "predictions_stand_once": "samples ranked twice",
    "every_sample_is_predicted": "samples that are never ranked",
    "subset_is_as_recorded": "a subset that differs from its id, and so from the lineage",
    "subset_is_in_the_pool": "arms that are smaller than reported",
    "subset_has_its_size": "arms that are smaller than reported",
    "chosen_scores_are_finite": "a choice by NaN",
    "budget_looked_for_this_arm": "an arm that chooses by scores which a budget left coarse near its cut",
    "subset_holds_no_evaluation_item": "training on the test",
    "subset_holds_no_probe": "training on what was used to choose",
    "length_does_not_explain_it": "a gain from longer training texts that passes for one from better samples",
    "files_are_as_recorded": "evaluating or serving different weights than the lineage describes",
    "checkpoint_loads": "a fault that shows only at the first use. The checkpoint is loaded once per state of files "
    "and libraries",
    "manifest_names_the_subset": "a checkpoint that can't name the lines it was trained on",
    "metrics_stand_once": "lopsided means on the leaderboard",
    "every_task_is_measured": "lopsided means on the leaderboard",
    "metrics_are_finite": "one NaN that voids an arm",
    "metrics_are_made_of_their_items": "verdicts on figures that differ from the leaderboard",
    "answers_stand_once": "win rates that count some prompts twice",
    "every_prompt_is_answered": "win rates over some prompts only",
    "judgements_stand_once": "a doubled verdict that decides whether both orders agree",
    "win_rates_add_up": "win rates that their own counts contradict",
    "differences_stand_once": "two answers to one question",
    "differences_are_finite": "a NaN that looks like no difference",
    "every_run_counts": "a mean over too few seeds that looks certain",
    "every_task_tells_runs_apart": "a benchmark that this model always answers alike",
}

_CHECKS = """# Checks

After every materialization, one step runs all checks of the asset. Each check can also be run alone in the UI. A check
of a partitioned asset has the same partitions, so a shard, an arm or a checkpoint that was not checked is not green.
Each check says why it exists, what is wrong (counts and ids, no training text) and what to do. `icon-assets run` prints
one line for every failed check. It ends with exit code 1 unless all of them only warn.

- **blocking**: stops later steps of the same run. In a later run, expensive steps check again. Scoring checks
  `no_sample_is_a_probe`, the files of the model and the contents of its inputs. Training checks every blocking check of
  its subset and of the base model. Evaluation checks `files_are_as_recorded`.
- **warns**: worth a look, but stops nothing.
- **made again**: when the check fails, the next run makes the product again, even if its inputs have not changed.

Two texts overlap when they ask the same question (ignoring case, punctuation and system prompt), or share 13 words in a
row of the probe's answer, or of the item's question or answer. Tasks named in `evaluation.tasks` come from a hub and
are not checked for overlap. Scores of a shard are compared with those of its last run. The figures are in the ledger:

```sql
SELECT "partition", summary->>'drift_rank_correlation' FROM ledger WHERE asset = 'sample_scores';
```

One more check is not in the table: `scores_are_current` of `sample_scores` warns while shards are new, stale or
removed. It covers all shards together. The sensor `discover_pool` reports it when its result changes.
"""

_SETTINGS = f"""# Settings

All settings of a workspace, in its `settings.yaml`. A key that is not given has its default; an unknown key is refused.
An environment variable overrides a key: `{ENV_PREFIX}PROBES{ENV_DELIMITER}COUNT=64` is `probes.count`.
"""


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text, "utf-8")


def pages() -> dict[str, str]:
    """File names and their texts."""
    return {
        "checks.md": checks_page(RULES),
        "settings.md": settings_page(Settings.model_json_schema(schema_generator=_Schema)),
    }


def checks_page(rules: Sequence[Rule]) -> str:
    assets: dict[tuple[str, ...], list[Rule]] = {}
    for names, rule in _alike(rules):
        assets.setdefault(names, []).append(rule)
    rows = [
        (_assets(names) if first else "", f"[`{rule.name}`](#{rule.name})", _kind(rule), PREVENTS[rule.name])
        for names, own in assets.items()
        for first, rule in zip([True] + [False] * len(own), own, strict=False)
    ]
    table = _table(("asset", "check", "kind", "prevents"), rows)
    names = dict.fromkeys(rule.name for rule in rules)
    details = [_detail([rule for _, rule in _alike(rules) if rule.name == name]) for name in names]
    return "\n".join([_MADE_BY, "", _CHECKS, table, "## Details", "", *details])


def _alike(rules: Sequence[Rule]) -> Iterator[tuple[tuple[str, ...], Rule]]:
    """Every rule once for each way to get past it, with the assets that have it so."""
    for look, mend in dict.fromkeys((rule.look, rule.mend) for rule in rules):
        own = [rule for rule in rules if rule.look is look and rule.mend == mend]
        yield tuple(rule.asset for rule in own), own[0]


def _detail(alike: Sequence[Rule]) -> str:
    ways = [f"When it fails{f' ({rule.asset})' if i else ''}: {rule.mend}." for i, rule in enumerate(alike)]
    return "\n\n".join([f"### {alike[0].name}", alike[0].why, *ways]) + "\n"


def _assets(names: tuple[str, ...]) -> str:
    every = dict.fromkeys(rule.asset for rule in RULES)
    left_out = [name for name in every if name not in names]
    if not left_out:
        return "all"
    few = left_out if len(left_out) < len(names) / 2 else names
    return ("all but " if few is left_out else "") + " ".join(f"`{name}`" for name in few)


def _kind(rule: Rule) -> str:
    kinds = {"blocking": rule.blocking, "warns": rule.warns, "made again": rule.mend == REMAKE}
    return ", ".join(kind for kind, holds in kinds.items() if holds)


class _Schema(GenerateJsonSchema):
    """With the default of a secret, which is no secret."""

    def encode_default(self, dft: Any) -> Any:
        return dft.get_secret_value() if isinstance(dft, SecretStr) else super().encode_default(dft)


def settings_page(schema: Mapping[str, Any]) -> str:
    """From the JSON schema of the settings."""
    sections = [
        "\n".join([f"## {name}\n", f"{_description(schema, field)}\n", _table(_COLUMNS, _keys(schema, name, field))])
        for name, field in schema["properties"].items()
    ]
    return "\n".join([_MADE_BY, "", _SETTINGS, *sections])


_COLUMNS = ("key", "type", "default", "bounds", "meaning")


def _keys(schema: Mapping[str, Any], name: str, field: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for every key of a section, then those of what is nested in it; `[]` means each entry of a list."""
    section = _resolved(schema, field)
    for key, value in section["properties"].items():
        path = f"{name}.{key}"
        nested = _nested(schema, value)
        required = key in section.get("required", ())
        yield f"`{path}`", _type(schema, value), _default(value, required), _bounds(value), _description(schema, value)
        if nested:
            yield from _keys(schema, path + nested[0], nested[1])


def _resolved(schema: Mapping[str, Any], value: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema["$defs"][value["$ref"].rpartition("/")[2]] if "$ref" in value else value


def _description(schema: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    """Of the key, or of its section where both say the same."""
    return field.get("description") or _resolved(schema, field)["description"]


def _nested(schema: Mapping[str, Any], value: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The section that a key holds, or a list of which it holds."""
    for each in _choices(value):
        if "$ref" in each:
            return "", each
        if "$ref" in each.get("items", {}):
            return "[]", each["items"]
    return None


def _choices(value: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What a key may be, each with its own bounds."""
    if "anyOf" not in value:
        return [value]
    least = {"minimum": value["ge"]} if "ge" in value else {}
    return [{**each, **least} for choice in value["anyOf"] for each in _choices(choice)]


def _type(schema: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_type_of(schema, each) for each in _choices(value)))


def _type_of(schema: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    if "enum" in value or "const" in value:
        return " or ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    if "$ref" in value:
        return "section"
    if _is_size(value):
        return "size with its unit"
    if value["type"] == "array":
        return f"list of {_type(schema, value['items'])}"
    names: dict[str, str] = {
        "integer": "whole number",
        "boolean": "true or false",
        "string": "text",
        "object": "mapping",
    }
    return names.get(str(value["type"]), str(value["type"]))


def _default(value: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if isinstance(default, dict) and _choices(value)[0].get("$ref"):
        return "see below"
    return f"`{_written(default)}`"


def _written(value: Any) -> str:
    """As in YAML, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_written(each)}" for name, each in value.items()) + "}"
    return repr(value).replace("'", '"') if isinstance(value, str) and value != value.strip() else str(value)


def _is_size(value: Mapping[str, Any]) -> bool:
    return value.get("pattern") in {each.get("pattern") for each in TypeAdapter(ByteSize).json_schema()["anyOf"]} - {
        None
    }


_SIGNS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minItems": "entries ≥",
    "minLength": "characters ≥",
}


def _bounds(value: Mapping[str, Any]) -> str:
    choices = _choices(value)
    found: list[str] = []
    for each in [*choices, *(choice["items"] for choice in choices if "items" in choice)]:
        found += [f"{sign} {_number(each[word])}" for word, sign in _SIGNS.items() if word in each]
        if "pattern" in each and not _is_size(each):
            found.append(f"`{each['pattern']}`")
    return ", ".join(dict.fromkeys(found))


def _number(value: float) -> str:
    powers = {2**bits: f"2^{bits}" for bits in (25, 32, 63)}
    return powers.get(int(value)) or f"{value:g}"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines, ""])


if __name__ == "__main__":
    main()
