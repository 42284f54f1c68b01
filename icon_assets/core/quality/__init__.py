"""Rules for everything that is stored: what must hold, why, and what to do when it does not.

A rule checks one partition of its asset, in one snapshot of the store, and changes nothing. The UI shows its docstring.
Assets check the same rules (`refuse`) before they spend money on the product of an earlier run."""

from contextlib import closing

from icon_assets.core.errors import IconError
from icon_assets.core.quality import contents, features, pool, probes, results, scores, selection, tables, training
from icon_assets.core.quality.rule import Look, Rule, Subject, rules_in
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
