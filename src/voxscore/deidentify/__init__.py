"""De-identification: headers, free text, pixels, faces and file names.

What leaves holds what is on a list of what may leave; everything else is dropped. What cannot be judged is refused, so
that it lands in nobody's data set by oversight.
"""

from voxscore.deidentify.bids import scrub_bids
from voxscore.deidentify.face_files import deface_file
from voxscore.deidentify.files import Deidentifier, Outcome, deidentify_file
from voxscore.deidentify.nifti import rebuilt_nifti
from voxscore.deidentify.pixels import PixelCleaner, PixelReader, PixelRule, read_rules
from voxscore.deidentify.profile import PROFILES, Profile, find_profile
from voxscore.deidentify.pseudonyms import Pseudonyms, read_key
from voxscore.deidentify.refusal import Refusal
from voxscore.deidentify.statement import conformance_statement, explain
from voxscore.deidentify.text import Recognizer, TextCleaner
from voxscore.deidentify.tree import Settings, Summary, deidentify_tree, quarantine_of
from voxscore.deidentify.verification import Finding, verify

__all__ = [
    "PROFILES",
    "Deidentifier",
    "Finding",
    "Outcome",
    "PixelCleaner",
    "PixelReader",
    "PixelRule",
    "Profile",
    "Pseudonyms",
    "Recognizer",
    "Refusal",
    "Settings",
    "Summary",
    "TextCleaner",
    "conformance_statement",
    "deface_file",
    "deidentify_file",
    "deidentify_tree",
    "explain",
    "find_profile",
    "quarantine_of",
    "read_key",
    "read_rules",
    "rebuilt_nifti",
    "scrub_bids",
    "verify",
]
