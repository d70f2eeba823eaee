"""The network's part in the audit: membership from a bundle, and an over-trained denoiser that fails."""

import pytest
import torch
from torch import Generator

from voxscore.audit import Case, bundle_membership, find_cases
from voxscore.bundles import find_bundle
from voxscore.diffusion import EDM, EmpiricalDenoiser, Gaussian, GaussianDenoiser, VolumeNoise, denoising_loss
from voxscore.errors import UserError
from voxscore.evaluation import Verdict, membership_inference


def correlated(n, seed):
    """Volumes of one Gaussian distribution, (n, 1, 6, 6, 6)."""
    noise = torch.randn(n, 1, 3, 3, 3, generator=Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(6, 6, 6), mode="trilinear")


def losses(denoiser, volumes, levels):
    noise = VolumeNoise(Generator().manual_seed(9), len(volumes))(volumes)
    columns = [
        denoising_loss(denoiser, volumes, torch.tensor(level), noise, lambda _, t: torch.ones_like(t))
        for level in levels
    ]
    return torch.stack(columns, dim=1)


def test_an_over_trained_denoiser_fails_and_one_that_knows_the_distribution_does_not():
    """Without end, training on a finite set leads to the denoiser of that set, which is known in closed form."""
    training, held_out, others = correlated(80, 0), correlated(40, 1), correlated(400, 2)
    levels = [0.2, 1.0, 5.0]
    for denoiser, verdict in {
        EmpiricalDenoiser(EDM(), training): Verdict.FAIL,
        GaussianDenoiser(EDM(), Gaussian.fit(others, "fourier")): Verdict.PASS,
    }.items():
        tables = [losses(denoiser, volumes, levels) for volumes in (training, held_out)]
        found = membership_inference(*tables, levels, 1.0, Generator().manual_seed(0))
        assert found.finding().verdict is verdict
    # The over-trained one has nothing left to lose on its own volumes where noise hides none of them.
    assert losses(EmpiricalDenoiser(EDM(), training), training, [0.2]).max() < 1e-6


@pytest.fixture
def small_bundle(tiny_synthesis):
    return find_bundle(tiny_synthesis)


def test_a_bundle_is_asked_about_each_case_with_noise_of_its_own(small_bundle, dataset):
    cases = find_cases(dataset)
    assert [case.name for case in cases] == [f"case_{k:02d}" for k in range(10)]
    cpu = torch.device("cpu")
    found = bundle_membership(small_bundle, cases[:3], cases[3:5], cpu)
    assert (found.training, found.held_out) == (3, 2)
    # A case has the same loss wherever it stands: a set cannot be told from itself.
    same = bundle_membership(small_bundle, cases[:3], cases[2::-1], cpu)
    assert same.auc == 0.5
    assert [gap.relative for gap in same.gaps] == pytest.approx([0] * 4, abs=1e-12)
    assert [gap.training for gap in same.gaps] == pytest.approx([gap.training for gap in found.gaps])
    # An untrained network gives the mean at best where noise hides all; there the loss is that of the volume itself.
    assert found.gaps[-1].training > found.gaps[0].training
    other = bundle_membership(small_bundle, cases[:3], cases[3:5], cpu, seed=1)
    assert other.gaps[1].training != found.gaps[1].training


def test_what_cannot_be_asked(small_bundle, dataset):
    unlabelled = Case("a", dataset / "images/case_00.nii.gz", None)
    with pytest.raises(UserError, match="has no label map"):
        bundle_membership(small_bundle, [unlabelled], find_cases(dataset), torch.device("cpu"))
    with pytest.raises(UserError, match="does not synthesize"):
        bundle_membership(
            find_bundle("hippocampus_segmentation"), *(find_cases(dataset)[k:][:2] for k in (0, 2)), torch.device("cpu")
        )
