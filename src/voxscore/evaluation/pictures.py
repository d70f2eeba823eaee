"""What a person looks at first: three slices through the finding, contours on top, nothing to misread.

A segmentation is believed or refused at a glance, so the glance must not deceive. Whatever the order and
direction of the stored axes, the sheet shows the same: patient right on the viewer's left (radiological
convention), every edge lettered, one scale in millimetres for all panels, so that an anisotropic voxel is
drawn as long as it is. The panels are laid out like an engineer's drawing, so that a structure keeps its
column from coronal to axial and its row from coronal to sagittal::

    coronal   R..L x S..I  |  sagittal  A..P x S..I
    axial     R..L x A..P  |  legend, volumes, where the view lies

Slices follow the stored axes (no resampling off the grid); on an oblique acquisition the letters name the
nearest direction and the sheet says how oblique it is.

The same sheet shows where a label is unsure: with an entropy the slices carry its heat in place of the contours.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

from voxscore.errors import UserError

__all__ = ["contour_sheet", "montage"]

Color = tuple[int, int, int]

BACKGROUND: Color = (16, 18, 22)
FRAME: Color = (58, 62, 70)
TEXT: Color = (228, 230, 234)
FAINT: Color = (142, 147, 156)

CONTENT_PX = 1000  # width or height of two panels side by side, whichever is larger
PANEL_MIN_PX = 190  # a thin slab still leaves room for its letters
MARGIN_PX, GAP_PX, CAPTION_PX = 22, 14, 26
OVERSAMPLING = 3  # contours are drawn this much larger and averaged down, which is what smooths them
LINE_PX = 2.0
BAR_MM = 10.0

# Heat from sure to unsure: two classes equally likely, of an entropy of ln 2, have its full colour.
WARM: Color = (214, 40, 40)
HOT: Color = (255, 240, 110)
FULL_HEAT = math.log(2)

# (name, axis across, axis down, axis cut, letters left right top bottom), axes of a RAS volume. Every
# displayed axis runs against its RAS direction: R, A and S lie left or on top.
_VIEWS = {
    "coronal": (0, 2, 1, "RLSI"),
    "sagittal": (1, 2, 0, "APSI"),
    "axial": (0, 1, 2, "RLAP"),
}


@dataclass(frozen=True)
class _Scene:
    """Image, labels and entropy on one RAS-ordered grid, voxels per label, and the box of voxels to look at."""

    image: np.ndarray
    labels: np.ndarray
    entropy: np.ndarray | None
    affine: np.ndarray
    counts: Mapping[int, int]
    center: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Voxel size along the RAS-ordered axes, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def whole(self) -> bool:
        """Whether the box is all of the volume."""
        return bool(np.all(self.start == 0) and np.all(self.stop == self.image.shape))


def contour_sheet(
    image: np.ndarray,
    labelmap: np.ndarray,
    affine: np.ndarray,
    colors: Mapping[int, Color],
    names: Mapping[int, str],
    title: str = "",
    center: Sequence[int] | None = None,
    zoom_mm: float | None = None,
    entropy: np.ndarray | None = None,
) -> Image.Image:
    """Draws the sheet of three slices with label contours, legend, volumes and scale.

    Grey levels run from the 0.5th to the 99.5th percentile of the box that is shown.

    Args:
        image: intensities of any scale, (X, Y, Z).
        labelmap: integer labels on the same grid, 0 background, (X, Y, Z).
        affine: voxel index to RAS+ mm, (4, 4).
        colors: red, green, blue (0 to 255) of every label that occurs; an entry for 0 is passed over.
        names: name of each label for the legend.
        title: heading; nothing that names a patient belongs here unless the reader may know it.
        center: stored voxel index that the three slices pass through; by default the labels' centroid (or,
            where it lies between structures, the largest structure's), or the middle of a volume without
            labels.
        zoom_mm: edge of the cube to show; by default the labels' bounding box with a margin, and
            `math.inf` shows everything.
        entropy: of each voxel's class, nats, (X, Y, Z); drawn as heat in the same slices, in place of contours and
            volumes.

    Returns:
        An RGB picture about 1050 pixels wide or high.

    Raises:
        UserError: shapes, affine, centre or zoom do not fit, or a label has no colour.
    """
    image, labelmap = np.asarray(image), np.asarray(labelmap)
    affine = np.asarray(affine, dtype=float)
    counts = _check(image, labelmap, affine, colors)
    if entropy is not None and np.shape(entropy) != image.shape:
        fault = f"has shape {np.shape(entropy)}, the image has {image.shape}"
        raise UserError("entropy", fault, "give one number for each voxel")
    scene = _scene(image, labelmap, entropy, affine, counts, center, zoom_mm)

    extent = (scene.stop - scene.start) * scene.size
    scale = CONTENT_PX / max(extent[0] + extent[1], extent[2] + extent[1])
    cell = np.maximum(np.ceil(extent * scale), PANEL_MIN_PX).astype(int)

    top = MARGIN_PX + (34 if title else 0)
    left, right = MARGIN_PX, MARGIN_PX + cell[0] + GAP_PX
    upper, lower = top + CAPTION_PX, top + CAPTION_PX + cell[2] + GAP_PX + CAPTION_PX
    sheet = Image.new("RGB", (right + cell[1] + MARGIN_PX, lower + cell[1] + MARGIN_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        font = ImageFont.load_default(size=22)
        draw.text((left, MARGIN_PX - 4), fit_text(title, font, sheet.width - 2 * MARGIN_PX), TEXT, font)
    window = _window(scene)
    for name, place in {"coronal": (left, upper), "sagittal": (right, upper), "axial": (left, lower)}.items():
        _draw_panel(sheet, name, place, cell, scene, scale, window, colors)
    _draw_legend(sheet, (right, lower), (cell[1], cell[1]), scene, window, colors, names)
    return sheet


def montage(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Sets pictures in rows of `columns`, each at the top of a cell as large as the largest.

    Raises:
        UserError: there is no picture or no column.
    """
    if not images or columns < 1:
        fault = f"has {len(images)} pictures in {columns} columns"
        raise UserError("montage", fault, "give at least one picture and one column")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = max(picture.width for picture in images), max(picture.height for picture in images)
    sheet = Image.new("RGB", (columns * width, rows * height), BACKGROUND)
    for i, picture in enumerate(images):
        row, column = divmod(i, columns)
        place = (column * width + (width - picture.width) // 2, row * height)
        sheet.paste(picture.convert("RGB"), place)
    return sheet


def _check(image: np.ndarray, labelmap: np.ndarray, affine: np.ndarray, colors: Mapping[int, Color]) -> dict[int, int]:
    """Refuses what cannot be drawn; returns the number of voxels of each label but 0."""
    if image.ndim != 3 or 0 in image.shape:
        raise UserError("image", f"has shape {image.shape}", "give one volume (X, Y, Z) without channels")
    if labelmap.shape != image.shape or labelmap.dtype.kind not in "biu":
        fault = f"is {labelmap.dtype} of shape {labelmap.shape}, the image has {image.shape}"
        raise UserError("label map", fault, "give integer labels on the image's grid")
    if affine.shape != (4, 4) or not np.all(np.isfinite(affine)) or np.linalg.det(affine[:3, :3]) == 0:
        raise UserError("affine", "is not an invertible 4 x 4 matrix", "give voxel index to mm")
    found = zip(*np.unique(labelmap, return_counts=True), strict=True)
    counts = {int(label): int(count) for label, count in found if label != 0}
    if unknown := sorted(counts.keys() - colors.keys()):
        # A label left undrawn would look like a region left unsegmented.
        raise UserError("colors", f"lack the labels {unknown}", "give every label that occurs a colour")
    return counts


def _to_ras(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Stored axis for each of R, A, S, and whether it runs backwards; the closest match overall."""
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(permutations(range(3)), key=lambda axes: float(np.abs(direction[range(3), axes]).sum()))
    return order, tuple(bool(direction[i, a] < 0) for i, a in enumerate(order))


def _scene(
    image: np.ndarray,
    labelmap: np.ndarray,
    entropy: np.ndarray | None,
    affine: np.ndarray,
    counts: Mapping[int, int],
    center: Sequence[int] | None,
    zoom_mm: float | None,
) -> _Scene:
    order, flipped = _to_ras(affine)
    stored = np.array(image.shape)
    ras = affine.copy()
    ras[:3, :3] = affine[:3, order]
    for i, (axis, backwards) in enumerate(zip(order, flipped, strict=True)):
        if backwards:
            ras[:3, 3] += affine[:3, axis] * (stored[axis] - 1)
            ras[:3, i] *= -1
    flip = tuple(slice(None, None, -1 if backwards else 1) for backwards in flipped)
    image, labelmap = image.transpose(order)[flip], labelmap.transpose(order)[flip]
    entropy = None if entropy is None else np.asarray(entropy).transpose(order)[flip]
    shape, size = np.array(image.shape), np.linalg.norm(ras[:3, :3], axis=0)

    # Labelled voxels in each slice, for each axis.
    profiles = [np.count_nonzero(labelmap, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    if center is not None:
        asked = np.asarray(center)
        if asked.shape != (3,) or np.any(asked < 0) or np.any(asked >= stored):
            raise UserError("center", f"is {asked.tolist()}", f"give a voxel index within {stored.tolist()}")
        middle = np.where(flipped, shape - 1 - asked[list(order)], asked[list(order)]).astype(int)
    elif counts:
        middle = np.array([_middle(profile) for profile in profiles])
    else:
        middle = shape // 2
    start, stop = _box(shape, size, middle, profiles, zoom_mm)
    return _Scene(image, labelmap, entropy, ras, counts, middle, start, stop)


def _middle(profile: np.ndarray) -> int:
    """Slice through the centroid, or through the largest structure's where that lies between structures."""
    filled = np.flatnonzero(profile)
    centroid = round(float(np.average(filled, weights=profile[filled])))
    if profile[centroid]:
        return centroid
    runs = np.split(filled, np.flatnonzero(np.diff(filled) > 1) + 1)
    largest = max(runs, key=lambda run: int(profile[run].sum()))
    return round(float(np.average(largest, weights=profile[largest])))


def _box(
    shape: np.ndarray,
    size: np.ndarray,
    middle: np.ndarray,
    profiles: Sequence[np.ndarray],
    zoom_mm: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels to show, from start up to stop."""
    if zoom_mm is not None:
        if not zoom_mm > 0:
            raise UserError("zoom_mm", f"is {zoom_mm}", "give the edge of the view in mm")
        low, high = middle, middle + 1
        margin = np.maximum(np.minimum(zoom_mm, 2 * shape * size) - size, 0) / 2
    elif not profiles[0].any():
        return np.zeros(3, int), shape
    else:
        spans = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
        low, high = (np.array(ends) for ends in zip(*spans, strict=True))
        low, high = np.minimum(low, middle), np.maximum(high, middle) + 1
        # Enough surroundings to recognise the place: a third of the finding, at least 15 mm.
        margin = np.maximum((high - low) * size / 3, 15.0)
    # Less a little, so that rounding of the spacing never adds a voxel in one stored orientation only.
    reach = np.ceil(margin / size - 1e-6).astype(int)
    return np.maximum(low - reach, 0), np.minimum(high + reach, shape)


def _window(scene: _Scene) -> tuple[float, float]:
    shown = scene.image[tuple(slice(a, b) for a, b in zip(scene.start, scene.stop, strict=True))]
    shown = shown[np.isfinite(shown)]
    if not shown.size:
        return 0.0, 1.0
    low, high = np.percentile(shown, [0.5, 99.5])
    if high <= low:
        # A sparse image can be constant up to the percentiles; its extremes are then what there is to see.
        low, high = float(shown.min()), float(shown.max())
    return float(low), float(high) if high > low else float(low) + 1


def _slice(volume: np.ndarray, scene: _Scene, view: str, whole: bool = False) -> np.ndarray:
    """The displayed slice as (down, across), cut to the box unless `whole`."""
    cut = _VIEWS[view][2]
    index = [slice(None) if whole else slice(a, b) for a, b in zip(scene.start, scene.stop, strict=True)]
    index[cut] = slice(scene.center[cut], scene.center[cut] + 1)
    return volume[tuple(index)].squeeze(axis=cut).T[::-1, ::-1]


def _grey(plane: np.ndarray, window: tuple[float, float], px: tuple[int, int]) -> Image.Image:
    low, high = window
    unit = np.nan_to_num((plane.astype(np.float64) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    smooth = np.asarray(_resize(np.clip(unit, 0, 1), px))
    return Image.fromarray(np.rint(np.clip(smooth, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _resize(plane: np.ndarray, px: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return picture.resize(px, Image.Resampling.BICUBIC)


def _draw_contours(picture: Image.Image, plane: np.ndarray, colors: Mapping[int, Color]) -> None:
    """Draws each label's boundary just inside its own region, so that neighbours never hide each other."""
    for label in np.unique(plane):
        if label == 0:
            continue
        # Half-way between in and out, on the same interpolation as the image: the voxels' own boundary
        # without their corners, so that no voxel is smoothed away. Where the view cuts a label the contour
        # stays open.
        inside = np.asarray(_resize(plane == label, picture.size))
        stroke = Image.new("L", picture.size)
        pen = ImageDraw.Draw(stroke)
        width = round(2 * LINE_PX * OVERSAMPLING)
        for line in find_contours(inside, 0.5):
            pen.line([(float(x), float(y)) for y, x in line], 255, width, joint="curve")
        region = Image.fromarray(np.where(inside >= 0.5, np.asarray(stroke), 0).astype(np.uint8))
        picture.paste(tuple(colors[int(label)]), mask=region)


def _draw_heat(picture: Image.Image, plane: np.ndarray) -> None:
    """Tints what is unsure, from a faint red to a bright yellow at `FULL_HEAT` nats."""
    heat = np.clip(np.asarray(_resize(plane, picture.size)) / FULL_HEAT, 0, 1)
    tint = np.array(WARM) + heat[..., None] * (np.array(HOT) - np.array(WARM))
    opacity = Image.fromarray(np.rint(np.sqrt(heat) * 230).astype(np.uint8))
    picture.paste(Image.fromarray(np.rint(tint).astype(np.uint8)), mask=opacity)


def _draw_panel(
    sheet: Image.Image,
    view: str,
    place: tuple[int, int],
    cell: np.ndarray,
    scene: _Scene,
    scale: float,
    window: tuple[float, float],
    colors: Mapping[int, Color],
) -> None:
    across, down, cut, letters = _VIEWS[view]
    extent = (scene.stop - scene.start) * scene.size * scale
    width, height = max(1, round(extent[across])), max(1, round(extent[down]))
    fine = (width * OVERSAMPLING, height * OVERSAMPLING)
    picture = _grey(_slice(scene.image, scene, view), window, fine)
    if scene.entropy is None:
        _draw_contours(picture, _slice(scene.labels, scene, view), colors)
    else:
        _draw_heat(picture, _slice(scene.entropy, scene, view))

    panel = Image.new("RGB", (int(cell[across]), int(cell[down])))
    corner = ((panel.width - width) // 2, (panel.height - height) // 2)
    panel.paste(picture.reduce(OVERSAMPLING), corner)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=18)
    w, h = panel.size
    edges = {"lm": (8, h / 2), "rm": (w - 8, h / 2), "ma": (w / 2, 7), "md": (w / 2, h - 7)}
    for letter, (anchor, point) in zip(letters, edges.items(), strict=True):
        draw.text(point, letter, TEXT, font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    _draw_bar(draw, panel.size, scale)
    sheet.paste(panel, place)

    draw = ImageDraw.Draw(sheet)
    x, y = place
    draw.rectangle((x - 1, y - 1, x + panel.width, y + panel.height), outline=FRAME)
    draw.text((x, y - 7), view.capitalize(), TEXT, ImageFont.load_default(size=16), anchor="ls")
    where = float((scene.affine @ [*scene.center, 1.0])[cut])
    # The nudge keeps a tie at the last digit from falling either way with the stored orientation.
    mm = round(where + 1e-4, 1)
    letter = "RAS"[cut] if mm >= 0 else "LPI"[cut]
    text = f"{letter} {abs(mm):.1f} mm"
    draw.text((x + panel.width, y - 7), text, FAINT, ImageFont.load_default(size=14), anchor="rs")


def _draw_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], scale: float) -> None:
    length = round(BAR_MM * scale)
    right, base = size[0] - 14, size[1] - 14
    if length > size[0] // 2:
        return
    draw.rectangle((right - length - 1, base - 2, right + 1, base + 2), fill=(0, 0, 0))
    draw.rectangle((right - length, base - 1, right, base + 1), fill=TEXT)
    font = ImageFont.load_default(size=13)
    label = f"{BAR_MM:g} mm"
    point = (right + 1, base - 7)
    draw.text(point, label, TEXT, font, anchor="rd", stroke_width=2, stroke_fill=(0, 0, 0))


def _draw_legend(
    sheet: Image.Image,
    place: tuple[int, int],
    room: tuple[int, int],
    scene: _Scene,
    window: tuple[float, float],
    colors: Mapping[int, Color],
    names: Mapping[int, str],
) -> None:
    draw = ImageDraw.Draw(sheet)
    (x, y), (width, height) = place, (int(room[0]), int(room[1]))
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    bottom = y + height
    bottom -= 0 if scene.whole else _draw_locators(sheet, (x, bottom), width, scene, window)
    notes = _notes(scene)
    for i, note in enumerate(reversed(notes)):
        draw.text((x, bottom - 4 - 20 * i), fit_text(note, small, width), FAINT, small, anchor="ls")
    bottom -= 20 * len(notes) + 8

    if scene.entropy is not None:
        draw.text((x, y + 15), fit_text("entropy of the label, nats", font, width), TEXT, font, anchor="lm")
        bar = Image.new("RGB", (width, 18), (96, 96, 96))
        _draw_heat(bar, np.tile(np.linspace(0, FULL_HEAT, width), (18, 1)))
        sheet.paste(bar, (x, y + 34))
        draw.text((x, y + 58), "0: sure", FAINT, small, anchor="la")
        draw.text((x + width, y + 58), f"{FULL_HEAT:.2f}: two classes", FAINT, small, anchor="ra")
        draw.text((x + width, y + 76), "equally likely", FAINT, small, anchor="ra")
        return

    voxel_ml = abs(float(np.linalg.det(scene.affine[:3, :3]))) / 1000
    labels = [label for label in colors if label != 0]
    rows = max(1, (bottom - y) // 30)
    shown = labels if len(labels) <= rows else labels[: rows - 1]
    for i, label in enumerate(shown):
        middle = y + 30 * i + 15
        count = scene.counts.get(label, 0)
        swatch, ink = (x, middle - 8, x + 16, middle + 8), TEXT if count else FAINT
        if count:
            draw.rounded_rectangle(swatch, 4, fill=tuple(colors[label]))
        else:
            draw.rounded_rectangle(swatch, 4, outline=FAINT)
        volume = f"{count * voxel_ml:.2f} mL" if count else "none"
        draw.text((x + width, middle), volume, ink, font, anchor="rm")
        space = width - 28 - font.getlength(volume) - 14
        name = fit_text(names.get(label, f"label {label}"), font, space)
        draw.text((x + 28, middle), name, ink, font, anchor="lm")
    if len(shown) < len(labels):
        more = f"and {len(labels) - len(shown)} more"
        draw.text((x + 28, y + 30 * len(shown) + 15), more, FAINT, small, anchor="lm")


def _notes(scene: _Scene) -> list[str]:
    size = " x ".join(f"{mm + 1e-6:.2f}".rstrip("0").rstrip(".") for mm in scene.size)
    notes = [f"voxels {size} mm (R x A x S)"]
    direction = scene.affine[:3, :3] / scene.size
    tilt = float(np.degrees(np.arccos(np.clip(np.diag(direction), -1, 1))).max())
    if tilt > 5:
        notes.append(f"slices oblique by up to {tilt:.0f} degrees; letters are the nearest")
    return notes


def _draw_locators(
    sheet: Image.Image, corner: tuple[int, int], width: int, scene: _Scene, window: tuple[float, float]
) -> int:
    """Draws where the view lies in the three whole slices, upwards from `corner`; returns the height used."""
    shape = np.array(scene.image.shape)
    whole = shape * scene.size
    total = whole[0] * 2 + whole[1]
    scale = min((width - 16) / total, 150 / whole.max())
    x = corner[0]
    for view, (across, down, _, _) in _VIEWS.items():
        plane = [across, down]
        px = np.maximum(np.rint(whole[plane] * scale), 1).astype(int)
        bright = _grey(_slice(scene.image, scene, view, whole=True), window, (int(px[0]), int(px[1])))
        # Displayed axes run backwards, so the far end of the box comes first.
        near = np.rint((shape - scene.stop)[plane] / shape[plane] * px).astype(int)
        far = np.rint((shape - scene.start)[plane] / shape[plane] * px).astype(int)
        box = (int(near[0]), int(near[1]), int(far[0]), int(far[1]))
        picture = bright.point(lambda value: value * 2 // 5)
        picture.paste(bright.crop(box), box)
        ImageDraw.Draw(picture).rectangle((*box[:2], box[2] - 1, box[3] - 1), outline=TEXT)
        sheet.paste(picture, (x, corner[1] - picture.height))
        x += picture.width + 8
    return int(np.ceil(whole[1:].max() * scale)) + 14


def fit_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, or as much of its beginning as leaves room for three dots, in letters that the font has."""
    # Pillow's own font is plain ASCII; an umlaut without its dots reads better than an empty box.
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = " ".join(bare.encode("ascii", "replace").decode("ascii").split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
