"""A reconstruction at a glance, and its page: what was measured, what was found, how sure it is, where it is wrong.

Columns show one volume each, rows the same three slices of all of them, in the orientation of the contour sheets.
Grey columns share one window, so that what looks darker is darker; heat columns, of spread and of error, share one
scale, so that a spread that promises less than the error is seen to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from voxscore.errors import UserError
from voxscore.evaluation.pictures import (
    _VIEWS,
    BACKGROUND,
    BAR_MM,
    FAINT,
    FRAME,
    MARGIN_PX,
    TEXT,
    _check,
    _grey,
    _Scene,
    _scene,
    _slice,
    _window,
    fit_text,
)
from voxscore.evaluation.report import _PAGE, _img

__all__ = ["reconstruction_report", "reconstruction_sheet"]

WIDTH_PX, COLUMN_MAX_PX, ROW_MAX_PX, ROW_MIN_PX = 1700, 420, 420, 40
GAP_PX, TITLE_PX, NAME_PX, FOOT_PX = 8, 36, 30, 30
HOTTEST = 99.5  # percentile that has the last colour
# Black, red, yellow, white: as bright as the value, in print too.
HEAT = np.array([(0, 0, 0), (150, 0, 30), (235, 90, 0), (255, 210, 60), (255, 255, 255)], dtype=np.float64)


def reconstruction_sheet(
    images: Mapping[str, np.ndarray],
    heats: Mapping[str, np.ndarray],
    affine: np.ndarray,
    title: str = "",
) -> Image.Image:
    """Draws volumes beside each other, as coronal, sagittal and axial slice through the middle.

    Args:
        images: intensities (X, Y, Z) by heading, drawn grey in the window (0.5th to 99.5th percentile) of the last.
        heats: values from 0 on (X, Y, Z) by heading, drawn as heat from 0 to the largest 99.5th percentile of them.
        affine: (4, 4), voxel index to RAS+ mm, of all.
        title: heading of the sheet.

    Returns:
        An RGB picture at most 1700 pixels wide.

    Raises:
        UserError: no image, or shapes or the affine do not fit.
    """
    if not images:
        raise UserError("sheet", "has no image", "give one at least")
    affine = np.asarray(affine, dtype=float)
    scenes = {name: _whole(name, volume, affine) for name, volume in {**images, **heats}.items()}
    (*_, last) = images
    window = _window(scenes[last])
    hottest = max((float(np.percentile(volume, HOTTEST)) for volume in heats.values()), default=0.0)

    extent = np.array(scenes[last].image.shape) * scenes[last].size
    room = min((WIDTH_PX - 2 * MARGIN_PX + GAP_PX) // len(scenes) - GAP_PX, COLUMN_MAX_PX)
    scale = min(room / max(extent[0], extent[1]), ROW_MAX_PX / max(extent[1], extent[2]))
    sizes = {
        view: tuple(max(round(float(extent[axis]) * scale), 1) for axis in axes[:2]) for view, axes in _VIEWS.items()
    }
    heights = [max(size[1], ROW_MIN_PX) for size in sizes.values()]
    top = MARGIN_PX + (TITLE_PX if title else 0) + NAME_PX
    width = 2 * MARGIN_PX + len(scenes) * (room + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", (width, top + sum(heights) + 3 * GAP_PX + FOOT_PX + MARGIN_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = ImageFont.load_default(size=22)
        draw.text((MARGIN_PX, MARGIN_PX - 4), fit_text(title, font, width - 2 * MARGIN_PX), TEXT, font)
    font = ImageFont.load_default(size=18)
    for column, (name, scene) in enumerate(scenes.items()):
        x, y = MARGIN_PX + column * (room + GAP_PX), top
        draw.text((x, y - 9), fit_text(name, font, room), TEXT, font, anchor="ls")
        for (view, size), height in zip(sizes.items(), heights, strict=True):
            plane = _slice(scene.image, scene, view)
            panel = _grey(plane, window, size) if name in images else _heat(plane, hottest, size)
            corner = x + (room - size[0]) // 2, y + (height - size[1]) // 2
            sheet.paste(panel, corner)
            draw.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + size[0], corner[1] + size[1]), outline=FRAME)
            y += height + GAP_PX
    _draw_foot(sheet, scale, hottest if heats else None, room)
    return sheet


def _whole(name: str, volume: np.ndarray, affine: np.ndarray) -> _Scene:
    volume = np.asarray(volume)
    labels = np.zeros(volume.shape, np.uint8)
    try:
        _check(volume, labels, affine, {})
    except UserError as error:
        raise UserError(f"{name}: {error.subject}", error.fault, error.remedy) from error
    return _scene(volume, labels, None, affine, {}, None, math.inf)


def _colors(unit: np.ndarray) -> np.ndarray:
    """Colours (..., 3) of values from 0 to 1."""
    at = np.clip(unit, 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(at, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)], -1)


def _heat(plane: np.ndarray, hottest: float, size: tuple[int, ...]) -> Image.Image:
    unit = plane.astype(np.float64) / (hottest or 1.0)
    picture = Image.fromarray(np.rint(_colors(unit)).astype(np.uint8))
    return picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)


def _draw_foot(sheet: Image.Image, scale: float, hottest: float | None, room: int) -> None:
    """Scale in millimetres and of the heat, and how the slices lie."""
    draw, small = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    middle = sheet.height - MARGIN_PX - FOOT_PX // 2
    right = sheet.width - MARGIN_PX
    if hottest is not None:
        bar = _colors(np.tile(np.linspace(0, 1, room // 2), (12, 1)))
        text = f"{hottest:.3g}"
        right -= int(small.getlength(text))
        draw.text((right, middle), text, FAINT, small, anchor="lm")
        right -= room // 2 + 8
        sheet.paste(Image.fromarray(np.rint(bar).astype(np.uint8)), (right, middle - 6))
        draw.text((right - 8, middle), "0", FAINT, small, anchor="rm")
        right -= 30
    x = MARGIN_PX + round(BAR_MM * scale)
    draw.rectangle((MARGIN_PX, middle - 1, x, middle + 1), fill=TEXT)
    note = f"{BAR_MM:g} mm; coronal, sagittal (anterior left), axial; patient right on the left"
    draw.text((x + 10, middle), fit_text(note, small, right - x - 10), FAINT, small, anchor="lm")


_SECTION = Template("""\
<section>
<h2>$name</h2>
<div class="sheet">
$picture
</div>
$notes
$scores
<div class="tables"><table>
<tbody>
$facts
</tbody>
</table></div>
</section>
""")

_SCORES = Template("""\
<div class="tables"><table>
<thead><tr><th scope="col">Against the reference</th>$head</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
""")


def reconstruction_report(
    name: str,
    picture: Image.Image,
    facts: Mapping[str, str],
    scores: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    manifest: Mapping[str, Any],
    title: str,
) -> str:
    """Writes the page about one reconstruction; the same arguments give the same page, byte for byte.

    Args:
        name: of the measurement.
        picture: a `reconstruction_sheet`.
        facts: what a reader should know of it, by name.
        scores: of each volume, by their heading; empty without a reference.
        notes: remarks a reader must see, one paragraph each.
        manifest: how it was made, of JSON types; anything else is shown as its text.
        title: heading of the page.

    Returns:
        A complete HTML document; write it as UTF-8.
    """
    table = ""
    if scores:
        names = list(next(iter(scores.values())))
        table = _SCORES.substitute(
            head="".join(f'<th scope="col">{escape(n)}</th>' for n in names),
            rows="\n".join(
                f'<tr><th scope="row">{escape(volume)}</th>'
                + "".join(f"<td>{values[n]:.4g}</td>" for n in names)
                + "</tr>"
                for volume, values in scores.items()
            ),
        )
    section = _SECTION.substitute(
        name=escape(name),
        picture=_img(picture, f"Three slices of {name}, as measured and as reconstructed"),
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        scores=table,
        facts="\n".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts.items()),
    )
    return _PAGE.substitute(
        title=escape(title),
        width="110rem",
        overview="",
        sections=section,
        manifest=escape(json.dumps(manifest, indent=2, ensure_ascii=False, default=str)),
    )
