"""`voxscore bundles`: what is installed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import voxscore

__all__ = ["bundles"]


def bundles() -> None:
    """List the installed bundles."""
    table = Table("bundle", "version", "task", box=None)
    for bundle in voxscore.bundles.installed_bundles():
        table.add_row(bundle.name, bundle.version, bundle.metadata["task"])
    Console().print(table)
