"""The definition of an arm, the registry of arms, and the needs of each arm. The arms themselves are in `arms`."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from icon_assets.core.errors import IconError
from icon_assets.core.scoring.peers import PEERS
from icon_assets.core.selection.candidates import Candidates
from icon_assets.core.selection.per_probe import SIMILARITIES
from icon_assets.settings import SelectionSettings

Order = Callable[[Candidates], pl.DataFrame]
# Assets that are made only when an arm of the settings ranks by them.
ON_DEMAND = ("sample_features", "probe_features", "selector", "predicted_scores")


@dataclass(frozen=True)
class Arm:
    """A way to rank the pool.

    Attributes:
        order: returns the candidates that it can rank, as rows of sample_id and score, best first.
        control: the control whose contributions it ranks by, if any.
        per_probe: the kind of its values for single probes, if it has any (see `per_probe.PerProbe.values`).
        tables: further tables of the store that it ranks by.
        settings: keys of `selection` that it depends on, besides those that every arm depends on.
        drawn: whether the ranking is random. Then each training seed has its own draw (`draws`), because a single draw
            can't show how much results vary from draw to draw.
    """

    name: str
    description: str
    order: Order
    control: str | None
    per_probe: str | None
    tables: tuple[str, ...]
    settings: tuple[str, ...]
    drawn: bool


_ARMS: dict[str, Arm] = {}
IN_TURN = ("aggregate", "turns")  # the settings of an arm whose probes may take in turn


def arm(
    name: str,
    description: str,
    *,
    control: str | None = None,
    per_probe: str | None = None,
    tables: tuple[str, ...] = (),
    settings: tuple[str, ...] = (),
    drawn: bool = False,
) -> Callable[[Order], Order]:
    """Register an arm; see `Arm`."""

    def register(order: Order) -> Order:
        _ARMS[name] = Arm(name, description, order, control, per_probe or control, tables, settings, drawn)
        return order

    return register


def draws(name: str, seeds: Sequence[int]) -> list[str]:
    """The subsets of an arm for training with these seeds: the arm's own, and for the further seeds of a drawn arm
    `random.1`, ... The other functions here accept such a name in place of an arm's."""
    return [name, *(f"{name}.{draw}" for draw in range(1, len(seeds)) if _ARMS[name].drawn)]


def drawn_for(name: str, seeds: Sequence[int], seed: int) -> str:
    """The subset of an arm that a training with `seed` gets."""
    names = draws(name, seeds)
    return names[seeds.index(seed)] if len(names) > 1 else name


def arm_and_draw(name: str) -> tuple[Arm, int]:
    arm_name, _, draw = name.partition(".")
    return _ARMS[arm_name], int(draw or 0)


def check_arms(settings: SelectionSettings, controls: Collection[str]) -> None:
    """Refuse arms that don't exist, or that rank by a control that is not computed.

    Raises:
        IconError: names the arm and the setting to change.
    """
    named = [("selection.arms", name) for name in settings.arms]
    if "length_matched" in settings.arms:
        named.append(("selection.reference", settings.reference))
        if settings.reference == "length_matched":
            raise IconError(
                "selection.reference: length_matched copies the lengths of a different arm; name one, such as icon"
            )
    if "combined" in {name for _, name in named}:
        named += [("selection.combined.rankings", name) for name in settings.combined.rankings]
        if unusable := [each for each in settings.combined.rankings if each in _ARMS and not _can_be_combined(each)]:
            raise IconError(
                f"selection.combined.rankings: {unusable[0]!r} does not rank by a score of its own; name arms such as "
                "icon and rds"
            )
    for setting, name in named:
        if name not in _ARMS:
            raise IconError(f"{setting}: {name!r} is not an arm; known are {', '.join(sorted(_ARMS))}")
        control = _ARMS[name].control
        if control not in (None, PEERS, *controls):
            raise IconError(f"{setting}: {name!r} ranks by control {control!r}; add it to controls.kinds")


def _can_be_combined(name: str) -> bool:
    return not _ARMS[name].drawn and name not in ("full", "combined")


def asks_in_turn(own: Arm, settings: SelectionSettings) -> bool:
    """Whether the probes, or their strata, take samples in turn in this arm."""
    if "aggregate" not in own.settings or settings.aggregate is None:
        return _asks_in_turn_itself(own)
    return settings.aggregate == "in_turn"


def _asks_in_turn_itself(own: Arm) -> bool:
    """The same where `selection.aggregate` says nothing."""
    return "turns" in own.settings and ("aggregate" not in own.settings or own.per_probe in SIMILARITIES)


def _followed(name: str, settings: SelectionSettings) -> list[Arm]:
    """The arm and those whose whole ranking it follows."""
    own, _ = arm_and_draw(name)
    return [own, *(_followed(settings.reference, settings) if "reference" in own.settings else [])]


def with_reference(name: str, settings: SelectionSettings) -> list[Arm]:
    """The arm and the arms that it follows or combines."""
    arms = _followed(name, settings)
    combined = settings.combined.rankings if any("combined" in each.settings for each in arms) else ()
    return [*arms, *(_ARMS[each] for each in combined)]


def controls_needed(name: str, settings: SelectionSettings) -> set[str]:
    """The controls whose contributions an arm, or the one it follows, ranks by."""
    return {each.control for each in with_reference(name, settings) if each.control}


def tables_needed(name: str, settings: SelectionSettings) -> set[str]:
    """The assets that an arm needs besides contributions."""
    tables = {table for each in with_reference(name, settings) for table in each.tables}
    return tables | ({"sample_features"} if settings.diversity and name != "full" else set())


def tables_of_arms(settings: SelectionSettings) -> set[str]:
    """The assets that the arms of the settings need besides contributions."""
    return {table for name in settings.arms for table in tables_needed(name, settings)}


def needed_assets(settings: SelectionSettings) -> set[str]:
    """The assets of `ON_DEMAND` that the arms of the settings need."""
    tables = tables_of_arms(settings)
    return tables | ({"sample_features", "selector"} if "predicted_scores" in tables else set())


def made_with(name: str, settings: SelectionSettings) -> dict[str, Any]:
    """The settings that an arm's subset depends on."""
    values = settings.model_dump()
    common: dict[str, Any] = {"fraction": settings.fraction}
    if name != "full":
        common |= {key: values[key] for key in ("budget", "diversity") if values[key] not in ("samples", None)}
    own = {key: values[key] for each in with_reference(name, settings) for key in each.settings if key not in IN_TURN}
    return common | own | _turns(name, settings)


def _turns(name: str, settings: SelectionSettings) -> dict[str, str]:
    """Whether and how probes take in turn, where it is not what the arm does by itself. Subsets of earlier versions
    recorded nothing about it."""
    arms = _followed(name, settings)
    turned = [each for each in arms if asks_in_turn(each, settings)]
    other = any(asks_in_turn(each, settings) != _asks_in_turn_itself(each) for each in arms)
    return {
        **({"aggregate": str(settings.aggregate)} if other else {}),
        **({"turns": settings.turns} if turned and settings.turns != "probes" else {}),
    }


def ranks_by(name: str) -> str | None:
    """The control whose contributions an arm ranks by, if any."""
    return arm_and_draw(name)[0].control


def has_score(name: str) -> bool:
    """Whether every sample that the arm chose has a score."""
    own, _ = arm_and_draw(name)
    return bool(own.per_probe or own.tables)


def work_owed(name: str, settings: SelectionSettings) -> list[str]:
    """The kinds of work in `scoring_costs` that the arm, or the arm that it follows, ranks and filters by. Measured and
    predicted contributions both cost scoring."""
    tables = tables_needed(name, settings)
    predicted = "predicted_scores" in tables
    scored = predicted or bool(controls_needed(name, settings))
    works = {"pairs": scored, "controls": scored, "features": bool(tables), "selector": predicted}
    return [work for work, owed in works.items() if owed]


def rank(name: str, pool: Candidates) -> pl.DataFrame:
    """All samples that an arm can rank, best first: sample_id and score."""
    if name not in pool.rankings:
        own, draw = arm_and_draw(name)
        pool.rankings[name] = own.order(replace(pool, draw=draw))
    return pool.rankings[name]
