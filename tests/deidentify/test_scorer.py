"""The score of a planted corpus: ours is high, and what only looks de-identified is low."""

import copy

import pytest

from voxscore.deidentify.trial.scorer import planted_corpus, score


@pytest.fixture(scope="module")
def corpus():
    return planted_corpus(6)


@pytest.fixture
def ours(corpus, cleaner):
    return [cleaner("research").clean(case.dataset)[0] for case in corpus]


def test_ours_meets_all_demands(corpus, ours):
    share, failed = score(corpus, ours)
    assert share >= 0.9993, failed


def test_what_was_not_touched_scores_low(corpus):
    assert score(corpus, [case.dataset for case in corpus])[0] < 0.1


def test_what_was_deleted_scores_nothing(corpus, ours):
    assert score(corpus, [None] * len(corpus))[0] == 0
    missing = [None, *ours[1:]]
    assert score(corpus, missing)[0] < 1 - 1 / len(corpus) + 1e-9


def test_what_was_emptied_scores_low(corpus, ours):
    emptied = copy.deepcopy(ours)
    for dataset in emptied:
        for element in dataset:
            if element.VR not in ("SQ", "US", "OW"):
                element.value = None
    assert score(corpus, emptied)[0] < 0.1


def test_swapped_uids_score_low(corpus, ours):
    swapped = copy.deepcopy(ours)
    for one, other in zip(swapped[::4], swapped[1::4], strict=False):
        one.SOPInstanceUID, other.SOPInstanceUID = other.SOPInstanceUID, one.SOPInstanceUID
        one.StudyInstanceUID = swapped[-1].StudyInstanceUID
    assert score(corpus, swapped)[0] < 0.6


def test_dates_that_lose_their_intervals_fail(corpus, ours):
    changed = copy.deepcopy(ours)
    changed[0].StudyDate = "20010101"
    assert score(corpus, changed)[1]["date"] > 0


def test_patients_that_become_one_fail(corpus, ours):
    changed = copy.deepcopy(ours)
    for dataset in changed:
        dataset.PatientID = "ANONYMOUS"
    assert score(corpus, changed)[1] == {"patient": len(corpus)}
