"""The page of an audit says what was found, trusts no text from outside and promises nothing."""

import math

import numpy as np
from PIL import Image

from voxscore.evaluation import Finding, Subgroup, Verdict, audit_page

HOSTILE = '<script>alert("x")</script>&$title'


def page(**changes):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    group = Subgroup("volume", "low", -math.inf, 2.5, 10, 4, 6, 1.25, 0.5, 2.0, 3, math.nan, 0.75)
    arguments = {
        "verdict": Verdict.FAIL,
        "meaning": "not anonymity",
        "findings": [Finding("copies, a", Verdict.FAIL, "2 of 9"), Finding("size", Verdict.PASS, HOSTILE)],
        "groups": [group],
        "pairs": [(f"one and {HOSTILE}", Image.fromarray(pixels), HOSTILE)],
        "content": {"verdict": "FAIL", "name": HOSTILE},
    }
    return audit_page(**(arguments | changes))


def test_page_says_what_was_found():
    html = page()
    assert "<h2>FAIL</h2>\n<p>not anonymity</p>" in html
    assert '<tr><th scope="row">copies, a</th><td>FAIL</td><td>2 of 9</td></tr>' in html
    row = "<td>10</td><td>6</td><td>1.25 (0.50 to 2.00)</td><td>3</td><td></td><td>0.75</td>"
    assert f'<tr><th scope="row">volume, low</th>{row}</tr>' in html
    assert html.count("<img ") == 1
    assert "keep it as confidential as they are" in html
    assert page() == html


def test_page_trusts_no_text_and_fetches_nothing():
    html = page()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 5
    assert "http" not in html


def test_without_groups_there_is_no_table_of_them():
    assert "<h2>Groups</h2>" in page()
    assert "<h2>Groups</h2>" not in page(groups=[])
