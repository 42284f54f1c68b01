"""Silence of the libraries around a model, whose words would stand between our own progress and log lines."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LEVELS = {
    "transformers": logging.ERROR,
    "lm_eval": logging.CRITICAL,
    "datasets": logging.CRITICAL,
    "huggingface_hub": logging.CRITICAL,
}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, no notices, and no warnings about names that are changing between the libraries."""
    from tqdm import tqdm
    from transformers.utils.logging import get_verbosity

    get_verbosity()  # transformers sets its level when it is first asked, and would undo ours
    bar = tqdm.__init__
    loggers = {logging.getLogger(name): level for name, level in _LEVELS.items()}
    levels = {logger: logger.level for logger in loggers}

    def without_bar(self: Any, *args: Any, **kwargs: Any) -> None:
        bar(self, *args, **{**kwargs, "disable": True})

    try:
        tqdm.__init__ = without_bar
        for logger, level in loggers.items():
            logger.setLevel(level)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        tqdm.__init__ = bar
        for logger, level in levels.items():
            logger.setLevel(level)
