"""Silence of the libraries: complete inside, and nothing of it left outside."""

import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from icon_assets.core.model.quiet import quiet_libraries


def speak() -> None:
    from tqdm import tqdm

    for _ in [*tqdm([1], desc="a bar"), *transformers_logging.tqdm([1], desc="theirs")]:
        transformers_logging.get_logger("transformers.trial").warning("a notice")
        logging.getLogger("datasets").error("an error")
    warnings.warn("a new name", FutureWarning, stacklevel=1)


def test_bars_notices_and_warnings_of_names_are_silent_inside_and_as_before_outside(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with quiet_libraries(), quiet_libraries(), warnings.catch_warnings(record=True) as warned:
        speak()
    assert capsys.readouterr() == ("", "")
    assert (caplog.text, warned) == ("", [])
    with pytest.warns(FutureWarning, match="a new name"):
        speak()
    said = capsys.readouterr().err + caplog.text
    assert all(part in said for part in ("a bar", "theirs", "a notice", "an error")), said


def test_an_error_passes_through_and_ends_the_silence() -> None:
    def fail() -> None:
        with quiet_libraries():
            assert transformers_logging.get_verbosity() == logging.ERROR
            raise KeyError

    level = transformers_logging.get_verbosity()
    with pytest.raises(KeyError):
        fail()
    assert transformers_logging.get_verbosity() == level


def test_other_warnings_are_heard_inside() -> None:
    with quiet_libraries(), pytest.warns(UserWarning, match="look"):
        warnings.warn("look", UserWarning, stacklevel=1)
