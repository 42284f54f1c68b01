"""README and docs: what they show is so."""

import pytest

from icon_assets.core.quality import RULES
from icon_assets_tests.generated_docs import DOCS, PREVENTS, pages


@pytest.mark.parametrize("name", ["checks.md", "settings.md"])
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    made = (DOCS / name).read_text("utf-8")
    assert made == pages()[name], "write it again: python -m icon_assets_tests.generated_docs"


def test_every_check_says_what_it_prevents_and_nothing_else_does() -> None:
    assert set(PREVENTS) == {rule.name for rule in RULES}
