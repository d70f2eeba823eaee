"""`voxscore bundles`: what is installed."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

import voxscore

__all__ = ["bundles"]


def bundles() -> None:
    """List the installed bundles."""
    table = Table("bundle", "version", "task", box=None)
    for bundle in voxscore.bundles.installed_bundles():
        table.add_row(bundle.name, bundle.version, bundle.metadata["task"])
    # Piped, a row is a line, however long.
    Console(width=None if sys.stdout.isatty() else 10_000, markup=False, emoji=False).print(table)
