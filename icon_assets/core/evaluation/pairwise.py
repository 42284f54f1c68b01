"""Answers of two checkpoints side by side: their prompts, the pairs still to be judged, and the sum of all verdicts.

Judges favour the answer that they see first. Every pair is therefore shown in both orders, and counts as won only if
both agree."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import NormalDist
from threading import Event
from typing import Any

import polars as pl

from icon_assets.core.digests import digest
from icon_assets.core.encoding.prompts import transcript
from icon_assets.core.errors import IconError
from icon_assets.core.evaluation.answers import Answer
from icon_assets.core.evaluation.judge import FIRST, SECOND, TIE, UNREADABLE, Judge, Judgement
from icon_assets.core.inputs.ingest import ingest
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.inputs.source_files import SourceFile
from icon_assets.core.store.tables import Store
from icon_assets.settings import Settings
from icon_assets.workspace import Workspace

_KEYS = ("checkpoint_id", "other_id", "prompt_set", "prompt_id", "swapped", "question")


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt: that of the checkpoint, and that of the other checkpoint."""

    prompt_set: str
    prompt_id: str
    prompt: str
    own: str
    other: str

    def shown(self, swapped: bool) -> tuple[str, str, str]:
        """Prompt, first and second answer."""
        return (self.prompt, self.other, self.own) if swapped else (self.prompt, self.own, self.other)


@dataclass(frozen=True)
class Result:
    """The result of a checkpoint against a second one on one prompt set. `first`: pairs in which both orders favoured
    the answer shown first."""

    prompt_set: str
    wins: int
    ties: int
    losses: int
    unreadable: int
    first: int

    @property
    def n(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float | None:
        """A tie is half a win; None where no pair was judged."""
        return (self.wins + self.ties / 2) / self.n if self.n else None


def check_pairwise(settings: Settings) -> None:
    """Refuse a comparison with an arm that is not in the settings, or without a second arm.

    Raises:
        IconError: names the setting.
    """
    pairwise = settings.evaluation.pairwise
    arms = settings.selection.arms
    if pairwise is None:
        return
    if pairwise.against not in arms:
        raise IconError(
            f"evaluation.pairwise.against: {pairwise.against!r} is not among selection.arms; add it there, or name one "
            f"of {', '.join(arms)}"
        )
    if len(arms) < 2:
        raise IconError("evaluation.pairwise: there is no other arm to compare; add one to selection.arms")


def read_prompts(workspace: Workspace) -> dict[str, list[Sample]]:
    """The prompts of each set, without duplicates and responses.

    Raises:
        IconError: a file is missing or a row can't be used. The message names file and row.
    """
    pairwise = workspace.settings.evaluation.pairwise
    assert pairwise is not None
    sets = {}
    for each in pairwise.prompts:
        source = SourceFile(each.name, each.path, workspace.input_path(each.path))
        ingested = ingest(source, workspace.settings.pool.max_chars, unanswered=True)
        for bad in ingested.quarantine[:1]:
            raise IconError(f"{source.path}, row {bad.row}: {bad.detail}; fix it, or evaluation.pairwise.prompts")
        prompts = [replace(located.sample, response="") for located in ingested.samples]
        sets[each.name] = list({prompt.sample_id: prompt for prompt in prompts}.values())[: pairwise.limit]
    return sets


def prompt_text(prompt: Sample) -> str:
    """A prompt as text for the judge."""
    return f"{transcript(prompt)}\n\n{prompt.input}".strip()


def answer_key(settings: Settings) -> str:
    """Digest of the settings that an answer depends on, besides checkpoint and prompt."""
    pairwise = settings.evaluation.pairwise
    assert pairwise is not None
    return digest([settings.training.template, pairwise.max_new_tokens])


def missing_answers(
    store: Store, checkpoint_id: str, key: str, wanted: list[tuple[str, Sample]]
) -> list[tuple[str, Sample]]:
    """Prompts without an answer under this key. Answers that are not asked for any more are taken out."""
    stored = store.query("SELECT * FROM delta.answers WHERE checkpoint_id = $id", {"id": checkpoint_id})
    due = {(name, prompt.sample_id) for name, prompt in wanted}
    rows = stored.filter(pl.col("answer_key") == key).unique(["prompt_set", "prompt_id"]).to_dicts()
    good = [row for row in rows if (row["prompt_set"], row["prompt_id"]) in due]
    if len(good) < stored.height:
        store.replace("answers", pl.DataFrame(good, schema=stored.schema), checkpoint_id=checkpoint_id)
    answered = {(row["prompt_set"], row["prompt_id"]) for row in good}
    return [(name, prompt) for name, prompt in wanted if (name, prompt.sample_id) not in answered]


def answer_rows(answered: Iterable[tuple[str, Sample, Answer]], named: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of the table `answers`, of prompt sets, prompts and the answers to them; `named`: whose answers they are."""
    return pl.DataFrame(
        [
            {
                **named,
                "prompt_set": prompt_set,
                "prompt_id": prompt.sample_id,
                "prompt": prompt_text(prompt),
                "answer": answer.text,
                "n_tokens": answer.n_tokens,
                "finished": answer.finished,
            }
            for prompt_set, prompt, answer in answered
        ]
    )


def pairs_of(store: Store, checkpoint_id: str, other_id: str) -> list[Pair]:
    """Prompts that both have answered under the same settings."""
    rows = store.query(
        """
        SELECT a.prompt_set, a.prompt_id, a.prompt, a.answer AS own, o.answer AS other FROM answers a
        JOIN answers o USING (prompt_set, prompt_id, answer_key)
        WHERE a.checkpoint_id = $checkpoint AND o.checkpoint_id = $other ORDER BY a.prompt_set, a.prompt_id
        """,
        {"checkpoint": checkpoint_id, "other": other_id},
    )
    return [Pair(**row) for row in rows.to_dicts()]


def judge_missing(
    store: Store,
    judge: Judge,
    pairs: Sequence[Pair],
    checkpoint_id: str,
    other_id: str,
    *,
    at_once: int,
    on_judged: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Have every pair judged in both orders, and store each judgement at once. Returns the number of questions to the
    judge.

    A question that was asked before, for any checkpoints, is not asked again. Equal answers need no question.
    """
    known = _known(store, judge)
    rows = []
    open_ = []
    for pair in pairs:
        for swapped in (False, True):
            shown = pair.shown(swapped)
            question = judge.question(*shown)
            row = {
                "checkpoint_id": checkpoint_id,
                "other_id": other_id,
                "prompt_set": pair.prompt_set,
                "prompt_id": pair.prompt_id,
                "swapped": swapped,
                "judge": judge.name,
                "question": question,
            }
            if pair.own == pair.other:
                rows.append(_row(row, Judgement(TIE, "equal answers: nobody was asked")))
            elif question in known:
                rows.append(_row(row, known[question]))
            else:
                open_.append((row, shown))
    if rows:
        store.append_new("judgements", pl.DataFrame(rows), _KEYS)
    _ask(store, judge, open_, at_once, on_judged)
    return len(open_)


def _known(store: Store, judge: Judge) -> dict[str, Judgement]:
    sql = "SELECT question, verdict, detail FROM judgements WHERE judge = $judge"
    return {row[0]: Judgement(row[1], row[2]) for row in store.query(sql, {"judge": judge.name}).iter_rows()}


def _ask(
    store: Store,
    judge: Judge,
    questions: Sequence[tuple[dict[str, Any], tuple[str, str, str]]],
    at_once: int,
    on_judged: Callable[[int, int], None],
) -> None:
    """Each thread stores its judgement before the next question. After the first failure no more questions are
    asked."""
    stopped = Event()

    def settle(row: Mapping[str, Any], shown: tuple[str, str, str]) -> None:
        if stopped.is_set():
            return
        try:
            store.append_new("judgements", pl.DataFrame([_row(row, judge.ask(*shown))]), _KEYS)
        except IconError:
            stopped.set()
            raise

    with ThreadPoolExecutor(at_once) as threads:
        asked = [threads.submit(settle, row, shown) for row, shown in questions]
        try:
            for done, future in enumerate(as_completed(asked), 1):
                future.result()
                on_judged(done, len(questions))
        finally:
            stopped.set()


def _row(row: Mapping[str, Any], judgement: Judgement) -> dict[str, Any]:
    return {**row, "verdict": judgement.verdict, "detail": judgement.detail, "created_at": datetime.now(UTC)}


def results(store: Store, judge: Judge, pairs: Sequence[Pair], checkpoint_id: str, other_id: str) -> list[Result]:
    """The judge's verdicts on these pairs, by prompt set."""
    rows = store.query(
        "SELECT question, verdict FROM judgements WHERE checkpoint_id = $checkpoint AND other_id = $other "
        "AND judge = $judge",
        {"checkpoint": checkpoint_id, "other": other_id, "judge": judge.name},
    )
    said = dict(rows.iter_rows())
    verdicts: dict[str, list[tuple[str, str]]] = {}
    for pair in pairs:
        both = (said[judge.question(*pair.shown(False))], said[judge.question(*pair.shown(True))])
        verdicts.setdefault(pair.prompt_set, []).append(both)
    return [_result(name, both) for name, both in sorted(verdicts.items())]


def _result(prompt_set: str, verdicts: Sequence[tuple[str, str]]) -> Result:
    """Per pair: the verdict with the checkpoint's answer shown first, and with it shown second."""
    readable = [both for both in verdicts if UNREADABLE not in both]
    wins = readable.count((FIRST, SECOND))
    losses = readable.count((SECOND, FIRST))
    ties = len(readable) - wins - losses
    return Result(prompt_set, wins, ties, losses, len(verdicts) - len(readable), readable.count((FIRST, FIRST)))


def result_rows(found: Sequence[Result], confidence: float, named: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of the table `pairwise_results`; `named`: the columns that all of them share."""
    rows = []
    for each in found:
        low, high = wilson(each.win_rate, each.n, confidence) if each.win_rate is not None else (None, None)
        rows.append(
            {
                **named,
                "prompt_set": each.prompt_set,
                "n": each.n,
                "wins": each.wins,
                "ties": each.ties,
                "losses": each.losses,
                "win_rate": each.win_rate,
                "low": low,
                "high": high,
                "unreadable": each.unreadable,
            }
        )
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("win_rate", "low", "high"), pl.Float64))


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share of n. With ties as halves the true interval is narrower, so this one is
    conservative."""
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = share + z2 / (2 * n)
    reach = (z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) ** 0.5
    return max(0.0, (middle - reach) / (1 + z2 / n)), min(1.0, (middle + reach) / (1 + z2 / n))
