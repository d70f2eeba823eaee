"""The command line: `voxscore segment | reconstruct | synthesize | audit | deidentify | deface | train | ...`.

Commands are thin: they read options, call one function a volume, print. They reach the rest of voxscore through
`import voxscore`, whose parts load on first use, so `voxscore --help` loads neither PyTorch nor MONAI.

Exit codes: 0 all done, 1 some inputs of a batch failed, 2 nothing was done because of the input or the options,
130 interrupted. `audit` has its own: 1 FAIL, 3 INCONCLUSIVE.
"""

from __future__ import annotations

import sys

import typer

from voxscore.cli.allocation import keep_freed_memory
from voxscore.cli.audit import audit
from voxscore.cli.bundles import bundles
from voxscore.cli.deface import deface
from voxscore.cli.deidentify import app as deidentify
from voxscore.cli.demo import demo
from voxscore.cli.evaluate import evaluate
from voxscore.cli.reconstruct import reconstruct
from voxscore.cli.segment import segment
from voxscore.cli.simulate import simulate
from voxscore.cli.synthesize import synthesize
from voxscore.cli.train import train
from voxscore.errors import UserError

__all__ = ["app", "main"]

INTERRUPTED = 130

app = typer.Typer(
    name="voxscore",
    help="Score-based diffusion for 3-D medical volumes inside MONAI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (segment, reconstruct, simulate, synthesize, audit, evaluate, train, bundles, demo, deface):
    app.command()(command)
app.add_typer(deidentify)


def main() -> None:
    """Entry point: a fault the user can mend is one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except UserError as error:
        print(f"voxscore: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as error:
        if error.code == INTERRUPTED:  # typer's answer to Ctrl-C, without a word
            print("voxscore: interrupted; the outputs that are there are complete", file=sys.stderr)
        raise
