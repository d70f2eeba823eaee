"""The page is one well-formed file that fetches nothing and trusts no text from outside."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from voxscore import evaluation
from voxscore.evaluation import (
    audit_report,
    calibration,
    contact_sheets,
    contrastive,
    copies,
    copy_audit,
    distribution,
    diversity,
    fidelity,
    kernels,
    membership,
    overlap,
    pictures,
    plots,
    reconstructions,
    registration,
    report,
    subgroups,
    verdict,
)
from voxscore.evaluation.report import ReportItem, segmentation_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = '<script>alert("x")</script>&\'$title'


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def item(name="case 1", volumes=None, notes=()):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    return ReportItem(name, Image.fromarray(pixels), volumes or {"anterior": 1.234, "posterior": 0.5}, notes)


def test_each_volume_has_its_picture_table_and_notes():
    items = [item("first", notes=["at the edge"]), item("second", {"posterior": 2.0, "tail": 0.125})]
    page = Page(segmentation_report(items, {"seed": 7}, "A run"))
    text = "".join(page.text)
    for expected in ("A run", "first", "second", "at the edge", "anterior", "1.23", "0.12"):
        assert expected in text
    assert "Research use; not for diagnosis." in text
    assert page.tags.count("img") == 2
    # Links of the overview lead to sections that exist.
    targets = {f"#{value}" for value in page.values("section", "id")}
    assert set(page.values("a", "href")) == targets == {"#case-1", "#case-2"}


def test_a_missing_label_is_an_empty_cell_not_a_shifted_row():
    items = [item("first", {"a": 1.0}), item("second", {"b": 2.0})]
    html = segmentation_report(items, {}, "t")
    overview = html[html.index("All volumes") : html.index('id="case-1"')]
    assert "<td>1.00</td><td></td>" in overview
    assert "<td></td><td>2.00</td>" in overview


def test_pictures_arrive_pixel_for_pixel_without_their_metadata():
    given = item()
    loaded = io.BytesIO()
    note = PngInfo()
    note.add_text("PatientName", "Doe")
    given.picture.save(loaded, "PNG", pnginfo=note, icc_profile=b"scanner 7")
    reopened = ReportItem("case", Image.open(loaded), given.volumes)
    page = Page(segmentation_report([reopened], {}, "t"))
    (source,) = page.values("img", "src")
    head, data = source.split(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert np.array_equal(np.asarray(picture), np.asarray(given.picture))
    assert picture.info == {}
    assert (page.values("img", "width"), page.values("img", "height")) == (["9"], ["6"])


@pytest.mark.parametrize("place", ["name", "label", "note", "manifest", "title"])
def test_hostile_text_stays_text(place):
    text = {key: HOSTILE if key == place else key for key in ("name", "label", "note", "manifest", "title")}
    items = [item(text["name"], {text["label"]: 1.0}, [text["note"]])] * 2
    page = Page(segmentation_report(items, {"key": text["manifest"]}, text["title"]))
    assert "script" not in page.tags
    shown = "".join(page.text)
    assert (json.dumps(HOSTILE)[1:-1] if place == "manifest" else HOSTILE) in shown
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_nothing_is_fetched():
    html = segmentation_report([item()], {"source": "plain"}, "t")
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for _, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/png;base64,", "#"))
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_manifest_can_be_read_back():
    manifest = {"bundle": {"name": "hippocampus", "version": "0.1.0"}, "steps": [1, 2], "who": "Jürgen <j>"}
    page = Page(segmentation_report([item()], manifest, "t"))
    shown = next(text for text in page.text if text.lstrip().startswith("{"))
    assert json.loads(shown) == manifest
    assert page.tags.count("details") == 1


def with_intervals(name, level=0.95):
    interval = {"median": 1.217, "low": 1.1, "high": 1.3, "level": level}
    given = item(name, {"anterior": 1.234})
    return ReportItem(name, given.picture, given.volumes, (), {"anterior": interval}, given.picture.rotate(180))


def test_intervals_stand_beside_the_volumes_with_their_level():
    page = Page(segmentation_report([with_intervals("one")], {}, "t"))
    text = [t.strip() for t in page.text if t.strip()]
    start = text.index("Label")
    assert text[start : start + 8] == [
        *("Label", "Volume, mL", "Median of samples, mL", "95 % interval, mL"),
        *("anterior", "1.23", "1.22", "1.10 to 1.30"),
    ]
    html = segmentation_report([with_intervals("one", 7 / 9), item("two")], {}, "t")
    assert "77.8 % interval, mL" in html
    overview = html[html.index("All volumes") : html.index('id="case-1"')]
    assert "<td>1.23 (1.10 to 1.30; 77.8 %)</td>" in overview
    assert html.count("interval, mL") == 1


def test_uncertainty_stands_beside_its_picture():
    given = with_intervals("one & only")
    page = Page(segmentation_report([given], {}, "t"))
    shown = [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in page.values("img", "src")]
    assert [np.asarray(p).tolist() for p in shown] == [
        np.asarray(p).tolist() for p in (given.picture, given.uncertainty)
    ]
    assert ["entropy" in alt for alt in page.values("img", "alt")] == [False, True]
    assert all("one & only" in alt for alt in page.values("img", "alt"))


def test_same_arguments_same_page():
    assert segmentation_report([item()], {"a": 1}, "t") == segmentation_report([item()], {"a": 1}, "t")


def test_package_offers_every_public_name_once():
    modules = (
        *(
            audit_report,
            calibration,
            contact_sheets,
            contrastive,
            copies,
            copy_audit,
            distribution,
            diversity,
            fidelity,
        ),
        *(kernels, membership, overlap, pictures, plots, reconstructions, registration, report, subgroups, verdict),
    )
    assert sorted(name for module in modules for name in module.__all__) == sorted(evaluation.__all__)
    for module in modules:
        for name in module.__all__:
            assert getattr(evaluation, name) is getattr(module, name)
    with pytest.raises(AttributeError):
        _ = evaluation.nothing
