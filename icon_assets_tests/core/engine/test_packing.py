"""Grouping pairs into forwards."""

from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.engine.packing import plan_forwards


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]], int]:
    probes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    contexts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    wanted = [draw(st.lists(st.sampled_from(range(len(probes))), unique=True)) for _ in contexts]
    return contexts, probes, wanted, draw(st.integers(1, 120))


@given(problems())
def test_every_wanted_pair_is_in_exactly_one_forward(
    problem: tuple[list[int], list[int], list[list[int]], int],
) -> None:
    contexts, probes, wanted, budget = problem
    forwards = plan_forwards(contexts, probes, wanted, budget)
    pairs = [(row.context, probe) for rows in forwards for row in rows for probe in row.probes]
    assert sorted(pairs) == sorted((c, p) for c, chosen in enumerate(wanted) for p in chosen)
    assert len(pairs) == len(set(pairs))


@given(problems())
def test_a_forward_stays_within_the_budget_unless_it_holds_a_single_pair(
    problem: tuple[list[int], list[int], list[list[int]], int],
) -> None:
    contexts, probes, wanted, budget = problem
    for rows in plan_forwards(contexts, probes, wanted, budget):
        size = sum(contexts[row.context] + sum(probes[p] for p in row.probes) for row in rows)
        assert rows
        assert size <= budget or (len(rows) == 1 and len(rows[0].probes) == 1)


@given(problems(), st.data())
def test_what_is_left_after_any_forward_is_planned_as_it_was(
    problem: tuple[list[int], list[int], list[list[int]], int], data: st.DataObject
) -> None:
    contexts, probes, wanted, budget = problem
    forwards = plan_forwards(contexts, probes, wanted, budget)
    done = data.draw(st.integers(0, len(forwards)))
    stored = {(row.context, probe) for rows in forwards[:done] for row in rows for probe in row.probes}
    left = [[probe for probe in chosen if (context, probe) not in stored] for context, chosen in enumerate(wanted)]
    assert plan_forwards(contexts, probes, left, budget) == forwards[done:]


def test_a_context_is_repeated_only_where_its_probes_do_not_fit() -> None:
    assert len(plan_forwards([10, 10], [5, 5, 5], [[0, 1, 2], [0, 1, 2]], 50)) == 1
    assert len(plan_forwards([10], [20, 20], [[0, 1]], 30)) == 2
