"""The page of an audit: its verdict, what each test found, the groups, and the pairs that are most alike side by side.

A number convinces nobody that two pictures show one person or two; looking at them does. The page is one file that
fetches nothing, as that of `report` is. It shows training volumes, so it is as confidential as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from PIL import Image

from voxscore.evaluation.report import _PAGE, _img
from voxscore.evaluation.subgroups import Subgroup
from voxscore.evaluation.verdict import Finding, Verdict

__all__ = ["audit_page"]

_SUMMARY = Template("""\
<section>
<h2>$verdict</h2>
<p>$meaning</p>
<p class="note">This page shows training volumes: keep it as confidential as they are.</p>
<div class="tables"><table>
<thead><tr><th scope="col">Test</th><th scope="col">Verdict</th><th scope="col">Finding</th></tr></thead>
<tbody>
$rows
</tbody>
</table></div>
</section>
""")

_GROUPS = Template("""\
<section>
<h2>Groups</h2>
<p>Thirds of the training set by what its label maps say. Density is 1 where as many volumes are made as there are;
recall is the part of real volumes that the synthetic set could have made.</p>
<div class="tables"><table>
<thead><tr><th scope="col">Group</th>$head</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
</section>
""")

_PAIR = Template("""\
<section>
<h2>$title</h2>
$picture
<p>$caption</p>
</section>
""")

_COLUMNS = ("Training", "Synthetic", "Density (95 % interval)", "Flagged", "Recall of held-out", "Recall of training")


def audit_page(
    verdict: Verdict,
    meaning: str,
    findings: Sequence[Finding],
    groups: Sequence[Subgroup],
    pairs: Sequence[tuple[str, Image.Image, str]],
    content: Mapping[str, Any],
) -> str:
    """Writes the page of an audit; the same arguments give the same page.

    Args:
        verdict: of the audit.
        meaning: what it does and does not say.
        findings: of all tests.
        groups: the audit by groups; none leaves the table out.
        pairs: title, picture and caption of each pair to show.
        content: everything, of JSON types.

    Returns:
        A complete HTML document; write it as UTF-8.
    """
    rows = "\n".join(
        f'<tr><th scope="row">{escape(f.test)}</th><td>{f.verdict.value}</td><td>{escape(f.sentence)}</td></tr>'
        for f in findings
    )
    overview = _SUMMARY.substitute(verdict=verdict.value, meaning=escape(meaning), rows=rows)
    if groups:
        head = "".join(f'<th scope="col">{column}</th>' for column in _COLUMNS)
        overview += _GROUPS.substitute(head=head, rows="\n".join(_group(group) for group in groups))
    return _PAGE.substitute(
        title="Audit of synthetic volumes",
        width="100rem",
        overview=overview,
        sections="\n".join(
            _PAIR.substitute(title=escape(title), picture=_img(picture, title), caption=escape(caption))
            for title, picture, caption in pairs
        ),
        manifest=escape(json.dumps(content, indent=2, ensure_ascii=False)),
    )


def _group(group: Subgroup) -> str:
    cells = (
        str(group.training),
        str(group.synthetic),
        f"{_number(group.density)} ({_number(group.density_low)} to {_number(group.density_high)})",
        str(group.flagged),
        _number(group.recall),
        _number(group.training_recall),
    )
    columns = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(group.trait)}, {group.third}</th>{columns}</tr>'


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
