"""How a scanner turns a volume into a measurement: operators with adjoints. Imports PyTorch alone.

operators   the base, and the algebra of operators: A @ B, 2 * A, stacks
fourier     the centred, unitary Fourier transform
masks       which lines of k-space a Cartesian MR scan measures
mri         ... and the scan: sensitivities, Fourier transform, sampling
coils       sensitivities, phase and noise from k-space itself
tomography  line integrals of slices, parallel or from a fan, and filtered backprojection
resolution  blur, thick slices, masks
noise       Gaussian, Rician, of photons: added, estimated, corrected
"""

from __future__ import annotations

from voxscore.measurement.coils import (
    absorb_phase,
    coil_compression,
    espirit_maps,
    estimate_noise_std,
    low_resolution_maps,
)
from voxscore.measurement.fourier import centered_fft, centered_ifft
from voxscore.measurement.masks import (
    equispaced_mask,
    partial_fourier_mask,
    poisson_disc_mask,
    random_mask,
    variable_density_mask,
)
from voxscore.measurement.mri import CartesianMRI, root_sum_of_squares, simulate_maps, zero_filled
from voxscore.measurement.noise import (
    gaussian_noise,
    image_noise_std,
    poisson_transmission,
    rician_correction,
    rician_noise,
)
from voxscore.measurement.operators import (
    Compose,
    Identity,
    LinearOperator,
    Operator,
    Scaled,
    Stack,
    operator_norm,
)
from voxscore.measurement.resolution import Blur, Downsample, Inpaint, Profile, box, gaussian
from voxscore.measurement.tomography import FanBeam, ParallelBeam

__all__ = [
    "Blur",
    "CartesianMRI",
    "Compose",
    "Downsample",
    "FanBeam",
    "Identity",
    "Inpaint",
    "LinearOperator",
    "Operator",
    "ParallelBeam",
    "Profile",
    "Scaled",
    "Stack",
    "absorb_phase",
    "box",
    "centered_fft",
    "centered_ifft",
    "coil_compression",
    "equispaced_mask",
    "espirit_maps",
    "estimate_noise_std",
    "gaussian",
    "gaussian_noise",
    "image_noise_std",
    "low_resolution_maps",
    "operator_norm",
    "partial_fourier_mask",
    "poisson_disc_mask",
    "poisson_transmission",
    "random_mask",
    "rician_correction",
    "rician_noise",
    "root_sum_of_squares",
    "simulate_maps",
    "variable_density_mask",
    "zero_filled",
]
