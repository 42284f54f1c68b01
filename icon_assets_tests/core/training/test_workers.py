"""A training in two processes: the result of one process, and nothing left behind by a worker that fails."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.training.fine_tune import TrainingResult, fine_tune
from icon_assets.settings import TrainingSettings
from icon_assets_tests.core.training.test_fine_tune import QUICK, changed, make_base, make_samples, same, weights

BOTH = changed(QUICK, processes=2, micro_batch_size=1, lora_dropout=0)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


def train(base_dir: Path, out_dir: Path, settings: TrainingSettings, **options) -> TrainingResult:
    out_dir.mkdir()
    arguments = {"work_dir": out_dir.with_suffix(".work"), "dtype": "float32", "device": "cpu"} | options
    return fine_tune(base_dir, make_samples(10), settings, 0, out_dir=out_dir, **arguments)


def test_two_processes_end_with_the_weights_of_one_and_resume(base_dir, tmp_path):
    """Ten samples in steps of four: the last step of an epoch leaves one process without a sample of its own."""
    import torch

    class Stopped(BaseException):
        pass

    def stop(step: int, total: int, loss: float) -> None:
        if step == 5:
            raise Stopped

    one = train(base_dir, tmp_path / "one", changed(BOTH, processes=1))
    with pytest.raises(Stopped):
        train(base_dir, tmp_path / "stopped", BOTH, work_dir=tmp_path / "work", on_step=stop)
    two = train(base_dir, tmp_path / "two", BOTH, work_dir=tmp_path / "work")
    assert two.resumed_from_step == 4
    assert [point.loss for point in two.loss_curve] == pytest.approx([point.loss for point in one.loss_curve], rel=1e-4)
    assert (two.n_tokens, two.flops, two.n_steps) == (one.n_tokens, one.flops, one.n_steps)
    expected = weights(tmp_path / "one")
    got = weights(tmp_path / "two")
    assert expected.keys() == got.keys()
    assert not same(expected, {key: torch.zeros_like(value) for key, value in got.items()})
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-3, atol=1e-4)
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == files


def test_an_error_in_a_worker_arrives_as_one_line_and_no_process_stays(base_dir, tmp_path):
    settings = changed(BOTH, lora_targets=("nowhere",))
    with pytest.raises(IconError, match=r"^training\.lora_targets: \['nowhere'\]") as caught:
        train(base_dir, tmp_path / "out", settings)
    assert "\n" not in str(caught.value)
    assert not [p for p in psutil.Process().children(recursive=True) if "training_workers" in " ".join(p.cmdline())]


def test_more_processes_than_samples_in_a_step_are_refused(base_dir, tmp_path):
    with pytest.raises(IconError, match=r"training\.processes: 5 can't share batches of 4"):
        train(base_dir, tmp_path / "out", changed(QUICK, processes=5))


RUN = """
import sys
from pathlib import Path
from icon_assets_tests.core.training.test_fine_tune import changed
from icon_assets_tests.core.training.test_workers import BOTH, train
base, out = map(Path, sys.argv[1:])
train(base, out, changed(BOTH, epochs=10_000), on_step=lambda *_: print("step", flush=True))
"""


def test_workers_die_with_the_process_that_started_them(base_dir, tmp_path):
    command = [sys.executable, "-c", RUN, str(base_dir), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 3
    process.kill()
    process.wait(30)
    deadline = time.monotonic() + 60
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline, "a worker trains on for nobody"
        time.sleep(0.2)
