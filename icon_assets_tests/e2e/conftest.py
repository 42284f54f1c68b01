"""What tests with real processes share: a workspace with a little work at every stage, and what it becomes
undisturbed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, POOL_B, alpaca, lay_out
from icon_assets_tests.e2e.processes import start

BUSY: dict[str, Any] = {
    "scoring": {
        "max_context_tokens": 128,
        "max_prompt_tokens": 64,
        "max_response_tokens": 64,
        "tokens_per_forward": 256,
        "commit_seconds": 0.05,
    },
    "selection": {"arms": ["random", "icon"], "fraction": 0.3},
    "training": {
        "seeds": [0],
        "epochs": 2,
        "batch_size": 2,
        "micro_batch_size": 2,
        "max_tokens": 128,
        "save_every_steps": 2,
    },
}


def questions(shard: str, count: int) -> list[dict[str, Any]]:
    """Rows that no other shard holds."""
    return [
        alpaca(f"Question {n} of {shard} about number {n * 17}?", f"The answer is {n * 31}. " * (1 + n % 3))
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def make_busy(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Any) -> Callable[..., Workspace]:
    """Lay out one more workspace: by default three shards, two of which share a sample."""
    shipped = {"a.jsonl": POOL_A, "b.jsonl": POOL_B, "c.jsonl": [*questions("c", 12), {"instruction": "No answer."}]}
    return lambda pool=None: lay_out(
        tmp_path_factory.mktemp("busy") / "workspace", tiny_model_dir, pool or shipped, **BUSY
    )


@pytest.fixture(scope="session")
def undisturbed(make_busy: Callable[..., Workspace]) -> Iterator[Callable[[], Workspace]]:
    """Gives such a workspace after one normal run of everything. The run goes on beside the test that asks for it."""
    workspace = make_busy()
    said = workspace.root / "said.txt"
    run = start(workspace.root, "run", out=said)

    def finished() -> Workspace:
        run.join()
        assert run.exitcode == 0, said.read_text()
        return workspace

    yield finished
    run.join()


@contextmanager
def read_all_the_while(store: Store, sql: str) -> Iterator[list[list[tuple[Any, ...]]]]:
    """A user who asks the published views the same thing again and again; every answer. None of them may fail."""
    answers = list[list[tuple[Any, ...]]]()
    errors = list[Exception]()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                if store.path.exists():
                    answers.append(store.query_published(sql).rows())
            except Exception as error:  # noqa: BLE001  (whatever a reader may meet is what is looked for)
                errors.append(error)
            time.sleep(0.01)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield answers
    finally:
        done.set()
        reader.join()
    assert errors == []
