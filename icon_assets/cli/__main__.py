"""`python -m icon_assets.cli`."""

from icon_assets.cli import entry

entry()
