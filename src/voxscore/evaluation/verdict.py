"""What an audit says in one word: PASS, FAIL or INCONCLUSIVE.

Each test of an audit leaves a finding. One that fails makes the whole fail; one that cannot tell makes the whole
inconclusive. So PASS means: the tests could have found something, and found nothing. It is evidence that no copies
were found by this search. It is not anonymity, and it is not differential privacy, which is a property of how a model
was trained and cannot be seen in its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Verdict", "overall"]


class Verdict(str, Enum):
    """The result of a test, or of all of them."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        """Of the command line: 0, 1 or 3; 2 is bad input."""
        return {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[self.value]


@dataclass(frozen=True)
class Finding:
    """What one test says.

    Attributes:
        test: its name.
        verdict: of it.
        sentence: with the numbers, for a reader.
    """

    test: str
    verdict: Verdict
    sentence: str


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict of all: FAIL outweighs INCONCLUSIVE, which outweighs PASS.

    Nothing found by no test is INCONCLUSIVE.
    """
    found = {finding.verdict for finding in findings}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in found:
            return verdict
    return Verdict.INCONCLUSIVE
