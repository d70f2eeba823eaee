"""Where a number is drawn: columns as high as accuracies, histograms where their values are."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from voxscore.errors import UserError
from voxscore.evaluation.calibration import ReliabilityTable
from voxscore.evaluation.pictures import BACKGROUND
from voxscore.evaluation.plots import REAL, SYNTHETIC, Population, distribution_sheet, reliability_diagram


def near(picture, color, tolerance=12):
    """Where a picture shows a colour, (rows, columns)."""
    return (np.abs(np.asarray(picture, int) - color) <= tolerance).all(axis=-1)


def table(confidence, accuracy, count):
    return ReliabilityTable(*(np.asarray(column, float) for column in (confidence, accuracy, count)))


def strokes(picture, color):
    """Rows of the widest lines of a colour, first of each: what is not the key."""
    rows = np.flatnonzero(near(picture, color).sum(axis=1) > 60)
    return rows[np.diff(rows, prepend=-9) > 1]


def test_lines_stand_at_accuracy_and_confidence():
    """One bin of the upper plot, 520 pixels for 0 to 1."""
    nan = math.nan
    drawn = [
        reliability_diagram(table([nan, nan, 0.7, nan], [nan, nan, accuracy, nan], [0, 0, 9, 0]))
        for accuracy in (0.7, 0.4, 0.9)
    ]
    base, lower, upper = (strokes(picture, REAL)[0] for picture in drawn)
    assert lower - base == pytest.approx(0.3 * 520, abs=1)
    assert base - upper == pytest.approx(0.2 * 520, abs=1)
    assert strokes(drawn[1], SYNTHETIC)[0] == base
    step = near(drawn[1], (np.array(SYNTHETIC) + BACKGROUND) // 2, 2)
    assert np.flatnonzero(step.sum(axis=1) > 60).size == pytest.approx(0.3 * 520, abs=5)
    columns = np.flatnonzero(near(drawn[1], REAL)[lower])
    assert np.ptp(columns) == pytest.approx(520 / 4, abs=4)


def test_the_error_and_the_voxels_are_written_and_empty_tables_refused():
    a, b = table([0.2, 0.8], [0.2, 0.8], [5, 5]), table([0.2, 0.8], [0.2, 0.8], [5, 6])
    assert not np.array_equal(np.asarray(reliability_diagram(a)), np.asarray(reliability_diagram(b)))
    assert reliability_diagram(a, "Ünser Titel " * 20).mode == "RGB"
    assert reliability_diagram(a).width < 700
    with pytest.raises(UserError, match="no voxels"):
        reliability_diagram(table([math.nan], [math.nan], [0]))


def test_distributions_that_are_apart_are_drawn_apart():
    rng = np.random.default_rng(0)
    real = Population(rng.normal(-3, 0.5, 500), {})
    synthetic = Population(rng.normal(3, 0.5, (10, 50)), {})
    picture = distribution_sheet(real, synthetic)
    plot = picture.crop((0, 100, picture.width, picture.height))
    left, right = (np.nonzero(near(plot, color))[1] for color in (REAL, SYNTHETIC))
    assert np.median(left) < 0.45 * picture.width < 0.55 * picture.width < np.median(right)


def test_one_outlier_does_not_squeeze_the_intensities_and_gaps_are_passed_over():
    values = np.random.default_rng(0).normal(size=5000)
    wild = np.concatenate([values, [1e6, math.nan, math.inf]])
    a = distribution_sheet(Population(values, {}), Population(values, {}))
    b = distribution_sheet(Population(wild, {}), Population(wild, {}))
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < 12


@pytest.mark.parametrize("structures", [0, 1, 2, 5])
def test_each_structure_has_its_plot(structures):
    volumes = {f"a rather long name of structure {i}, as they are": [1.0 + i, 2.0, 4.0] for i in range(structures)}
    picture = distribution_sheet(Population(np.arange(9.0), volumes), Population(np.arange(9.0), volumes), "A title")
    rows = 1 + -(-structures // 2)
    assert picture.width < 1100
    assert 200 * rows < picture.height < 290 * rows + 100


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0], [-1e-9, 1e-9], [1e9, 2e9, 5e9], [0.0] * 99 + [1.0]])
def test_any_values_can_be_drawn(values):
    population = Population(np.array(values), {"one": values})
    assert near(distribution_sheet(population, population), SYNTHETIC).any()


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        (Population(np.ones(3), {"a": [1.0]}), Population(np.ones(3), {"b": [1.0]})),
        (Population(np.ones(3), {"a": [1.0]}), Population(np.ones(3), {})),
        (Population(np.ones(3), {"a": [1.0]}), Population(np.ones(3), {"a": []})),
        (Population(np.full(3, math.nan), {}), Population(np.ones(3), {})),
    ],
)
def test_nonsense_is_refused(real, synthetic):
    with pytest.raises(UserError):
        distribution_sheet(real, synthetic)


def test_plots_need_neither_monai_nor_torch():
    code = (
        "import sys; from voxscore.evaluation import Population, distribution_sheet, reliability_diagram;"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'monai', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
