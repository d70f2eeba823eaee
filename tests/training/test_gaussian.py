"""The Gaussian of a run is fitted once, and read where the run is resumed."""

import torch
from monai.data import Dataset

from voxscore.diffusion import Gaussian
from voxscore.training import fitted_gaussian


def test_fitted_once_then_read(tmp_path):
    volumes = torch.randn(6, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    fitted = fitted_gaussian(Dataset([{"image": v} for v in volumes]), tmp_path / "run" / "gaussian.pt")
    expected = Gaussian.fit(volumes, "fourier")
    torch.testing.assert_close(fitted.mean, expected.mean)
    torch.testing.assert_close(fitted.covariance.spectrum, expected.covariance.spectrum.float())
    again = fitted_gaussian(Dataset([]), tmp_path / "run" / "gaussian.pt")
    assert torch.equal(again.mean, fitted.mean)
    assert torch.equal(again.covariance.spectrum, fitted.covariance.spectrum)
