"""C++ that is compiled where it runs: whole or not at all, by nobody else, and never needed."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from icon_assets.core.engine.attention import can_fuse
from icon_assets.core.model.native import compiler, library

NAME = "packed_attention"
BUILD = f"from icon_assets.core.model.native import library; assert library('{NAME}')"
needs_units = pytest.mark.skipif(
    not can_fuse(torch.bfloat16, torch.device("cpu")) or compiler() is None,
    reason="needs a CPU that multiplies bfloat16, and a C++ compiler",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where libraries go; nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "icon_assets"
    library.cache_clear()


def built(cache: Path) -> list[str]:
    return sorted(path.relative_to(cache).parts[-1] for path in cache.rglob("*") if path.suffix != ".lock")


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILD], start_new_session=True)


@needs_units
def test_processes_that_build_at_once_share_one_library_and_later_ones_compile_nothing(cache: Path) -> None:
    processes = [start(), start()]
    assert [process.wait() for process in processes] == [0, 0]
    file, folder = built(cache)
    stamp = [path.stat().st_mtime_ns for path in cache.rglob("library.so")]
    assert folder.startswith(NAME)
    assert file == "library.so"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert library(NAME) is not None
    assert [path.stat().st_mtime_ns for path in cache.rglob("library.so")] == stamp


@needs_units
def test_a_kill_while_compiling_leaves_nothing_that_is_taken_for_a_library(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow-compiler"
    started = tmp_path / "started"
    slow.write_text(f'#!/bin/sh\nfor last; do :; done\necho half > "$last"\ntouch {started}\nsleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    process = start()
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [name.rpartition(".")[2] for name in built(cache)] == ["partial", "so"]
    slow.write_text('#!/bin/sh\nexec g++ "$@"\n')
    assert library(NAME) is not None
    assert "partial" not in "".join(built(cache)), "what the killed one left is removed"


@needs_units
@pytest.mark.parametrize("fault", ["open to others", "a link", "a file"])
def test_a_cache_that_is_not_ones_own_is_neither_read_nor_written(cache: Path, tmp_path: Path, fault: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if fault == "open to others":
        cache.mkdir()
        cache.chmod(0o770)
    elif fault == "a link":
        cache.symlink_to(elsewhere)
    else:
        cache.touch()
    assert library(NAME) is not None
    assert not list(elsewhere.iterdir())
    assert not cache.is_dir() or not list(cache.iterdir())


def test_a_compiler_that_fails_or_is_missing_is_said_once_and_costs_the_library_only(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "icon_assets")
    monkeypatch.setenv("CXX", "/bin/false")
    assert library(NAME) is None
    assert library(NAME) is None
    (line,) = caplog.messages
    assert line.startswith("packed_attention.cpp was not built")
    assert not built(cache)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    library.cache_clear()
    assert library(NAME) is None
    assert caplog.messages[1:] == ["packed_attention.cpp was not built: no C++ compiler"]
