"""Fixtures of the tests of de-identification."""

import pytest
from deidentify_support import KEY

from voxscore.deidentify.headers import HeaderCleaner
from voxscore.deidentify.profile import find_profile
from voxscore.deidentify.pseudonyms import Pseudonyms
from voxscore.deidentify.text import TextCleaner


@pytest.fixture
def cleaner():
    """cleaner(profile, key) -> HeaderCleaner."""

    def make(profile="research", key=KEY):
        return HeaderCleaner(find_profile(profile), Pseudonyms(key), TextCleaner())

    return make
