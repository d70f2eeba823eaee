"""One page to read, keep and send: the picture, the volumes, and how they came about.

The page is a single HTML file that fetches nothing: pictures are embedded, the style is inline and there is
no script, so it opens in ten years on a hospital computer without a network, and reading it tells nobody.
Every text that came from outside, a file's name above all, is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["ReportItem", "segmentation_report"]


@dataclass(frozen=True)
class ReportItem:
    """What the page says about one volume.

    Attributes:
        name: heading, such as the file's name.
        picture: what to look at, for instance a `contour_sheet`.
        volumes: mL by label name, in the order to list.
        notes: remarks a reader must see, one paragraph each.
        intervals: of the volumes, if they have any: `median`, `low` and `high` in mL and `level` by label name, as in
            the manifest.
        uncertainty: the picture to show beside the first, such as a `contour_sheet` with the entropy.
    """

    name: str
    picture: Image.Image
    volumes: Mapping[str, float]
    notes: Sequence[str] = field(default_factory=tuple)
    intervals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    uncertainty: Image.Image | None = None


_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c1f24; --faint: #626973; --paper: #ffffff; --card: #f4f5f7;
  --line: #dcdfe4; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --faint: #9aa1ab; --paper: #101216;
  --card: #191c21; --line: #30343b; --warn: #f0b95a; } }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: $width; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1.25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
section { margin: 0 0 1.5rem; padding: 1.25rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; break-inside: avoid; }
.pictures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem; }
.pictures img { flex: 1 1 30rem; width: auto; min-width: 0; object-fit: contain; }
img { display: block; width: 100%; max-width: 46rem; height: auto; border-radius: .35rem; }
.sheet img { max-width: none; }
.tables { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.5rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th, footer { color: var(--faint); }
td { text-align: right; }
thead th + th { text-align: right; }
.note { margin: 1rem 0 0; color: var(--warn); }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .85rem; line-height: 1.4; }
a { color: inherit; }
</style>
</head>
<body>
<h1>$title</h1>
$overview
$sections
<section><details><summary>How this was made</summary>
<pre>$manifest</pre></details></section>
<footer>Research use; not for diagnosis.</footer>
</body>
</html>
""")

_OVERVIEW = Template("""\
<section>
<h2>All volumes</h2>
<div class="tables"><table>
<thead><tr><th scope="col">Volume</th>$head</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
</section>
""")

_SECTION = Template("""\
<section id="case-$number">
<h2>$name</h2>
<div class="pictures">
$pictures
</div>
$notes
<div class="tables"><table>
<thead><tr><th scope="col">Label</th><th scope="col">Volume, mL</th>$head</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
</section>
""")


def segmentation_report(items: Sequence[ReportItem], manifest: Mapping[str, Any], title: str) -> str:
    """Writes the page about a run.

    With two volumes or more the page opens with a table of all of them, linked to their sections. The same
    arguments give the same page, byte for byte.

    Args:
        items: the volumes in the order to show.
        manifest: how the run was made (versions, bundle, settings, digests), of JSON types; anything else
            is shown as its text.
        title: heading of the page.

    Returns:
        A complete HTML document; write it as UTF-8.
    """
    return _PAGE.substitute(
        title=escape(title),
        # Two pictures side by side need a wider page.
        width="100rem" if any(item.uncertainty for item in items) else "68rem",
        overview=_overview(items) if len(items) > 1 else "",
        sections="\n".join(_section(number, item) for number, item in enumerate(items, 1)),
        manifest=escape(json.dumps(manifest, indent=2, ensure_ascii=False, default=str)),
    )


def _section(number: int, item: ReportItem) -> str:
    pictures = [_img(item.picture, f"Three slices of {item.name} with label contours")]
    if item.uncertainty is not None:
        pictures.append(_img(item.uncertainty, f"The same slices of {item.name} with the entropy of the label"))
    rows = []
    for label, volume in item.volumes.items():
        cells = f"<td>{volume:.2f}</td>"
        if item.intervals:
            interval = item.intervals[label]
            cells += f"<td>{interval['median']:.2f}</td><td>{interval['low']:.2f} to {interval['high']:.2f}</td>"
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    head = ""
    if item.intervals:
        head = f'<th scope="col">Median of samples, mL</th><th scope="col">{_level(item)} interval, mL</th>'
    return _SECTION.substitute(
        number=number,
        name=escape(item.name),
        pictures="\n".join(pictures),
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in item.notes),
        head=head,
        rows="\n".join(rows),
    )


def _img(picture: Image.Image, alt: str) -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img alt="{escape(alt)}" {size} src="{_data_uri(picture)}">'


def _level(item: ReportItem) -> str:
    """The level that the intervals of a volume share, such as "95 %"."""
    return f"{100 * next(iter(item.intervals.values()))['level']:.3g} %"


def _overview(items: Sequence[ReportItem]) -> str:
    # A dictionary keeps the order in which the labels first appear.
    labels = list(dict.fromkeys(label for item in items for label in item.volumes))
    head = "".join(f'<th scope="col">{escape(label)}, mL</th>' for label in labels)
    rows = []
    for number, item in enumerate(items, 1):
        cells = "".join(f"<td>{_volume(item, label)}</td>" for label in labels)
        link = f'<a href="#case-{number}">{escape(item.name)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{cells}</tr>')
    return _OVERVIEW.substitute(head=head, rows="\n".join(rows))


def _volume(item: ReportItem, label: str) -> str:
    """A volume with its interval, nothing where the label is not listed."""
    if label not in item.volumes:
        return ""
    text = f"{item.volumes[label]:.2f}"
    if item.intervals:
        interval = item.intervals[label]
        text += f" ({interval['low']:.2f} to {interval['high']:.2f}; {_level(item)})"
    return text


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    # A fresh copy of the pixels: metadata that a loaded picture carries must not travel with the page.
    Image.fromarray(np.asarray(picture.convert("RGB"))).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
