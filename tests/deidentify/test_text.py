"""Free text: what identifies goes, technique stays."""

import pytest

from voxscore.deidentify.text import TextCleaner
from voxscore.deidentify.trial.descriptors import descriptions, score_text


def test_the_gold_set_is_cleaned_better_than_the_best_published_recall():
    gold = descriptions(600)
    assert len(gold) >= 500
    score = score_text(TextCleaner(), gold)
    assert score.recall >= 0.974, score.leaked[:10]
    assert score.kept >= 0.95, score.lost[:10]


def test_the_score_tells_doing_nothing_and_deleting_everything():
    class Nothing(TextCleaner):
        def clean(self, text, denied=frozenset()):
            return text

    class Everything(TextCleaner):
        def clean(self, text, denied=frozenset()):
            return ""

    gold = descriptions(100)
    assert score_text(Nothing(), gold).recall < 0.1
    assert score_text(Everything(), gold).kept == 0


def test_the_example_of_the_standard():
    assert TextCleaner().clean("CT chest abdomen pelvis - 55F Dr. Smith") == "CT chest abdomen pelvis"


@pytest.mark.parametrize("text", ["t1_mprage_sag_p2_iso", "Brain w/o contrast", "Abdomen^Routine", "3-plane loc", ""])
def test_technique_stays_letter_by_letter(text):
    assert TextCleaner().clean(text) == text


def test_the_names_of_the_header_go_even_if_they_are_anatomy():
    assert TextCleaner().clean("CT hand of Foot", {"foot"}) == "CT hand of"


def test_a_model_of_the_users_own_is_asked_too():
    def model(text):
        at = text.find("liver")
        return [(at, at + 5)] if at >= 0 else []

    assert TextCleaner(recognizers=[model]).clean("CT liver contrast") == "CT contrast"


def test_cleaning_twice_is_cleaning_once():
    for description in descriptions(200):
        once = TextCleaner().clean(description.text)
        assert TextCleaner().clean(once) == once
