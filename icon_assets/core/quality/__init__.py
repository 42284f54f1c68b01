"""What must hold of everything that is stored: one rule each, why it exists, and what to do when it is broken.

A rule looks at one partition of its asset, in one snapshot of the store, and changes nothing. Its docstring is what
people read in the UI. Assets look through the same rules (`refuse`) before they spend money on what an earlier run has
made."""

from contextlib import closing

from icon_assets.core.errors import IconError
from icon_assets.core.quality import contents, features, pool, probes, results, scores, selection, tables, training
from icon_assets.core.quality.rule import Look, Rule, Subject, rules_in
from icon_assets.workspace import Workspace

# In the order in which they are looked at.
RULES = [
    rule
    for room in (tables, contents, pool, probes, scores, features, selection, training, results)
    for rule in rules_in(room)
]


def rules_of(asset: str) -> list[Rule]:
    return [each for each in RULES if each.asset == asset]


def refuse(workspace: Workspace, asset: str, partition: str = "", *looks: Look) -> None:
    """Go no further with something that breaks a rule: one of these, or (none named) any blocking rule of its asset.

    Raises:
        IconError: names the thing, what is wrong with it and the mend.
    """
    with closing(Subject(workspace, asset, partition)) as subject:
        for each in rules_of(asset):
            if (each.look in looks) if looks else each.blocking:
                finding = each.look(subject)
                if finding.wrong:
                    raise IconError(f"{subject.name}: {each.name}: {each.line(finding)}")
