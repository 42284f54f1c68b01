"""A disk that refuses, as the libraries that write to it say it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

from icon_assets.core.errors import DiskRefused
from icon_assets.core.files import disk_errors, new_directory, new_file, sole_writer

FULL = Path("/dev/full")
FRAME = pl.DataFrame({"text": ["more than a buffer holds"] * 100_000})


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda: FULL.write_text("text"),
        lambda: FRAME.write_ndjson(FULL),
        lambda: FRAME.write_parquet(FULL),
        lambda: torch.save(torch.zeros(1 << 20), FULL),
    ],
    ids=["open", "polars JSON lines", "polars Parquet", "torch"],
)
def test_a_full_disk_is_told_whoever_writes(write: Callable[[], None]) -> None:
    with pytest.raises(DiskRefused, match="the checkpoint: could not be written"), disk_errors("the checkpoint"):
        write()


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    for failing in (
        lambda: FRAME.write_ndjson(tmp_path / "no" / "folder"),
        lambda: save_file({}, tmp_path / "a" / "b"),
    ):
        with pytest.raises(Exception, match="No such file") as caught, disk_errors("x"):
            failing()
        assert not isinstance(caught.value, DiskRefused)
    with pytest.raises(ValueError, match="shape"), disk_errors("x"):
        np.zeros(3).reshape(2, 2)


def test_what_a_killed_writer_had_put_aside_comes_back_and_its_half_directory_goes(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    (tmp_path / ".checkpoint.0123abcd.old").mkdir()
    (tmp_path / ".checkpoint.0123abcd.old" / "weights").write_text("whole")
    (tmp_path / ".checkpoint.4567abcd.partial").mkdir()
    with sole_writer(target):
        assert (target / "weights").read_text() == "whole"
        with new_directory(target) as partial:
            (partial / "weights").write_text("new")
    (tmp_path / ".checkpoint.89ababcd.old").mkdir()
    with sole_writer(target):
        assert (target / "weights").read_text() == "new", "it has its successor"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", ".checkpoint.lock"}


def test_a_file_is_seen_whole_and_what_is_left_of_a_writer_does_not_stay(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    (tmp_path / ".report.html.partial").write_text("half of a longer text, by one that was killed")
    new_file(target, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(UnicodeEncodeError):
        new_file(target, "\ud800")
    assert target.read_text() == "one"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(partial(new_file, target), [letter * 100_000 for letter in "abcdefgh"]))
    assert set(target.read_text()) < set("abcdefgh")
    assert len(set(target.read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
