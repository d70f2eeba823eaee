r"""What the fully sampled middle of k-space tells of a scan: coil sensitivities, phase; and what its edge tells: noise.

The middle, the calibration region, is found from the mask: the largest box around index n // 2 in which everything is
measured, at most `size` lines along each axis.

Low-resolution maps divide each coil's image of that middle by the root sum of squares of all. They are wrong where the
image changes within their wide voxels, such as at an edge.

ESPIRiT asks instead what all patches of the middle have in common. Stack the k^d samples of a patch of all coils into
a vector: these vectors span few directions U. Projecting every patch of k-space to them and averaging where they
overlap is a convolution of k-space, and so at each voxel x a coils-by-coils matrix on the coils' images,

    G(x) = k^-d sum_{p, q} W[p, q] exp(-2 pi i (q - p) x / n),        W = U U^H,

with eigenvalues from 0 to 1. True sensitivities are left as they are: they are eigenvectors of value 1. G has
(2 k - 1)^d coefficients, from which it is made one slice of the first axis after the other, so memory holds
coils^2 numbers for the voxels of one slice. Its first eigenvector is found by power iteration from the low-resolution
maps, which are close to it.

Both know maps as k-space does, periodic: where an object is cut off by the edge of the field of view, as a head is by
that of a slab, they go over into those of the opposite edge within about a voxel of the middle's resolution. There the
maps are continued in a straight line from further in, if the object is there as well. Without that a slab's last
slices, whose maps are off by half of their length, spoil all slices they alias with.

An eigenvector has no phase of its own. Here it gets the one at which the sum of the coils, weighted as their first
principal component in the middle of k-space weights them, is real; `absorb_phase` then adds the phase of the image.

That phase is read off the complex image m which the scan and the maps give by conjugate gradient, all of k-space used.
Of m blurred by a Gaussian G it is not: where |m| changes, G weighs one side more than the other, and a phase of slope g
comes out wrong by g times the distance of their centroid. So the phase found is taken away from m, and what is left,
of a smaller slope, is blurred and added in turn:

    phi <- phi + arg(G * (m exp(-i phi))),        which rests where nothing smooth is left.

The blur is a low pass, so neither aliasing nor the missing half of a partial Fourier scan takes part; and unlike one
made by cutting k-space it does not reach around the edges of the field of view.

In 3-D patches are 4 wide rather than 6, for the number of directions grows with the patch: 12 coils make vectors of
768 then, else of 2592. More than about 12 coils are best compressed first.

How far off they are: of a smooth-edged ellipsoid with structure, six coils, a middle of 14 lines and noise of 1 % of
the image, ESPIRiT is right to 1 % (root mean square of the length of the error over the object) and low-resolution maps
to 4 %, both in 2-D and in 3-D; at an edge that cuts through an object both are to 5 %.
tests/measurement/test_coils.py holds them to it.

Sources: Uecker et al., ESPIRiT, MRM 2014; Roemer et al., The NMR phased array, MRM 1990; Buehrer et al., Array
compression for MRI with large coil arrays, MRM 2007; Donoho, De-noising by soft-thresholding, 1995 (the median as a
measure of noise).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from voxscore.errors import UserError
from voxscore.measurement.fourier import centered_ifft
from voxscore.measurement.mri import CartesianMRI, root_sum_of_squares
from voxscore.measurement.resolution import Blur

__all__ = ["absorb_phase", "coil_compression", "espirit_maps", "estimate_noise_std", "low_resolution_maps"]

POWER_ITERATIONS = 15
IMAGE_ITERATIONS = 5
PHASE_PASSES = 4
EDGE = 1.5  # width of what an edge spoils, in voxels of the middle's resolution
OBJECT = 0.1  # share of the brightest voxel above which there is one


def espirit_maps(
    kspace: Tensor,
    mask: Tensor,
    kernel: int | None = None,
    size: int = 24,
    threshold: float = 0.02,
    crop: float = 0.8,
) -> Tensor:
    """Coil sensitivities by ESPIRiT; their root sum of squares is 1 where there is an object, 0 elsewhere.

    Args:
        kspace: (coils, *spatial) of one scan, complex, 2-D or 3-D.
        mask: where it is measured, boolean, broadcasts to *spatial.
        kernel: width of a patch, 6 in 2-D and 4 in 3-D unless given.
        size: largest width of the calibration region.
        threshold: directions with a singular value below this share of the largest are noise.
        crop: voxels with an eigenvalue below this see no object: their maps are 0.

    Returns:
        (coils, *spatial), complex, with the phase that the module's text gives them.

    Raises:
        UserError: the mask does not fit, or the middle of k-space is narrower than a patch.
    """
    k = kernel or (6 if kspace.ndim == 3 else 4)
    calibration = _calibration(kspace, mask, size)
    if min(calibration.shape[1:]) < k:
        fault = f"measures a middle of {tuple(calibration.shape[1:])} completely"
        raise UserError("mask", fault, f"a patch of {k} needs a wider one; use low_resolution_maps instead")
    h = _kernel(calibration, k, threshold)
    start = _image(calibration, kspace.shape[1:])
    maps, values = torch.empty_like(start), start.real.new_empty(start.shape[1:])
    first, *others = (_phases(n, k).to(h) for n in start.shape[1:])
    for x in range(len(first)):
        g = torch.tensordot(h, first[x], dims=([2], [0]))
        for phases in others:
            g = torch.tensordot(g, phases, dims=([2], [1]))
        g = g.flatten(2).permute(2, 0, 1).contiguous()
        v = _unit(start[:, x].flatten(1).T[..., None])
        for _ in range(POWER_ITERATIONS):
            v = _unit(g @ v)
        maps[:, x] = v[..., 0].T.reshape(maps[:, x].shape)
        values[x] = (v.conj() * (g @ v)).sum(1).real.reshape(values[x].shape)
    return _continued(_referenced(maps, calibration) * (values > crop), start, calibration.shape[1:])


def low_resolution_maps(kspace: Tensor, mask: Tensor, size: int = 24) -> Tensor:
    """Coil sensitivities from low-resolution images; their root sum of squares is 1 everywhere.

    Args:
        kspace: (coils, *spatial) of one scan, complex, 2-D or 3-D.
        mask: where it is measured, boolean, broadcasts to *spatial.
        size: largest width of the calibration region.

    Returns:
        (coils, *spatial), complex, with the phase of `espirit_maps`.

    Raises:
        UserError: the mask does not fit, or the middle of k-space is not measured.
    """
    calibration = _calibration(kspace, mask, size)
    images = _image(calibration, kspace.shape[1:])
    maps = images / root_sum_of_squares(images, dim=0).clamp(min=torch.finfo(kspace.dtype).tiny)
    return _continued(_referenced(maps, calibration), images, calibration.shape[1:])


def absorb_phase(maps: Tensor, kspace: Tensor, mask: Tensor, fwhm: float = 6.0) -> Tensor:
    """Maps that hold the phase of the image, too, so that the image they leave to be found is real.

    The phase is taken to be smooth over `fwhm` voxels, as it is but for flow, fat and the neighbourhood of air.

    Args:
        maps: (coils, *spatial), complex.
        kspace: (coils, *spatial) of one scan, complex.
        mask: where it is measured, boolean, broadcasts to *spatial.
        fwhm: full width at half maximum of the Gaussian over which the phase is averaged, voxels.

    Returns:
        (coils, *spatial), the maps times exp(i phase).

    Raises:
        UserError: the mask or the maps do not fit.
    """
    _check_mask(mask, kspace.shape[1:])
    m = _complex_image(CartesianMRI(mask.to(kspace.device), maps, channels=2), kspace)
    blur = Blur(m.shape, fwhm)
    for _ in range(PHASE_PASSES):
        parts = blur(torch.stack([m.real, m.imag])[None])[0]
        turn = torch.polar(torch.ones_like(parts[0]), torch.atan2(parts[1], parts[0]))
        m, maps = m * turn.conj(), maps * turn
    return maps


def estimate_noise_std(kspace: Tensor, mask: Tensor) -> float:
    """Standard deviation of the noise in the real and in the imaginary part of k-space.

    From the fifth of the measured positions that lie farthest out, by the median of their absolute values / 0.6745,
    which a few strong samples cannot move. Samples that are exactly 0, as some scanners add, are left out.

    Signal that remains out there adds to the noise in square: the estimate is then too high, by 2 % where the signal is
    a fifth of the noise, by 40 % where it is as large as the noise, as in a coarse volume with sharp edges. All coils
    are taken to have the same noise: whiten them first if they do not.

    Args:
        kspace: (..., *spatial), complex.
        mask: where it is measured, boolean, broadcasts to *spatial.

    Raises:
        UserError: the mask does not fit, or there is nothing out there.
    """
    spatial = kspace.shape[-mask.ndim :]
    _check_mask(mask, spatial)
    axes = [(torch.arange(n, device=kspace.device) - n // 2) / (n / 2) for n in spatial]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    measured = mask.to(kspace.device).expand(spatial)
    distances = radius[measured]
    if not distances.numel():
        raise UserError("mask", "measures nothing", "give the mask of the scan")
    outer = measured & (radius >= distances.kthvalue(max(1, math.ceil(0.8 * distances.numel()))).values)
    samples = torch.view_as_real(kspace[..., outer])
    samples = samples[samples != 0]
    if not samples.numel():
        raise UserError("k-space", "is 0 at its edge", "it was filled with zeros: give the noise of the scan")
    return float(samples.abs().median()) / 0.6744897501960817


def coil_compression(kspace: Tensor, coils: int) -> tuple[Tensor, Tensor]:
    """Fewer virtual coils that keep the most of the energy.

    Args:
        kspace: (coils, *spatial), complex.
        coils: how many to keep.

    Returns:
        K-space of the virtual coils (`coils`, *spatial), strongest first, and the matrix (`coils`, all coils) that
        makes them; its rows are orthonormal, so white noise stays white, and it compresses maps as well.

    Raises:
        UserError: more coils than there are, or none.
    """
    if not 1 <= coils <= len(kspace):
        raise UserError("coils", f"are {coils} of {len(kspace)}", "keep 1 or more, not more than there are")
    matrix = _principal(kspace)[:, -coils:].flip(1).mH
    return torch.tensordot(matrix, kspace, dims=1), matrix


def _check_mask(mask: Tensor, spatial: Sequence[int]) -> None:
    if (
        mask.dtype != torch.bool
        or len(mask.shape) != len(spatial)
        or any(m not in (1, n) for m, n in zip(mask.shape, spatial, strict=True))
    ):
        fault = f"is {mask.dtype} of shape {tuple(mask.shape)}"
        raise UserError("mask", fault, f"give a boolean tensor that broadcasts to {tuple(spatial)}")


def _middle(size: int, width: int) -> slice:
    return slice(size // 2 - width // 2, size // 2 - width // 2 + width)


def _calibration(kspace: Tensor, mask: Tensor, size: int) -> Tensor:
    """The fully sampled middle (coils, *box) of k-space, at most `size` wide."""
    spatial = kspace.shape[1:]
    _check_mask(mask, spatial)

    def measured(box: Sequence[int]) -> bool:
        middle = [_middle(n, width) if n > 1 else slice(None) for n, width in zip(mask.shape, box, strict=True)]
        return bool(mask[tuple(middle)].all())

    box = [1] * len(spatial)
    if not measured(box):
        raise UserError("mask", "leaves out the middle of k-space", "the maps are read off there: measure it")
    growing = set(range(len(spatial)))
    while growing:
        for axis in sorted(growing):
            wider = [width + (axis == i) for i, width in enumerate(box)]
            if wider[axis] <= min(size, spatial[axis]) and measured(wider):
                box = wider
            else:
                growing.discard(axis)
    return kspace[(slice(None), *(_middle(n, width) for n, width in zip(spatial, box, strict=True)))]


def _image(calibration: Tensor, spatial: Sequence[int]) -> Tensor:
    """Coil images (coils, *spatial) of the middle of k-space under a Hann window."""
    box = calibration.shape[1:]
    windowed = calibration
    for axis, width in enumerate(box):
        j = torch.arange(width, device=calibration.device) - width // 2
        window = torch.cos(math.pi * j / (width + 1)).square().to(calibration.real.dtype)
        windowed = windowed * window.reshape(-1, *[1] * (len(box) - 1 - axis))
    kspace = calibration.new_zeros(len(calibration), *spatial)
    kspace[(slice(None), *(_middle(n, width) for n, width in zip(spatial, box, strict=True)))] = windowed
    return centered_ifft(kspace, len(box))


def _complex_image(operator: CartesianMRI, kspace: Tensor) -> Tensor:
    """The image (*spatial), complex, by a few steps of conjugate gradient on |A m - y|^2."""
    b = operator.adjoint(kspace[None])
    x, r, p = torch.zeros_like(b), b, b
    squared = first = r.square().sum()
    for _ in range(IMAGE_ITERATIONS):
        # One coil is done after the first step, and from rounding errors there is nothing to learn.
        if squared <= 1e-10 * first:
            break
        q = operator.normal(p)
        step = squared / (p * q).sum()
        x, r = x + step * p, r - step * q
        before, squared = squared, r.square().sum()
        p = r + squared / before * p
    return torch.complex(x[0, 0], x[0, 1])


def _kernel(calibration: Tensor, k: int, threshold: float) -> Tensor:
    """The coefficients of G, (coils, coils, 2 k - 1, ...)."""
    coils, dims = len(calibration), calibration.ndim - 1
    patches = calibration
    for axis in range(1, dims + 1):
        patches = patches.unfold(axis, k, 1)
    a = patches.movedim(0, dims).reshape(-1, coils * k**dims)
    values, vectors = torch.linalg.eigh(a.T @ a.conj())
    u = vectors[:, values > threshold**2 * values[-1]]
    w = (u @ u.mH).reshape(coils, k**dims, coils, *[k] * dims)
    h = w.new_zeros(coils, coils, *[2 * k - 1] * dims)
    for i, p in enumerate(itertools.product(range(k), repeat=dims)):
        h[(slice(None), slice(None), *(slice(k - 1 - at, 2 * k - 1 - at) for at in p))] += w[:, i]
    return h / k**dims


def _phases(size: int, k: int) -> Tensor:
    """exp(-2 pi i delta x / n) for the voxels x and the coefficients delta of G, (n, 2 k - 1)."""
    x = torch.arange(size, dtype=torch.float64) - size // 2
    delta = torch.arange(1 - k, k, dtype=torch.float64)
    return torch.polar(torch.ones(()).double(), -2 * math.pi / size * x[:, None] * delta)


def _unit(v: Tensor) -> Tensor:
    """The vectors (..., coils, 1) at length 1; those of length 0 stay."""
    return v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _principal(kspace: Tensor) -> Tensor:
    """Principal components of the coils, weakest first, in the columns of a unitary matrix."""
    samples = kspace.flatten(1)
    return torch.linalg.eigh(samples @ samples.mH).eigenvectors


def _referenced(maps: Tensor, calibration: Tensor) -> Tensor:
    """The maps with the phase at which their share in the first principal component is real."""
    share = torch.tensordot(_principal(calibration)[:, -1].conj(), maps, dims=1)
    return maps * torch.polar(torch.ones_like(share.real), -share.angle())


def _continued(maps: Tensor, images: Tensor, box: Sequence[int]) -> Tensor:
    """The maps, continued at the edges through which the object of the coil images, a middle `box` wide, runs."""
    signal = root_sum_of_squares(images, dim=0)
    object_ = signal > OBJECT * signal.max()
    for axis, (n, width) in enumerate(zip(maps.shape[1:], box, strict=True), start=1):
        outer = math.ceil(EDGE * n / width)
        if 4 * outer > n:
            continue
        steps = torch.arange(outer, 0, -1, device=maps.device) / outer
        steps = steps.reshape([-1 if i == axis else 1 for i in range(maps.ndim)])
        for _ in range(2):
            near, far = maps.narrow(axis, outer, 1), maps.narrow(axis, 2 * outer, 1)
            line = near + steps * (near - far)
            length = root_sum_of_squares(line, dim=0).clamp(min=torch.finfo(maps.dtype).tiny)
            line = line / length * root_sum_of_squares(near, dim=0)
            # Nothing can be continued from maps of air.
            runs_through = object_.narrow(axis, 0, 2 * outer + 1).all(axis, keepdim=True)
            line = torch.where(runs_through, line, maps.narrow(axis, 0, outer))
            maps = torch.cat([line, maps.narrow(axis, outer, n - outer)], dim=axis).flip(axis)
            object_ = object_.flip(axis)
    return maps
