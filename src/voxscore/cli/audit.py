"""`voxscore audit`: do synthetic volumes hold copies of training volumes?"""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import voxscore
from voxscore.errors import UserError

__all__ = ["audit"]

WIDE = 10_000


def audit(
    synthetic: Annotated[Path, typer.Option("--synthetic", help="Folder of the volumes to audit.")],
    training: Annotated[Path, typer.Option("--training", help="Folder of all volumes the model was trained on.")],
    held_out: Annotated[Path, typer.Option("--held-out", help="Folder of real volumes it was not trained on.")],
    json: Annotated[Path, typer.Option("--json", help="Write the findings here.")],
    bundle: Annotated[
        str | None, typer.Option(help="Bundle that made the volumes, to ask its network too.", show_default="none")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also write a page with the most alike pairs, beside the JSON.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of planted copies, encoder, noise and permutations.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Of the network: auto, cpu, cuda or cuda:n.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Audit synthetic volumes for copies of training volumes, with a verdict.

    Exit code 0: PASS, no copies found. 1: FAIL. 3: INCONCLUSIVE, and what it would take. 2: bad input. A PASS is
    evidence that this search found no copies; it is not anonymity, and it is not differential privacy.

    [bold]Examples[/bold]

        voxscore audit --synthetic synthetic --training training --held-out held_out --json audit.json

        voxscore audit --synthetic a --training b --held-out c --bundle hippocampus_synthesis --json a.json --report
    """
    page = json.with_suffix(".html") if report else None
    for target in (json, page):
        if target is not None and target.exists() and not overwrite:
            raise UserError(target, "exists already", "choose another output, or replace it with --overwrite")
    chosen = None if bundle is None else voxscore.bundles.find_bundle(bundle)
    where = None if bundle is None else voxscore.segmentation.resolve_device(device)
    with Console(stderr=True).status("auditing") as status:
        found = voxscore.audit.audit(synthetic, training, held_out, chosen, where, seed, status.update)
    with voxscore.volumes.written_whole(json, overwrite) as partial:
        partial.write_text(json_format.dumps(found.content(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if page is not None:
        with voxscore.volumes.written_whole(page, overwrite) as partial:
            # A file name need not be UTF-8.
            partial.write_text(found.page(), encoding="utf-8", errors="backslashreplace")
    # Piped, a row is a line, however long.
    console = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, emoji=False)
    table = Table("verdict", "test", "finding", box=None)
    for finding in found.findings:
        table.add_row(finding.verdict.value, finding.test, finding.sentence)
    console.print(table)
    console.print(f"\n{found.verdict.value}. {voxscore.audit.NO_PROMISE}")
    if found.refused:
        console.print(f"{len(found.refused)} volumes are not to be released; {json} names them.")
    raise typer.Exit(found.verdict.exit_code)
