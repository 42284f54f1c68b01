"""Choosing probes: even, seeded, decontaminated."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.inputs.ingest import Quarantined
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.probes.draw import read_candidates, select_probes, verdict_rows
from icon_assets.core.probes.overlap import Candidate, Index, Reference, near_duplicates, overlaps
from icon_assets.core.store.schema import schemas
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import alpaca, write_jsonl


def candidate(n: int, stratum: str = "s", response: str | None = None) -> Candidate:
    text = response or f"answer {n} " + " ".join(f"word{n}x{i}" for i in range(20))
    return Candidate(Sample(f"question number {n} about topic{n}", "", text), stratum, "p.jsonl", n)


def selected(candidates: list[Candidate], count: int, seed: int = 0) -> list[Candidate]:
    verdicts = select_probes(candidates, count, seed, 0.6, {}, {})
    assert len(verdicts) == len(candidates)
    return [v.candidate for v in verdicts if v.status == "selected"]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 3))
def test_strata_are_drawn_as_evenly_as_they_can_be(sizes: list[int], count: int, seed: int) -> None:
    pool = [candidate(10 * s + i, f"s{s}") for s, size in enumerate(sizes) for i in range(size)]
    chosen = selected(pool, count, seed)
    assert len(chosen) == min(count, len(pool))
    drawn = [sum(c.stratum == f"s{s}" for c in chosen) for s in range(len(sizes))]
    # A stratum may lag behind another by more than one only when it has nothing left to give.
    assert all(drawn[a] >= drawn[b] - 1 or drawn[a] == sizes[a] for a in range(len(sizes)) for b in range(len(sizes)))


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_files() -> None:
    pool = [candidate(n, f"s{n % 3}") for n in range(30)]
    assert selected(pool, 9) == selected(pool[::-1], 9)
    assert selected(pool, 9) != selected(pool, 9, seed=1)


def test_growing_the_candidates_keeps_the_seeded_order_of_the_old_ones() -> None:
    pool = [candidate(n) for n in range(30)]
    old = selected(pool[:20], 20)
    assert [c for c in selected(pool, 30) if c in old] == old


def test_near_duplicates_are_found_and_different_texts_are_not() -> None:
    long = " ".join(f"token{i}" for i in range(30))
    pool = [candidate(1, response=long), candidate(1, response=long + " indeed"), candidate(2)]
    assert list(near_duplicates(pool, 0.6)) == [pool[1].probe_id]


def test_a_probe_in_the_pool_or_evaluation_data_is_left_out_with_the_reason() -> None:
    words = [f"w{i}" for i in range(20)]
    probe = candidate(1, response=" ".join(words))
    thirteen = " ".join(words[3:16])
    twelve = " ".join(words[3:15])
    shared = Reference("pool.jsonl:7", "other", f"before {thirteen.upper()}, after")
    assert "pool.jsonl:7" in overlaps([probe], [shared])[probe.probe_id]
    assert not overlaps([probe], [Reference("x", "other", f"before {twelve} after")])
    same_prompt = Reference("x", "Question number 1, about TOPIC1!", "nothing shared")
    assert "same prompt" in overlaps([probe], [same_prompt])[probe.probe_id]


def test_every_meeting_is_told_once_however_much_two_texts_share() -> None:
    words = " ".join(f"w{i}" for i in range(30))
    first = candidate(1, response=words)
    second = candidate(2)
    references = [Reference("a:1", "question number 1 about topic1", words), Reference("a:2", "x", words)]
    references.append(Reference("a:3", "question number 2 about topic2", "y"))
    met = [(m.candidate.row, m.reference) for m in Index([first, second]).meetings(references)]
    assert met == [(1, "a:1"), (1, "a:2"), (2, "a:3")]


def test_prompts_without_a_word_are_the_same_only_when_they_are() -> None:
    probe = Candidate(Sample("???", "", "yes"), "s", "p.jsonl", 1)
    assert not overlaps([probe], [Reference("x", "!!!", "")])
    assert overlaps([probe], [Reference("x", "???", "")])


def test_shared_words_are_found_wherever_they_stand() -> None:
    probe = candidate(1, response=" ".join(f"w{i}" for i in range(20)))
    for skipped in range(8):
        shared = " ".join(f"w{i}" for i in range(skipped, skipped + 13))
        for before in range(15):
            assert overlaps([probe], [Reference("x", "other", f"{'before ' * before}{shared} after")])


def test_every_candidate_gets_exactly_one_verdict() -> None:
    first = candidate(1)
    twin = candidate(1)
    in_pool = candidate(3)
    in_eval = candidate(4)
    fine = candidate(5)
    verdicts = select_probes(
        [first, twin, in_pool, in_eval, fine], 1, 0, 0.6, {in_pool.probe_id: "p"}, {in_eval.probe_id: "e"}
    )
    assert sorted(v.status for v in verdicts) == [
        "duplicate",
        "in_evaluation",
        "in_pool",
        "selected",
        "spare",
    ]


def test_every_candidate_is_a_row_with_its_verdict_and_so_is_every_row_that_can_not_be_used() -> None:
    verdicts = select_probes([candidate(1), candidate(1), candidate(2)], 1, 0, 0.6, {}, {})
    rows = verdict_rows(verdicts, [("p.jsonl", Quarantined(4, "empty", "no response"))])
    assert sorted(rows["status"]) == ["duplicate", "quarantined", "selected", "spare"]
    assert rows.columns == schemas()["probe_candidates"].names
    bad = rows.row(-1, named=True)
    assert (bad["file"], bad["row"], bad["detail"], bad["probe_id"]) == ("p.jsonl", 4, "empty: no response", None)


def test_candidates_are_read_from_the_files_of_the_settings(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "probes" / "probes.jsonl", [alpaca("Name a lake.", "Como."), {"instruction": "Name a sea."}])
    candidates, quarantined = read_candidates(Workspace(tmp_path, Settings()))
    assert [(c.sample.instruction, c.file, c.row) for c in candidates] == [("Name a lake.", "probes.jsonl", 1)]
    assert [(file, bad.row) for file, bad in quarantined] == [("probes.jsonl", 2)]
