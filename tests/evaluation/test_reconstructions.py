"""The sheet of a reconstruction shows the same whatever the stored axes, and one scale means one scale."""

import numpy as np
import pytest
from PIL import ImageChops
from test_report import HOSTILE, Page

from voxscore.errors import UserError
from voxscore.evaluation import reconstruction_report, reconstruction_sheet
from voxscore.evaluation.reconstructions import HEAT

RNG = np.random.default_rng(0)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
VOLUME = RNG.random((20, 24, 10))


def turned(volume):
    """The volume with X and Y swapped and Z and the new X reversed, and its affine."""
    stored = volume.transpose(1, 0, 2)[::-1, :, ::-1]
    _, y, z = volume.shape
    affine = np.array([[0, 1, 0, 0], [-1, 0, 0, y - 1], [0, 0, -2, 2 * (z - 1)], [0, 0, 0, 1.0]])
    return stored, affine


def test_stored_axes_do_not_matter():
    part = VOLUME[:-1, :-1, :-1]  # of an odd axis the middle slice is the same when it is reversed
    given = reconstruction_sheet({"a": part}, {"b": part}, AFFINE)
    other = reconstruction_sheet({"a": turned(part)[0]}, {"b": turned(part)[0]}, turned(part)[1])
    assert ImageChops.difference(given, other).getbbox() is None


def test_grey_columns_share_a_window_and_heat_columns_a_scale():
    """A volume half as bright is half as bright; a spread half as large has the colour of the middle."""
    ramp = np.broadcast_to(np.linspace(0, 1, 24)[None, :, None], VOLUME.shape)
    flat = np.ones_like(VOLUME)
    sheet = np.asarray(reconstruction_sheet({"half": flat / 2, "whole": ramp}, {"low": flat / 2, "high": flat}, AFFINE))
    colors = {tuple(color) for color in sheet.reshape(-1, 3)}
    assert tuple(HEAT[-1].astype(int)) in colors
    assert tuple(HEAT[2].astype(int)) in colors
    values, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    greys = {int(v[0]): int(n) for v, n in zip(values, counts, strict=True) if v[0] == v[1] == v[2]}
    # Of the ramp the 0.5th percentile is black and the 99.5th white, so that 1/2 is the middle grey.
    common = max((g for g in greys if 20 < g < 250), key=greys.get)
    assert abs(common - 127.5) <= 1


def test_an_empty_heat_is_black():
    sheet = np.asarray(reconstruction_sheet({"a": VOLUME}, {"spread": 0 * VOLUME}, AFFINE))
    black = (sheet == 0).all(-1).mean()
    assert 0.1 < black < 0.6


def test_columns_fit_the_page():
    for count in (1, 3, 8):
        volumes = {f"a rather long heading {k}": VOLUME for k in range(count)}
        sheet = reconstruction_sheet(volumes, {"spread": VOLUME}, AFFINE, "t")
        assert sheet.width <= 1700
    narrow = reconstruction_sheet({"a": np.ones((3, 3, 90))}, {}, AFFINE)
    assert narrow.height < 1600


@pytest.mark.parametrize(
    ("images", "heats", "fault"),
    [({}, {}, "no image"), ({"a": VOLUME[0]}, {}, "a: image"), ({"a": VOLUME}, {"b": VOLUME[None]}, "b: image")],
)
def test_what_cannot_be_drawn(images, heats, fault):
    with pytest.raises(UserError, match=fault):
        reconstruction_sheet(images, heats, AFFINE)


def report(**changes):
    given = {
        "name": "case",
        "picture": reconstruction_sheet({"a": VOLUME}, {}, AFFINE),
        "facts": {"samples": "8"},
        "scores": {"zero-filled": {"PSNR, dB": 24.51}, "reconstruction": {"PSNR, dB": 31.25}},
        "notes": ["mind the gap"],
        "manifest": {"seed": 7},
        "title": "a run",
    }
    return reconstruction_report(**{**given, **changes})


def test_the_page_says_it_all():
    page = Page(report())
    text = "".join(page.text)
    for expected in ("a run", "case", "samples", "8", "PSNR, dB", "24.51", "31.25", "mind the gap", '"seed": 7'):
        assert expected in text
    assert "Research use; not for diagnosis." in text
    assert page.tags.count("img") == 1
    assert report() == report()


def test_without_a_reference_there_are_no_scores():
    html = report(scores={}, notes=[])
    assert "Against the reference" not in html
    assert 'class="note"' not in html


def test_foreign_text_is_text():
    hostile = {HOSTILE: HOSTILE}
    html = report(
        name=HOSTILE, facts=hostile, scores={HOSTILE: {HOSTILE: 1.0}}, notes=[HOSTILE], manifest=hostile, title=HOSTILE
    )
    page = Page(html)
    assert "script" not in page.tags
    assert "".join(page.text).count(HOSTILE) >= 7
