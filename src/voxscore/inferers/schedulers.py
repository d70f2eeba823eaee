r"""MONAI's schedulers with the right few-step samples: load a MONAI checkpoint, sample it by these.

Training adds noise at the times t = 0 .. T-1 with a_t = prod_{i <= t} (1 - beta_i), MONAI's `alphas_cumprod`:

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps.

Sampling visits a coarser grid t > s > ... and ends at clean data, a = 1. Every step uses the two times it really
joins. With the network's x0 and eps at x_t (x0, eps and v = sqrt(a_t) eps - sqrt(1 - a_t) x0 give one another):

    DDPM   x_s = sqrt(a_s) b/(1-a_t) x0 + sqrt(1-b) (1-a_s)/(1-a_t) x_t + std z,     b = 1 - a_t/a_s
    DDIM   x_s = sqrt(a_s) x0 + sqrt(1 - a_s - std^2) eps + std z,     std^2 = eta^2 b (1-a_s)/(1-a_t)
    PNDM   the DDIM step with eta = 0, along the mean of eps over [s, t]: by a Runge-Kutta rule from evaluations
           inside the interval, or by Adams-Bashforth from the last four
    RFlow  x_t = (1-t) x0 + t eps,     x_s = x_t + (t-s) v,     v = x0 - eps,     with times divided by T

Sources: DDPM, Ho et al. 2020 (eq. 6, 7) and Nichol & Dhariwal 2021 (eq. 15); DDIM, Song et al. 2021 (eq. 12, 16);
PNDM, Liu et al. 2022 (eq. 9, 12, 13); RFlow, Liu et al. 2023. Coefficients are float64 numbers, the sample keeps its
dtype.

What differs from MONAI 1.6.1. DDPM went from t to t - 1 and DDIM to t - T//n whatever the grid, so that data of
standard deviation 0.3 came out with up to 0.98 and 0.55; PNDM counted its evaluations as steps, skipped a step after
its multistep start and mixed v-predictions of different times; RFlow rounded times to float16 and integers, ignored
`transform_scale` and was no working module. `learned_range` interpolated variances, not their logarithms. `add_noise`
in half precision left the tables in half precision. `set_timesteps(n, device)` broke `DiffusionInferer`, which joins
the times with a tensor on the CPU: here `timesteps` stay on the CPU, and `device` is accepted but not used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from monai.networks import schedulers as monai_schedulers
from monai.networks.schedulers.ddpm import DDPMPredictionType, DDPMVarianceType
from monai.networks.schedulers.rectified_flow import timestep_transform
from monai.utils import unsqueeze_right
from torch import Tensor, nn

__all__ = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "RFlowScheduler"]


class _OnGrid(monai_schedulers.Scheduler):
    """What the schedulers share: where a time stands in the grid, the two levels there, and adding noise."""

    steps_offset: int = 0
    final_alpha_cumprod: Tensor | float = 1.0  # clean data; MONAI's DDIM and PNDM set their own

    def _check_number(self, num_inference_steps: int) -> None:
        if not 1 <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps={num_inference_steps}: a model trained on {self.num_train_timesteps} timesteps "
                f"can be sampled in 1 to {self.num_train_timesteps} steps"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ValueError(f"steps_offset={self.steps_offset} must lie in [0, {self.num_train_timesteps})")

    def _position(self, timestep: float | Tensor) -> int:
        """Where `timestep` stands in `timesteps`."""
        found = (self.timesteps == float(timestep)).nonzero()
        if not len(found):
            raise ValueError(
                f"timestep {float(timestep):g} is not one of the {len(self.timesteps)} in `timesteps` "
                f"({float(self.timesteps[0]):g} to {float(self.timesteps[-1]):g}): call set_timesteps(n) and step "
                "through `timesteps` in order"
            )
        return int(found[0])

    def _alpha(self, position: int) -> float:
        """alphas_cumprod at an entry of `timesteps`; behind the last, that of the sample the run ends with."""
        if position == len(self.timesteps):
            return float(self.final_alpha_cumprod)
        return float(self.alphas_cumprod[int(self.timesteps[position])])

    def _clean_and_noise(self, output: Tensor, x: Tensor, a: float) -> tuple[Tensor, Tensor]:
        """x0 and eps that the network's output means at x, where alphas_cumprod is `a`."""
        output, signal, noise = output.to(x.dtype), math.sqrt(a), math.sqrt(1 - a)
        if self.prediction_type == DDPMPredictionType.EPSILON:
            return (x - noise * output) / signal, output
        if self.prediction_type == DDPMPredictionType.SAMPLE:
            return output, (x - signal * output) / noise
        return signal * x - noise * output, signal * output + noise * x

    def _levels(self, timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t) of `timesteps` (B,), ready to multiply x (B, C, *spatial)."""
        a = self.alphas_cumprod.double()
        tables = (table.to(device=x.device, dtype=x.dtype) for table in (a.sqrt(), (1 - a).sqrt()))
        signal, noise = (unsqueeze_right(table[timesteps.to(x.device)], x.ndim) for table in tables)
        return signal, noise

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy samples at `timesteps`.

        Args:
            original_samples: clean data (B, C, *spatial).
            noise: standard normal, of the same shape.
            timesteps: one per sample (B,); integers, except for rectified flow.

        Returns:
            (B, C, *spatial), in the samples' dtype. The tables stay as they are.
        """
        signal_level, noise_level = self._levels(timesteps, original_samples)
        return signal_level * original_samples + noise_level * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v-predicting network learns, sqrt(a_t) noise - sqrt(1 - a_t) sample (Salimans & Ho 2022, app. D).

        Shapes as in `add_noise`; `sample` is the clean data.
        """
        signal_level, noise_level = self._levels(timesteps, sample)
        return signal_level * noise - noise_level * sample


def _normal(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise like x, drawn on the generator's device: a seed means the same noise on every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


class DDPMScheduler(_OnGrid, monai_schedulers.DDPMScheduler):
    """Ancestral sampling; the constructor's arguments are those of MONAI's class.

    MONAI's `_get_mean` and `_get_variance` (t to t - 1) stay, because `DiffusionInferer.get_likelihood` reads them.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay n times evenly from T - 1 to 0; `timesteps` stay on the CPU.

        Raises:
            ValueError: n is not in 1 .. T.
        """
        self._check_number(num_inference_steps)
        super().set_timesteps(num_inference_steps)

    def _std(self, a_t: float, a_s: float, predicted: Tensor | None) -> float | Tensor:
        """Standard deviation of x_s given x_t; `predicted` is the network's second half, if it has one."""
        beta = 1 - a_t / a_s
        posterior = max(beta * (1 - a_s) / (1 - a_t), 1e-20)
        if self.variance_type == DDPMVarianceType.FIXED_LARGE:
            return math.sqrt(beta)
        if predicted is None:
            return math.sqrt(posterior)
        if self.variance_type == DDPMVarianceType.LEARNED:
            return predicted.sqrt()
        # Improved DDPM, eq. 15; halved in the exponent because float16 underflows at the variances themselves.
        share = (predicted + 1) / 2
        return ((share * math.log(beta) + (1 - share) * math.log(posterior)) / 2).exp()

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """From `timestep` to the next of `timesteps`; from the last, to clean data without new noise.

        A learned variance is the network's second half of channels. `learned` ones hold for the steps of training
        only; `learned_range` ones adapt to the step (Nichol & Dhariwal 2021, section 4).

        Args:
            model_output: the network's output (B, C or 2 C, *spatial).
            timestep: an entry of `timesteps`.
            sample: x_t (B, C, *spatial).
            generator: draws the noise, on its own device; the global one if left out.

        Returns:
            x_s and the predicted (clipped) x0, both like `sample`.

        Raises:
            ValueError: `timestep` is not in `timesteps`.
        """
        here = self._position(timestep)
        a_t, a_s = self._alpha(here), self._alpha(here + 1)
        predicted = None
        learned = self.variance_type in (DDPMVarianceType.LEARNED, DDPMVarianceType.LEARNED_RANGE)
        if learned and model_output.shape[1] == 2 * sample.shape[1]:
            model_output, predicted = model_output.to(sample.dtype).chunk(2, dim=1)
        x0, _ = self._clean_and_noise(model_output, sample, a_t)
        if self.clip_sample:
            x0 = x0.clamp(*self.clip_sample_values)
        # DDPM, eq. 7, with alpha_t and beta_t of the grid's own step
        alpha = a_t / a_s
        mean = math.sqrt(a_s) * (1 - alpha) / (1 - a_t) * x0 + math.sqrt(alpha) * (1 - a_s) / (1 - a_t) * sample
        if here + 1 == len(self.timesteps):
            return mean, x0
        return mean + self._std(a_t, a_s, predicted) * _normal(sample, generator), x0


class DDIMScheduler(_OnGrid, monai_schedulers.DDIMScheduler):
    """Implicit sampling; the constructor's arguments are those of MONAI's class.

    With `set_alpha_to_one=False` the last step ends at a_0 rather than at clean data. A clipped x0 leaves eps as the
    network gave it, as in MONAI.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay n times evenly from T - 1 to `steps_offset`; `timesteps` stay on the CPU.

        Times that an offset makes coincide are visited once.

        Raises:
            ValueError: n is not in 1 .. T.
        """
        self._check_number(num_inference_steps)
        super().set_timesteps(num_inference_steps)
        self.timesteps = self.timesteps.unique_consecutive()

    def _predict(self, model_output: Tensor, sample: Tensor, a: float) -> tuple[Tensor, Tensor]:
        x0, noise = self._clean_and_noise(model_output, sample, a)
        return (x0.clamp(*self.clip_sample_values) if self.clip_sample else x0), noise

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From `timestep` to the next of `timesteps`; from the last, to the end (`set_alpha_to_one`).

        Args:
            model_output: the network's output (B, C, *spatial).
            timestep: an entry of `timesteps`.
            sample: x_t (B, C, *spatial).
            eta: share of new noise, from 0 (deterministic) to 1 (DDPM).
            generator: draws the noise, on its own device; the global one if left out.

        Returns:
            x_s and the predicted (clipped) x0, both like `sample`.

        Raises:
            ValueError: `timestep` is not in `timesteps`, or `eta` not in [0, 1].
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} must lie between 0 (deterministic) and 1 (DDPM)")
        here = self._position(timestep)
        a_t, a_s = self._alpha(here), self._alpha(here + 1)
        x0, noise = self._predict(model_output, sample, a_t)
        # DDIM, eq. 16 and 12; at eta = 1 the difference under the root may round to just below zero
        std = eta * math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
        x_s = math.sqrt(a_s) * x0 + math.sqrt(max(1 - a_s - std**2, 0.0)) * noise
        return (x_s + std * _normal(sample, generator) if std else x_s), x0

    def reversed_step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """From `timestep` to the entry before it in `timesteps`, the noisier one; deterministic.

        Begin at the last entry, `timesteps[-1]`, and end by stepping from the second. What goes in and out is as in
        `step`.

        Raises:
            ValueError: `timestep` is not in `timesteps`, or is their first: nothing noisier is left.
        """
        here = self._position(timestep)
        if here == 0:
            raise ValueError(f"timestep {float(timestep):g} is the noisiest of `timesteps`: no step leads beyond it")
        x0, noise = self._predict(model_output, sample, self._alpha(here))
        a = self._alpha(here - 1)
        return math.sqrt(a) * x0 + math.sqrt(1 - a) * noise, x0


def _runge_kutta_weights(c: float) -> tuple[float, float, float, float]:
    """Weights of the slopes at the start, at fraction c (twice) and at the end of a step.

    The first three order conditions determine them: sum b_i = 1, sum b_i c_i = 1/2, sum b_i c_i^2 = 1/3,
    sum b_i a_ij c_j = 1/6. At c = 1/2 they are the classical 1/6, 1/3, 1/3, 1/6.
    """
    end = 1 / 2 - 1 / (6 * (1 - c))
    second = (1 / (6 * c) - end) / c
    first = 1 / (6 * c * (1 - c)) - second
    return 1 / 2 - 1 / (6 * c), first, second, end


def _adams_bashforth_weights(times: list[int], end: int) -> list[float]:
    """Weights of the slopes at `times` (newest first) for the step from times[0] to `end`.

    They average the polynomial through the slopes over the step, so they are right for any spacing; on even spacing
    they are 1; 3/2, -1/2; 23/12, -16/12, 5/12; 55/24, -59/24, 37/24, -9/24.
    """
    unit = max(abs(times[-1] - times[0]), 1)
    nodes = torch.tensor([(time - times[0]) / unit for time in times], dtype=torch.float64)
    powers = torch.arange(len(times), dtype=torch.float64)
    step = torch.tensor((end - times[0]) / unit, dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(nodes ** powers[:, None], step**powers / (powers + 1)).tolist()
    return weights


class PNDMScheduler(_OnGrid, monai_schedulers.PNDMScheduler):
    """Pseudo-linear multistep sampling; the constructor's arguments are those of MONAI's class.

    n steps start with three Runge-Kutta steps of four evaluations, n + 9 evaluations in all. With
    `skip_prk_steps=True` they start with one step that is repeated with the mean slope of its ends, and shorter
    multistep rules, n + 1 evaluations. Where the first three steps are not all of two times at least, no integer
    time lies half-way (and with fewer than four times there are no three steps): such a run starts in the second way,
    whatever `skip_prk_steps` says.

    `step` counts its evaluations, so go through `timesteps` in order; a call with their first begins anew.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay n times at round(i T / n) + `steps_offset`; `timesteps`, one per evaluation, stay on the CPU.

        Times that an offset pushes beyond the training's are left out.

        Raises:
            ValueError: n is not in 1 .. T, or `steps_offset` not in 0 .. T - 1.
        """
        self._check_number(num_inference_steps)
        n, total = num_inference_steps, self.num_train_timesteps
        grid = (torch.arange(n, dtype=torch.float64) * total / n).round().long() + self.steps_offset
        grid = grid[grid < total].flip(0)
        gaps = grid[:3] - grid[1:4] if len(grid) > 3 else grid[:0]
        self.runge_kutta = not self.skip_prk_steps and len(gaps) > 0 and int(gaps.min()) >= 2
        if self.runge_kutta:
            half_way = grid[1:4] + gaps // 2
            start = torch.stack((grid[:3], half_way, half_way, grid[1:4]), dim=1).flatten()
            self.timesteps = torch.cat((start, grid[3:]))
        else:
            self.timesteps = torch.cat((grid[:2], grid[1:]))
        self.num_inference_steps = n
        self._restart()

    def _restart(self) -> None:
        self.counter = 0
        self.ets: list[tuple[int, Tensor]] = []  # times and slopes, newest first
        self.cur_sample = self.cur_model_output = torch.empty(0)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, None]:
        """From `timestep` to the next of `timesteps`; from the last, to the end (`set_alpha_to_one`).

        Args:
            model_output: the network's output (B, C, *spatial).
            timestep: the entry of `timesteps` whose turn it is.
            sample: the sample the network saw, as the call before returned it (B, C, *spatial).

        Returns:
            The sample for the next evaluation, like `sample`, and None.

        Raises:
            ValueError: `timestep` is not in `timesteps`, or it is another one's turn.
        """
        if self._position(timestep) == 0:
            self._restart()
        expected = int(self.timesteps[self.counter])
        if timestep != expected:
            raise ValueError(
                f"timestep {int(timestep)} is out of turn, {expected} comes next: step through `timesteps` in order, "
                f"or begin anew at {int(self.timesteps[0])}"
            )
        rule = self.step_prk if self.runge_kutta and self.counter < 12 else self.step_plms
        x_s = rule(model_output, expected, sample)
        self.counter += 1
        if self.counter == len(self.timesteps):
            self._restart()
        return x_s, None

    def step_prk(self, model_output: Tensor, timestep: int, sample: Tensor) -> Tensor:
        """One evaluation of a Runge-Kutta step (PNDM, eq. 13); called by `step`, which says what goes in and out."""
        first = self.counter // 4 * 4
        stage = self.counter - first
        start, half_way, _, end = self.timesteps[first : first + 4].tolist()
        weights = _runge_kutta_weights((start - half_way) / (start - end))
        slope = self._slope(model_output, sample)
        if stage == 0:
            self.ets.insert(0, (start, slope))
            self.cur_sample, self.cur_model_output = sample, torch.zeros_like(slope)
        self.cur_model_output = self.cur_model_output + weights[stage] * slope
        return self._transfer(self.cur_sample, self.cur_model_output if stage == 3 else slope, start=first)

    def step_plms(self, model_output: Tensor, timestep: int, sample: Tensor) -> Tensor:
        """One multistep step (PNDM, eq. 12); called by `step`, which says what goes in and out."""
        slope = self._slope(model_output, sample)
        if self.counter == 1 and not self.runge_kutta:
            # this evaluation is at the end of the first step, which its slope serves to repeat
            return self._transfer(self.cur_sample, (self.ets[0][1] + slope) / 2, start=0)
        self.cur_sample = sample
        self.ets = [(timestep, slope), *self.ets[:3]]
        weights = _adams_bashforth_weights([time for time, _ in self.ets], self._next_time())
        mean = sum((w * e for w, (_, e) in zip(weights, self.ets, strict=True)), torch.zeros_like(slope))
        return self._transfer(sample, mean, start=self.counter)

    def _next_time(self) -> int:
        """The time where the present step ends; clean data lie one before time 0."""
        if self.counter + 1 < len(self.timesteps):
            return int(self.timesteps[self.counter + 1])
        return -1 if float(self.final_alpha_cumprod) == 1 else 0

    def _slope(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """Eps at this evaluation's own sample and time: velocities of different times must not be mixed."""
        return self._clean_and_noise(model_output, sample, self._alpha(self.counter))[1]

    def _transfer(self, x: Tensor, slope: Tensor, start: int) -> Tensor:
        """x from entry `start` of `timesteps` to the entry after the present one (PNDM, eq. 9)."""
        a_t, a_s = self._alpha(start), self._alpha(self.counter + 1)
        gain = math.sqrt(a_s / a_t)
        return gain * x + (math.sqrt(1 - a_s) - gain * math.sqrt(1 - a_t)) * slope


class RFlowScheduler(_OnGrid, monai_schedulers.RFlowScheduler):
    """Rectified flow: straight lines from noise at t = T to data at t = 0, Euler steps.

    There are no betas, so there is no `alphas_cumprod` either.

    The constructor's arguments are those of MONAI's class. `use_timestep_transform` shifts times towards noise for
    large volumes: t' = k t / (1 + (k - 1) t) in units of T, with k = transform_scale (voxels /
    base_img_size_numel)^(1 / spatial_dim). `steps_offset` is added to the times of sampling, which stay within T.
    """

    @functools.wraps(monai_schedulers.RFlowScheduler.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)  # MONAI's class calls no base constructor
        super().__init__(*args, **kwargs)
        self.set_timesteps(self.num_train_timesteps, input_img_size_numel=self.base_img_size_numel)

    def _shift(self, t: Tensor, numel: int, spatial_dim: int) -> Tensor:
        """Times t of `use_timestep_transform`, for a volume of `numel` voxels."""
        if not self.use_timestep_transform:
            return t
        shifted: Tensor = timestep_transform(
            t, numel, self.base_img_size_numel, self.transform_scale, self.num_train_timesteps, spatial_dim
        )
        return shifted

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        input_img_size_numel: int | None = None,
    ) -> None:
        """Lay n times evenly from T to T / n, then shift them; `timesteps` stay on the CPU.

        They are float64, or integers with `use_discrete_timesteps`; times that coincide are visited once.

        Args:
            num_inference_steps: n.
            device: not used.
            input_img_size_numel: voxels of the volume; needed with `use_timestep_transform`.

        Raises:
            ValueError: n is not in 1 .. T, or the number of voxels is missing.
        """
        self._check_number(num_inference_steps)
        if self.use_timestep_transform and input_img_size_numel is None:
            raise ValueError("use_timestep_transform=True: call set_timesteps(n, input_img_size_numel=H * W * D)")
        n, total = num_inference_steps, self.num_train_timesteps
        t = torch.arange(n, 0, -1, dtype=torch.float64) * total / n
        t = (self._shift(t, int(input_img_size_numel or 0), self.spatial_dim) + self.steps_offset).clamp(max=total)
        self.timesteps = (t.round().long() if self.use_discrete_timesteps else t).unique_consecutive()
        self.num_inference_steps = n

    def sample_timesteps(self, x_start: Tensor) -> Tensor:
        """Random times (B,) to train on, for clean data (B, C, *spatial)."""
        uniform = self.sample_method == "uniform"
        t = torch.rand(x_start.shape[:1], device=x_start.device) if uniform else self.sample_t(x_start)
        t = t * self.num_train_timesteps
        if self.use_discrete_timesteps:
            t = t.long()
        return self._shift(t, math.prod(x_start.shape[2:]), x_start.ndim - 2)

    def _levels(self, timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        t = timesteps.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)) / self.num_train_timesteps
        signal, noise = (unsqueeze_right(level.to(x.dtype), x.ndim) for level in (1 - t, t))
        return signal, noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The network's target, x0 - eps, at every time; `sample` is the clean data (B, C, *spatial)."""
        return sample - noise

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        next_timestep: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From `timestep` to `next_timestep`; if left out, to the next of `timesteps`, and from the last to 0.

        Args:
            model_output: the network's velocity, an estimate of x0 - eps (B, C, *spatial).
            timestep: t, in 0 .. T.
            sample: x_t (B, C, *spatial).
            next_timestep: s, in 0 .. T; need not be an integer.

        Returns:
            x_s and the predicted x0, both like `sample`.

        Raises:
            ValueError: there is no `next_timestep`, and `timestep` is not in `timesteps`.
        """
        t = float(timestep)
        if next_timestep is None:
            following = self._position(t) + 1
            next_timestep = self.timesteps[following] if following < len(self.timesteps) else 0
        velocity, total = model_output.to(sample.dtype), self.num_train_timesteps
        return sample + (t - float(next_timestep)) / total * velocity, sample + t / total * velocity
