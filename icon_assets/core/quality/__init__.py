"""Rules for everything that is stored: what must hold, why, and what to do when it does not.

A rule looks at one partition of its asset, in one snapshot of the store, and changes nothing. Its docstring is what
people read in the UI. Assets look through the same rules before they spend money on what an earlier run has made
(`refuse`), and before they keep it (`sound_event`)."""

from collections.abc import Callable, Iterable
from contextlib import closing, suppress

from icon_assets.core.errors import IconError, StoreDamaged
from icon_assets.core.quality import contents, features, pool, probes, results, scores, selection, tables, training
from icon_assets.core.quality.rule import REMAKE, Look, Rule, Subject, rules_in
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Event, Input, Recipe
from icon_assets.core.store.restoration import take_out
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace

# In the order in which they are checked.
RULES = [
    rule
    for room in (tables, contents, pool, probes, scores, features, selection, training, results)
    for rule in rules_in(room)
]


def rules_of(asset: str) -> list[Rule]:
    return [each for each in RULES if each.asset == asset]


def refuse(workspace: Workspace, asset: str, partition: str = "", *looks: Look) -> None:
    """Stop when a product breaks a rule: one of `looks`, or any blocking rule of its asset where none is given.

    Raises:
        IconError: names the product, what is wrong with it and the fix.
    """
    with closing(Subject(workspace, asset, partition)) as subject:
        for each in rules_of(asset):
            if (each.look in looks) if looks else each.blocking:
                finding = each.look(subject)
                if finding.wrong:
                    raise IconError(f"{subject.name}: {each.name}: {each.line(finding)}")


def refuse_changed(workspace: Workspace, inputs: Iterable[Input]) -> None:
    """Spend nothing on what is made from rows that are not those that were written.

    Raises:
        IconError: names the product and what was changed.
    """
    for each in inputs:
        looks = (contents.contents_are_as_recorded, contents.ids_are_of_their_text)
        refuse(workspace, each.asset, each.partition, *looks)


def is_sound(workspace: Workspace, asset: str, partition: str) -> bool:
    """Whether a look at what is stored breaks no rule of its asset, and all of it can be read."""
    with suppress(StoreDamaged), closing(Subject(workspace, asset, partition)) as subject:
        return not any(rule.look(subject).wrong for rule in rules_of(asset))
    return False


def sound_event(workspace: Workspace, recipe: Recipe, run_id: str, warn: Callable[[str], None]) -> Event | None:
    """The newest event of the recipe's partition, if it was made by this very recipe and what is stored of it is sound.

    Broken rows are made again: without a look at them they would stay for ever, since nothing they are made from
    changes. Rows that are not those that were written are taken out of the store.

    Args:
        run_id: of the run that looks; warn: told why something is made again.
    """
    store = Store(workspace.store_dir)
    event = ledger.made(store, recipe)
    if event is None:
        return None
    with closing(Subject(workspace, recipe.asset, recipe.partition)) as subject:
        for rule in rules_of(recipe.asset):
            if rule.mend == REMAKE and (finding := rule.look(subject)).wrong:
                warn(f"made again: {rule.name}: {rule.line(finding)}")
                if rule.look is contents.contents_are_as_recorded:
                    unlike = list(contents.unlike_record(subject))
                    ledger.withdraw(store, recipe, event, run_id, [str(each) for each in unlike])
                    take_out(store, unlike)
                return None
    return event
