"""Keyed pseudonyms: stable, apart by key and kind, valid where they go."""

import subprocess
import sys
import uuid

import pytest
from pydicom.uid import UID

from voxscore.deidentify.codes import Crosswalk, RandomCodes, RecordedCodes
from voxscore.deidentify.pseudonyms import MAX_SHIFT_DAYS, Pseudonyms, read_key
from voxscore.errors import UserError

KEY = bytes(range(32))
EXPRESSION = "(p.uid('1.2.3'), p.identifier('patient', '4711'), p.day_shift('4711'), p.key_id)"


def test_two_processes_agree():
    code = f"from voxscore.deidentify.pseudonyms import *; p = Pseudonyms(bytes(range(32)))\nprint({EXPRESSION})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    p = Pseudonyms(KEY)
    assert done.stdout.strip() == str((p.uid("1.2.3"), p.identifier("patient", "4711"), p.day_shift("4711"), p.key_id))


def test_uids_are_valid_and_apart():
    p, other = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
    uids = {p.uid(f"1.2.{i}") for i in range(200)}
    assert len(uids) == 200
    for uid in uids:
        assert UID(uid).is_valid
        assert uuid.UUID(int=int(uid.removeprefix("2.25."))).version == 8
    assert not uids & {other.uid(f"1.2.{i}") for i in range(200)}


def test_kinds_share_nothing():
    p = Pseudonyms(KEY)
    assert p.identifier("patient", "4711") != p.identifier("accession", "4711")
    assert p.identifier("a", "bc") != p.identifier("ab", "c")
    assert p.identifier("patient", "4711", 64).startswith(p.identifier("patient", "4711", 8))


def test_shifts_are_in_range_and_spread():
    shifts = [Pseudonyms(KEY).day_shift(str(i)) for i in range(10000)]
    assert -MAX_SHIFT_DAYS <= min(shifts) < -3600
    assert -50 < max(shifts) <= -1
    # 10 000 draws from 3650 leave 3650 exp(-10000/3650) = 236 out, with a standard deviation below 16.
    assert abs(MAX_SHIFT_DAYS - len(set(shifts)) - 236) < 5 * 16


def test_the_key_stays_secret():
    p = Pseudonyms(b"secret-secret-secret-secret-secret")
    assert "secret" not in repr(p)
    assert p.key_id not in b"secret-secret-secret-secret-secret".hex()


def test_keys_are_read_and_short_ones_refused(tmp_path):
    (tmp_path / "key").write_bytes(KEY.hex().encode() + b"\n")
    assert read_key(tmp_path / "key") == KEY.hex().encode()
    (tmp_path / "short").write_bytes(b"x" * 31 + b"\n")
    with pytest.raises(UserError, match="too short for a key"):
        read_key(tmp_path / "short")
    with pytest.raises(ValueError, match="32 or more bytes"):
        Pseudonyms(b"short")
    with pytest.raises(UserError, match="no such file"):
        read_key(tmp_path / "absent")


@pytest.mark.parametrize("lengths", [(12, 16), (16, 12)])
@pytest.mark.parametrize("kind", [RecordedCodes, RandomCodes])
def test_a_crosswalk_gives_one_code_whoever_asks_first(tmp_path, kind, lengths):
    codes = kind(Pseudonyms(bytes(32)), Crosswalk(tmp_path / "codes.csv"))
    found = {n: codes.identifier("patient", "4711", n) for n in lengths}
    assert [len(found[n]) for n in (12, 16)] == [12, 16]
    assert found[16].startswith(found[12])
