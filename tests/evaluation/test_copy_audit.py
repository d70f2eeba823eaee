"""What the copy audit concludes from likenesses whose answer is known."""

import numpy as np
import pytest
import torch
from torch import Generator

from voxscore.evaluation import (
    Finding,
    Likeness,
    Verdict,
    audit_copies,
    control_finding,
    overall,
    planted_copy,
    power_finding,
    refused,
)

M, HELD_OUT, SYNTHETIC, PLANTED = 60, 42, 100, 30


def likeness(seed=0, copies=0, held_out=HELD_OUT, shift=0.0, planted=0.9):
    """Strangers' likenesses are uniform below 0.5; the first volumes are copies."""
    generator = Generator().manual_seed(seed)

    def strangers(n, m=M):
        return torch.rand(n, m, generator=generator) / 2

    synthetic, found, sources = strangers(SYNTHETIC), strangers(PLANTED), torch.arange(PLANTED)
    synthetic[torch.arange(copies), torch.arange(copies)] = 0.88
    found[sources, sources] = planted
    return Likeness(
        synthetic,
        strangers(SYNTHETIC, held_out),
        strangers(held_out) - shift,
        strangers(M).fill_diagonal_(-1),
        found,
        sources,
    )


def audited(**arguments):
    return audit_copies("test", likeness(**arguments), Generator().manual_seed(0))


def verdicts(found):
    return {finding.test.removesuffix(", test"): finding.verdict for finding in found.findings()}


def test_strangers_pass():
    found = audited()
    assert set(verdicts(found).values()) == {Verdict.PASS}
    assert found.planted_found.all()
    assert found.copy_level == pytest.approx((float(likeness().held_out.max()) + 0.9) / 2)
    assert control_finding([found]).verdict is Verdict.PASS
    # Flags are due to chance, and are not released all the same.
    assert torch.equal(found.refused, found.count.flagged)


def test_a_single_copy_fails():
    found = audited(copies=1)
    assert {test for test, verdict in verdicts(found).items() if verdict is Verdict.FAIL} == {"copies"}
    assert found.copies.nonzero().flatten().tolist() == [0]
    assert found.nearest[0] == 0
    assert bool(found.refused[0])


def test_many_copies_fail_every_test_and_no_control():
    wrong = {test for test, verdict in verdicts(audited(copies=40)).items() if verdict is not Verdict.PASS}
    assert wrong == {"copies", "flagged volumes", "distance ratio", "nearest share"}


def test_planted_copies_that_are_missed_prove_nothing_either_way():
    blind, seeing = audited(planted=0.3), audited()
    assert control_finding([blind]).verdict is Verdict.INCONCLUSIVE
    assert "0 of 30 planted copies" in control_finding([blind]).sentence
    assert control_finding([blind, seeing]).verdict is Verdict.PASS


def test_a_measure_that_cannot_see_copies_calls_nothing_one():
    """Planted copies no more alike than strangers: only what is far beyond every stranger would be a copy."""
    blind = audited(planted=0.3)
    held_out = likeness().held_out.max(1).values
    assert blind.copy_level == pytest.approx(float(2 * held_out.max() - held_out.median()))
    assert not blind.copies.any()


def test_held_out_volumes_of_another_kind_are_noticed():
    """A set that is less like the training set than fresh volumes sets the threshold too low."""
    found = audited(shift=0.1)
    assert verdicts(found)["negative control"] is Verdict.INCONCLUSIVE
    assert found.control.count == M


def test_few_held_out_volumes_leave_no_threshold_but_copies_are_still_found():
    found = audited(held_out=10, copies=2)
    assert found.count is None
    assert verdicts(found)["copies"] is Verdict.FAIL
    assert "flagged volumes" not in verdicts(found)
    assert found.refused.nonzero().flatten().tolist() == [0, 1]
    power = power_finding(SYNTHETIC, 10)
    assert power.verdict is Verdict.INCONCLUSIVE
    assert "59 are needed" in power.sentence
    assert power_finding(SYNTHETIC, 59).verdict is Verdict.PASS
    assert "make more" in power_finding(5, 1000).sentence


def test_what_any_measure_flags_is_refused():
    a, b = audited(seed=1), audited(seed=2)
    assert torch.equal(refused([a, b]), a.refused | b.refused)


def test_verdicts_add_up():
    def of(*found):
        return overall([Finding("", verdict, "") for verdict in found])

    assert of(Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL) is Verdict.FAIL
    assert of(Verdict.PASS, Verdict.INCONCLUSIVE) is Verdict.INCONCLUSIVE
    assert of(Verdict.PASS) is Verdict.PASS
    assert of() is Verdict.INCONCLUSIVE
    assert [verdict.exit_code for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)] == [0, 1, 3]


def test_planted_copies_are_shifted_and_noisy():
    """A ramp that is moved is a ramp of another height: what is left is the noise."""
    ramp = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 30, 30))
    planted = [planted_copy(ramp, np.random.default_rng(k)) for k in range(6)]
    rest = [(p - ramp)[5:-5] for p in planted]
    # 27 000 voxels: the standard error of the standard deviation is 0.4 %. The range is that of 0.5 to 99.5 %.
    assert [float(r.std()) for r in rest] == pytest.approx([0.05 * 39] * 6, rel=0.02)
    shifts = [float(r.mean()) for r in rest]
    assert max(map(abs, shifts)) < 2.05
    assert len({round(s, 1) for s in shifts}) > 3
    again = planted_copy(ramp, np.random.default_rng(0))
    np.testing.assert_array_equal(again, planted[0])
