"""Groups: one network, many questions.

A joint state holds several groups of channels, say an image and its label, and each group has a time of its own. A
group without noise is conditioned on; a group that is pure noise is marginalised out. With image x and label y one
joint denoiser therefore knows

    E[y_0 | x_0, y_t]     condition on the image              segment
    E[x_0 | x_t, y_0]     condition on the label              synthesize to a mask
    E[x_0, y_0 | x_t, y_t]                                    synthesize a labelled case
    E[x_0 | x_t]          marginalise the label               a prior for reconstruction

A categorical group holds one-hot channels, and since x_0 is one of the unit vectors e_k, p(class | x_t) is its
denoiser. What a voxel's own noisy channels say of its class is known, ln p(x_t | e_k) = alpha x_t,k / sigma^2 + const;
the network gives the logits f of what all the rest says, and Bayes' rule puts them together:

    E[onehot | x_t] = p(class | x_t) = softmax(f + alpha x_t / sigma^2).

So labels become exact as the noise goes, and the network spends nothing on it. What the noisy channels of neighbours
say is known as well once the network tells how far labels are correlated (`correlation`): f is then theirs too.

A continuous group may have a Gaussian of its clean volumes. Its denoiser D_G, which is exact at high noise (see
`teleportation`) and a Wiener filter at low noise, then takes the place of c_skip x, the network learns what is left,

    D = D_G(x_t) + c_out F,    c_out^2 = E|x_0 - D_G(x_t)|^2 per voxel, if the data were that Gaussian,

and sees D_G beside x_t. Without it c_skip x is the same thing for white data of standard deviation `sigma_data`.

Source: Bao et al., One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale, ICML 2023 (one time per
modality); Campbell et al., NeurIPS 2022, treat categories by jumps instead.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from voxscore.diffusion.correlation import neighbours_evidence
from voxscore.diffusion.denoisers import Denoiser, coefficients, expand
from voxscore.diffusion.exact import Gaussian
from voxscore.diffusion.paths import Path

__all__ = ["Group", "JointDenoiser", "JointNetDenoiser", "condition", "marginalize"]


@dataclass(frozen=True)
class Group:
    """Channels that share one noise level.

    Args:
        name: how `condition` and `marginalize` call it.
        channels: how many; groups follow each other along the channel axis.
        categorical: one-hot channels, whose network output is logits.
        sigma_data: standard deviation of the clean channels, for the preconditioning of a network.
        gaussian: of the clean channels, (channels, *spatial); the volumes must then have its size, unless the group is
            clean.
        correlation_widths: of a categorical group, w of `correlation`; for each the network says one channel more.
        correlation_gain: factor of the amplitudes, by which the spread of samples is calibrated after training, as
            logits are by a temperature (Guo et al., ICML 2017). What one evaluation says of pure noise stays.
    """

    name: str
    channels: int
    categorical: bool = False
    sigma_data: float = 0.5
    gaussian: Gaussian | None = None
    correlation_widths: Sequence[float] = ()
    correlation_gain: float = 1.0

    def weight(self, path: Path, t: Tensor) -> Tensor:
        """1 / c_out^2 at times t, shaped like t: the weight with which every noise level asks as much of the network.

        Without a Gaussian that is `EDMWeight`. inf without noise.
        """
        if self.gaussian is None:
            return 1 / path.ratio(t) ** 2 + 1 / self.sigma_data**2
        alpha, sigma = path.alpha(t), path.sigma(t)
        left = self.gaussian.covariance.trace(lambda v, a, s: v * s**2 / (a**2 * v + s**2), alpha, sigma)
        return self.gaussian.mean.numel() / left.to(t)

    def estimate(self, path: Path, t: Tensor, x: Tensor) -> Tensor:
        """D_G(x) of x (B, channels, *spatial) at times (B,) or (1,); x itself where it is clean."""
        assert self.gaussian is not None
        clean = path.sigma(t) == 0
        itself = expand(1 / torch.where(clean, path.alpha(t), 1.0), x) * x
        if clean.all():
            return itself
        return torch.where(expand(clean, x).bool(), itself, self.gaussian.denoise(x, path, t))


class JointDenoiser(Denoiser):
    """E[x_0 | x_t = x] of a state of several groups.

    Times are () for all groups alike, or (B, G) or (1, G) with a column per group; a single group takes (B,) too.

    Args:
        path: of every group.
        groups: in the order of their channels.

    Raises:
        ValueError: no group, or two of the same name.
    """

    def __init__(self, path: Path, groups: Sequence[Group]) -> None:
        super().__init__(path)
        self.groups = tuple(groups)
        names = [group.name for group in self.groups]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a joint denoiser needs groups with different names, got {names}")

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x] of x (B, C, *spatial), the channels of all groups; the result is shaped like x."""

    def group_times(self, x: Tensor, t: Tensor) -> Tensor:
        """The times of x (B, C, *spatial) as a table (B or 1, G).

        Raises:
            ValueError: x has not the channels of the groups, or t is none of the shapes above.
        """
        names = [group.name for group in self.groups]
        channels = sum(group.channels for group in self.groups)
        if x.shape[1] != channels:
            raise ValueError(f"the groups {names} have {channels} channels, the volume has shape {tuple(x.shape)}")
        if t.ndim == 0:
            return t.expand(1, len(names))
        if t.ndim == 1 and len(names) == 1:
            t = t[:, None]
        if t.ndim != 2 or t.shape[1] != len(names) or t.shape[0] not in (1, len(x)):
            raise ValueError(
                f"times of the groups {names} are one number, or a table (batch, {len(names)}); got {tuple(t.shape)}"
            )
        return t

    def expand(self, coefficient: Tensor, x: Tensor) -> Tensor:
        """A function of the times, of their shape, ready to multiply x (B, C, *spatial): per channel of its group."""
        if coefficient.ndim == 0:
            return super().expand(coefficient, x)
        table = self.group_times(x, coefficient)
        repeats = torch.tensor([group.channels for group in self.groups], device=table.device)
        table = table.repeat_interleave(repeats, dim=1).to(x.device, x.dtype)
        return table.reshape(*table.shape, *[1] * (x.ndim - 2))

    def slices(self) -> dict[str, slice]:
        """Where each group's channels are."""
        ends = torch.tensor([group.channels for group in self.groups]).cumsum(0).tolist()
        return {group.name: slice(end - group.channels, end) for group, end in zip(self.groups, ends, strict=True)}


class JointNetDenoiser(JointDenoiser):
    """A network of several noise levels as a joint denoiser.

    Continuous groups have the preconditioning "edm" of `NetDenoiser`, or that of their Gaussian; the output of a
    categorical group is logits, to which `evidence` is added. The network is called as `net(c_in * x, times, **cond)`
    with `times` (B, G); the channels of a group with a Gaussian are followed by its estimate. Its output has the
    channels of all groups, and then those of their correlation widths.

    Args:
        net: the network.
        path: the path of every group.
        groups: in the order of their channels.
        time_map: what the network is told of a time; by default rho, as a `ScoreUNet` wants it.
    """

    def __init__(
        self,
        net: Callable[..., Any],
        path: Path,
        groups: Sequence[Group],
        time_map: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(path, groups)
        self.net, self.time_map = net, time_map or path.ratio

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x] of x (B, C, *spatial); a categorical group's part sums to one over its channels."""
        parts = self.outputs(x, t, **cond)
        return torch.cat(
            [part.softmax(1) if g.categorical else part for g, part in zip(self.groups, parts, strict=True)], dim=1
        ).to(x.dtype)

    def outputs(self, x: Tensor, t: Tensor, **cond: Any) -> list[Tensor]:
        """Per group what training compares: `interpret` of `raw`."""
        return self.interpret(self.raw(x, t, **cond), x, t)

    def raw(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        """What the network itself says of x (B, C, *spatial); in training it may say more than one tensor.

        Raises:
            ValueError: as `group_times`.
        """
        times = self.group_times(x, t)
        inputs = []
        for k, (group, part) in enumerate(zip(self.groups, self.slices().values(), strict=True)):
            c_in = coefficients("edm", self.path, times[:, k], group.sigma_data, x)[2]
            inputs.append(c_in * x[:, part])
            if group.gaussian is not None:
                inputs.append(group.estimate(self.path, times[:, k], x[:, part]))
        scaled = torch.cat(inputs, dim=1)
        told = self.time_map(times).to(x.device, torch.promote_types(x.dtype, torch.float32))
        return self.net(scaled, told.expand(len(x), -1), **cond)

    def interpret(self, f: Tensor, x: Tensor, t: Tensor) -> list[Tensor]:
        """Per group what a tensor that the network made of x means.

        Args:
            f: the network's output, or another head's, (B, C + correlation widths, *spatial).
            x: (B, C, *spatial).
            t: its times.

        Returns:
            E[x_0 | x_t] of a continuous group, ln p(class | x_t) + const of a categorical one, (B, C_g, *spatial).

        Raises:
            TypeError: f is no tensor.
            ValueError: as `group_times`, or f has another shape.
        """
        if not isinstance(f, Tensor):
            raise TypeError(f"JointNetDenoiser: the network must return one tensor, it returned {type(f).__name__}")
        further = [len(group.correlation_widths) for group in self.groups]
        if f.shape != (x.shape[0], x.shape[1] + sum(further), *x.shape[2:]):
            raise ValueError(f"JointNetDenoiser: the network made {tuple(f.shape)} of a volume {tuple(x.shape)}")
        parts = []
        times = self.group_times(x, t)
        amplitudes = f[:, x.shape[1] :].split(further, dim=1)
        for k, (group, part) in enumerate(zip(self.groups, self.slices().values(), strict=True)):
            if group.categorical:
                prior = f[:, part].to(torch.promote_types(f.dtype, torch.float32))
                evidence = self.evidence(x[:, part].to(prior), times[:, k])
                if group.correlation_widths:
                    s = group.correlation_gain * softplus(amplitudes[k].to(prior))
                    prior = prior + neighbours_evidence(prior, evidence, s, group.correlation_widths)
                parts.append(prior + evidence)
            elif group.gaussian is None:
                c_skip, c_out, _ = coefficients("edm", self.path, times[:, k], group.sigma_data, x)
                parts.append(c_skip * x[:, part] + c_out * f[:, part])
            else:
                c_out = expand(group.weight(self.path, times[:, k]) ** -0.5, x)
                parts.append(group.estimate(self.path, times[:, k], x[:, part]) + c_out * f[:, part])
        return parts

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """ln p(x | class) of a categorical group's x (B, C_g, *spatial) up to a constant; 0 where it is clean."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        noisy = sigma > 0
        return expand(torch.where(noisy, alpha / torch.where(noisy, sigma, 1.0) ** 2, 0.0), x) * x


class _Pinned(JointDenoiser):
    """The other groups' denoiser while one group is held at a value and a time."""

    def __init__(self, denoiser: JointDenoiser, group: str, value: Tensor | None, t: Tensor) -> None:
        if not isinstance(denoiser, JointDenoiser):
            raise TypeError(f"only a joint denoiser has groups, got {type(denoiser).__name__}")
        names = [g.name for g in denoiser.groups]
        if group not in names:
            raise ValueError(f"there is no group {group!r} among {names}")
        if len(names) == 1:
            raise ValueError(f"nothing is left to denoise: {group!r} is the only group")
        super().__init__(denoiser.path, [g for g in denoiser.groups if g.name != group])
        self.denoiser, self.value, self.t, self.position = denoiser, value, t, names.index(group)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        times = self.group_times(x, t)
        k, group = self.position, self.denoiser.groups[self.position]
        before = sum(g.channels for g in self.denoiser.groups[:k])
        shape = (len(x), group.channels, *x.shape[2:])
        if self.value is None:
            value = x.new_zeros(shape)
        elif self.value.shape[1:] != shape[1:] or len(self.value) not in (1, len(x)):
            raise ValueError(
                f"the group {group.name!r} must have shape {shape} here, its value has {tuple(self.value.shape)}"
            )
        else:
            value = self.value.to(x).expand(shape)
        pinned = self.t.to(times).expand(len(times), 1)
        d = self.denoiser(
            torch.cat([x[:, :before], value, x[:, before:]], dim=1),
            torch.cat([times[:, :k], pinned, times[:, k:]], dim=1),
            **cond,
        )
        return torch.cat([d[:, :before], d[:, before + group.channels :]], dim=1)


def condition(denoiser: JointDenoiser, group: str, value: Tensor) -> JointDenoiser:
    """The denoiser of the other groups, given the clean value of one; `bind` and `guide` come after it.

    Args:
        denoiser: of all groups.
        group: name of the known group.
        value: its clean channels (B or 1, C, *spatial).

    Raises:
        ValueError: no such group, or no other group; when called, a value that does not fit the volume.
    """
    return _Pinned(denoiser, group, value, torch.tensor(denoiser.path.span[0], dtype=torch.float64))


def marginalize(denoiser: JointDenoiser, group: str, noise: Tensor | None = None) -> JointDenoiser:
    """The denoiser of the other groups, nothing being known of one.

    Exact where the path ends in pure noise (`Flow`, `Cosine`, a `Discrete` with zero terminal signal); elsewhere as
    exact as the largest noise level hides the group.

    Args:
        denoiser: of all groups.
        group: name of the unknown group.
        noise: the standard normal (B or 1, C, *spatial) to fill it with; its mean, zeros, if None.

    Raises:
        ValueError: no such group, or no other group; when called, noise that does not fit the volume.
    """
    t = denoiser.path.t_noise
    return _Pinned(denoiser, group, None if noise is None else denoiser.path.sigma(t) * noise, t)
