"""Every scheduler: the same as MONAI's where that is right, the same as diffusers', and what all of them keep."""

import inspect
import math

import numpy as np
import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks import schedulers as monai
from scheduler_rules import EVERY, WITH_BETAS, T, bent, coefficients, constant, deviation, exact, unclipped

from voxscore.inferers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler, schedulers

# -- where MONAI is right, both agree -------------------------------------------------------------------------------


def walk(scheduler, x, model, **options):
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.reshape(1)), t, x, **options)[0]
    return x


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("schedule", ["linear_beta", "scaled_linear_beta", "cosine"])
def test_the_same_as_monai_at_every_trained_step(name, clip, schedule):
    start = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 4, 4, 4)
    samples = []
    for package in (schedulers, monai):
        scheduler = getattr(package, name)(T, schedule, clip_sample=clip)
        scheduler.set_timesteps(T)
        seeded = {"generator": torch.Generator().manual_seed(1)}
        options = seeded if name == "DDPMScheduler" else {**seeded, "eta": 0.3}
        samples.append(walk(scheduler, start, exact(scheduler), **options))
    # MONAI tabulates b; here it is 1 - a_t / a_s, which leaves 1e-4 of it four digits of the float32 table.
    torch.testing.assert_close(*samples, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [500, 250, 100, 50])
@pytest.mark.parametrize("skip", [True, False])
def test_the_same_as_monai_s_pndm_once_it_is_told_its_steps(n, skip):
    ours, theirs = PNDMScheduler(T, skip_prk_steps=skip), monai.PNDMScheduler(T, skip_prk_steps=skip)
    ours.set_timesteps(n)
    theirs.set_timesteps(n)
    if skip:
        assert torch.equal(ours.timesteps[2:], theirs.timesteps[1:])
        theirs.timesteps = ours.timesteps
    else:
        assert torch.equal(ours.timesteps, theirs.timesteps)
        theirs.num_inference_steps = n
    assert ours.num_inference_steps == n
    start = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(1, 1, 2, 2, 2)
    torch.testing.assert_close(walk(ours, start, bent), walk(theirs, start, bent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1000, 250, 50])
def test_the_same_as_monai_s_discrete_flow(n):
    ours, theirs = RFlowScheduler(T), monai.RFlowScheduler(T)
    assert deviation(ours, n) == pytest.approx(deviation(theirs, n), rel=1e-7)
    assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("name", schedulers.__all__)
def test_constructor_and_class_are_monai_s(name):
    ours, theirs = getattr(schedulers, name), getattr(monai, name)
    assert issubclass(ours, theirs)
    assert ours.__name__ == theirs.__name__  # get_likelihood asks for it
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs)).removesuffix(" -> None")
    if ours in WITH_BETAS:
        assert torch.equal(ours(T).alphas_cumprod, theirs(T).alphas_cumprod)


def test_the_likelihood_bound_is_monai_s():
    bounds = []
    for cls in (DDPMScheduler, monai.DDPMScheduler):
        scheduler = cls(20, clip_sample=True)
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 64).reshape(1, 1, 4, 4, 4)
        bounds.append(DiffusionInferer(scheduler).get_likelihood(x, constant(0.1), verbose=False))
    torch.testing.assert_close(*bounds)


# -- predictions, clipping, variances, noise ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", WITH_BETAS)
@pytest.mark.parametrize("n", [300, 50])
def test_prediction_types_agree(cls, n):
    kinds = ("epsilon", "v_prediction") if cls is PNDMScheduler else ("epsilon", "sample", "v_prediction")
    samples = []
    for kind in kinds:
        scheduler = unclipped(cls, prediction_type=kind)
        scheduler.set_timesteps(n)
        samples.append(coefficients(scheduler))
    for other in samples[1:]:
        torch.testing.assert_close(samples[0], other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
def test_the_predicted_clean_data_are_clipped(cls):
    scheduler = cls(T, clip_sample_min=-0.5, clip_sample_max=2.0)
    scheduler.set_timesteps(10)
    t, s = scheduler.timesteps[3:5]
    a, b = (scheduler.alphas_cumprod.double()[i].item() for i in (t, s))
    x, eps = torch.linspace(-3, 3, 16, dtype=torch.float64).reshape(2, 1, 2, 2, 2), 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: torch.zeros_like(x))
        moved, x0 = scheduler.step(torch.full_like(x, eps), t, x)
    torch.testing.assert_close(x0, ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-0.5, 2))
    assert (x0 == 2).any()
    if cls is DDIMScheduler:
        torch.testing.assert_close(moved, math.sqrt(b) * x0 + math.sqrt(1 - b) * eps)
    else:
        mean = math.sqrt(b) * (1 - a / b) * x0 + math.sqrt(a / b) * (1 - b) * x
        torch.testing.assert_close(moved, mean / (1 - a))
    end, x0 = scheduler.step(torch.full_like(x, eps), scheduler.timesteps[-1], x)
    assert torch.equal(end, x0)


def noise_std(variance_type, predicted):
    """Standard deviation of the noise of one step, from a step with noise one less a step with noise zero."""
    scheduler = unclipped(DDPMScheduler, variance_type=variance_type)
    scheduler.set_timesteps(50)
    x = torch.ones(1, 1, 2, 2, 2, dtype=torch.float64)
    output = x if predicted is None else torch.cat((x, torch.full_like(x, predicted)), dim=1)
    moved = []
    for value in (1.0, 0.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, value=value, **__: torch.full_like(x, value))
            moved.append(scheduler.step(output, scheduler.timesteps[-2], x)[0])
    return (moved[0] - moved[1]).unique().item()


def test_learned_variances():
    small, large = noise_std("fixed_small", None), noise_std("fixed_large", None)
    assert small < 0.5 * large
    assert noise_std("learned", 0.04) == pytest.approx(0.2)
    assert noise_std("learned_range", None) == pytest.approx(small)
    assert noise_std("learned_range", -1.0) == pytest.approx(small)
    assert noise_std("learned_range", 1.0) == pytest.approx(large)
    assert noise_std("learned_range", 0.0) == pytest.approx(math.sqrt(small * large))
    scheduler, x = unclipped(DDPMScheduler, variance_type="learned"), torch.ones(1, 1, 2, 2, dtype=torch.float16)
    assert scheduler.step(torch.ones(1, 2, 2, 2), 999, x)[0].dtype is torch.float16


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
def test_noise_comes_from_the_generator(cls):
    scheduler = unclipped(cls)
    scheduler.set_timesteps(5)
    options = {"eta": 1.0} if cls is DDIMScheduler else {}
    x, state = torch.ones(1, 1, 2, 2, 2), torch.get_rng_state()
    first, again, other = (
        walk(scheduler, x, constant(0.1), generator=torch.Generator().manual_seed(seed), **options)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    # A network on an accelerator and a generator on the CPU: "meta" stands for the accelerator.
    devices, randn = [], torch.randn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "randn", lambda *size, device, **kwargs: devices.append(str(device)) or randn(*size, **kwargs)
        )
        far = x.to("meta")
        moved, _ = scheduler.step(far, scheduler.timesteps[0], far, generator=torch.Generator(), **options)
    assert devices == ["cpu"]
    assert moved.device.type == "meta"


# -- laws of every scheduler ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 1, 3, 4, 2)])
def test_the_sample_keeps_its_dtype_and_shape(cls, dtype, shape):
    scheduler = unclipped(cls)
    scheduler.set_timesteps(20)
    x = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    # The exact predictor answers in float64, as a network of another precision would.
    y = DiffusionInferer(scheduler).sample(x.to(dtype), exact(scheduler), verbose=False)
    assert y.dtype is dtype
    assert y.shape == shape
    if cls is not DDPMScheduler:  # each dtype draws other noise
        full = DiffusionInferer(scheduler).sample(x.double(), exact(scheduler), verbose=False)
        torch.testing.assert_close(y.double(), full, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("cls", EVERY)
def test_twice_the_same_without_new_timesteps(cls):
    scheduler = unclipped(cls)
    scheduler.set_timesteps(50)
    first = coefficients(scheduler)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for t in scheduler.timesteps[:7]:  # a run that is broken off
        x = scheduler.step(x, t, x)[0]
    assert torch.equal(coefficients(scheduler), first)
    assert torch.equal(coefficients(scheduler), first)


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_add_noise_and_get_velocity_leave_the_tables(cls, dtype):
    scheduler = unclipped(cls)
    x0, eps = (torch.full((3, 1, 2, 2, 2), value, dtype=dtype) for value in (0.5, -0.25))
    t = torch.tensor([0, 500, 999])
    noisy, velocity = scheduler.add_noise(x0, eps, t), scheduler.get_velocity(x0, eps, t)
    if cls is RFlowScheduler:
        assert not hasattr(scheduler, "alphas_cumprod")  # a flow has none; a wrong one would mislead
        signal, noise = 1 - t.double() / T, t.double() / T
        expected = torch.full((3,), 0.75, dtype=torch.float64)
    else:
        table = getattr(monai, cls.__name__)(T).alphas_cumprod
        assert scheduler.alphas_cumprod.dtype is torch.float32
        assert torch.equal(scheduler.alphas_cumprod, table)
        signal, noise = table.double()[t].sqrt(), (1 - table.double()[t]).sqrt()
        expected = -0.25 * signal - 0.5 * noise
    for value, right in ((noisy, 0.5 * signal - 0.25 * noise), (velocity, expected)):
        assert value.dtype is dtype
        # two products and a sum, each rounded once, of numbers below one
        error = (value.double() - right.reshape(3, 1, 1, 1, 1)).abs().max()
        assert error <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("cls", EVERY)
def test_timesteps_stay_where_the_inferer_needs_them(cls):
    scheduler = unclipped(cls)
    scheduler.set_timesteps(10, device="meta")
    assert scheduler.timesteps.device.type == "cpu"
    x = torch.ones(1, 1, 2, 2, 2)
    assert DiffusionInferer(scheduler).sample(x, constant(0.0), verbose=False).isfinite().all()


@pytest.mark.parametrize("cls", EVERY)
def test_a_scheduler_is_a_module(cls):
    scheduler = unclipped(cls)
    network = torch.nn.ModuleDict({"scheduler": scheduler, "layer": torch.nn.Linear(1, 1)})
    assert list(network.state_dict()) == ["layer.weight", "layer.bias"]  # so existing checkpoints load
    before = deviation(scheduler, 50)
    network.to(torch.float16)
    assert deviation(scheduler, 50) == before


@pytest.mark.parametrize("cls", EVERY)
def test_errors_teach(cls):
    scheduler = unclipped(cls)
    for n in (0, -1, T + 1):
        with pytest.raises(ValueError, match=rf"num_inference_steps={n}: .* 1 to 1000"):
            scheduler.set_timesteps(n)
    scheduler.set_timesteps(10)
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"timestep 123 is not .*call set_timesteps"):
        scheduler.step(x, 123, x)
    if cls is not DDPMScheduler:
        with pytest.raises(ValueError, match="steps_offset=1000"):
            cls(T, steps_offset=T)


def test_further_errors_teach():
    x = torch.ones(1, 1, 2, 2)
    ddim, pndm = DDIMScheduler(T), PNDMScheduler(T)
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        ddim.step(x, 999, x, eta=1.5)
    ddim.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep 5 is not"):
        ddim.reversed_step(x, 5, x)
    pndm.set_timesteps(50)
    pndm.step(x, 980, x)
    with pytest.raises(ValueError, match="900 is out of turn, 970 comes next"):
        pndm.step(x, 900, x)
    with pytest.raises(ValueError, match="input_img_size_numel"):
        RFlowScheduler(T, use_timestep_transform=True).set_timesteps(10)


# -- rectified flow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1000, 100, 50, 30, 7, 1])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("transform", [True, False])
@pytest.mark.parametrize("offset", [0, 3])
def test_time_adds_up_to_one(n, discrete, transform, offset):
    """So a constant velocity of one moves the sample by one, whether the next time is given or looked up."""
    scheduler = RFlowScheduler(
        T, use_discrete_timesteps=discrete, use_timestep_transform=transform, transform_scale=1.4, steps_offset=offset
    )
    scheduler.set_timesteps(n, input_img_size_numel=64**3)
    assert scheduler.timesteps.dtype is (torch.int64 if discrete else torch.float64)
    assert scheduler.timesteps[-1] > offset
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    assert DiffusionInferer(scheduler).sample(x, constant(1.0), verbose=False).item() == pytest.approx(1, abs=1e-12)
    assert walk(scheduler, x, constant(1.0)).item() == pytest.approx(1, abs=1e-12)


def test_the_sum_of_time_catches_what_monai_does():
    scheduler = monai.RFlowScheduler(T, use_discrete_timesteps=False, use_timestep_transform=True)
    scheduler.set_timesteps(100, input_img_size_numel=64**3)
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    assert DiffusionInferer(scheduler).sample(x, constant(1.0), verbose=False).item() > 1.01


def shifted(t, k):
    return k * t / (1 + (k - 1) * t)


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_times_shift_with_the_volume_and_the_scale(scale):
    """At k = scale (64^3 / 32^3)^(1/3) = 2 scale the ratio of noise to data is k times that of the even grid."""
    options = {"use_discrete_timesteps": False, "use_timestep_transform": True, "transform_scale": scale}
    scheduler = RFlowScheduler(T, **options)
    scheduler.set_timesteps(30, input_img_size_numel=torch.tensor(64**3))
    np.testing.assert_allclose(scheduler.timesteps / T, shifted(np.arange(30, 0, -1) / 30, 2 * scale), rtol=1e-14)
    x = torch.empty(1000, 1, 64, 1, 64 * 64)
    torch.manual_seed(0)
    t = scheduler.sample_timesteps(x)
    torch.manual_seed(0)
    np.testing.assert_allclose(t / T, shifted(torch.rand(1000).double(), 2 * scale), rtol=1e-5)


@pytest.mark.parametrize("method", ["uniform", "logit-normal"])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("transform", [True, False])
def test_training_times_are_monai_s(method, discrete, transform):
    drawn = []
    for package in (schedulers, monai):
        scheduler = package.RFlowScheduler(T, discrete, method, use_timestep_transform=transform)
        torch.manual_seed(0)
        drawn.append(scheduler.sample_timesteps(torch.empty(100, 1, 40, 48, 40)))
    torch.testing.assert_close(*drawn)
    assert drawn[0].shape == (100,)


def test_a_velocity_network_s_target_steps_back_to_the_data():
    scheduler = RFlowScheduler(T)
    x0, eps = torch.randn(2, 2, 1, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([700.0, 250.5])
    x = scheduler.add_noise(x0, eps, t)
    for i in range(2):
        moved, clean = scheduler.step(scheduler.get_velocity(x0, eps, t), t[i], x, 0)
        torch.testing.assert_close(moved[i], x0[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(clean[i], x0[i], rtol=0, atol=1e-12)


# -- diffusers, where its grid and its steps agree with each other --------------------------------------------------


def diffusers_walk(scheduler, x, model, **options):
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.reshape(1)), t, x, **options).prev_sample
    return x


START = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 4, 4, 4)


@pytest.mark.parametrize("n", [1000, 501, 300, 50])
def test_diffusers_ddpm(n):
    """Its DDPM looks the next time up in its grid, as here."""
    theirs = pytest.importorskip("diffusers").DDPMScheduler(T, clip_sample=False, timestep_spacing="linspace")
    ours = unclipped(DDPMScheduler)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(n)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    samples = (
        loop(scheduler, START, exact(ours), generator=torch.Generator().manual_seed(0))
        for loop, scheduler in ((walk, ours), (diffusers_walk, theirs))
    )
    torch.testing.assert_close(*samples, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [500, 250, 50])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_diffusers_ddim(n, eta):
    """Its DDIM steps by T // n, which is right on its "leading" grid where n divides T, and wrong on "linspace"."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(T, clip_sample=False, timestep_spacing="leading")
    ours = unclipped(DDIMScheduler)
    theirs.set_timesteps(n)
    ours.timesteps = theirs.timesteps
    samples = (
        loop(scheduler, START, exact(ours), eta=eta, generator=torch.Generator().manual_seed(0))
        for loop, scheduler in ((walk, ours), (diffusers_walk, theirs))
    )
    torch.testing.assert_close(*samples, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [500, 250, 50])
@pytest.mark.parametrize("skip", [True, False])
def test_diffusers_pndm(n, skip):
    """Its PNDM is right where n divides T and half a step is an integer."""
    theirs = pytest.importorskip("diffusers").PNDMScheduler(T, skip_prk_steps=skip, timestep_spacing="leading")
    ours = PNDMScheduler(T, skip_prk_steps=skip)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(n)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    torch.testing.assert_close(walk(ours, START, bent), diffusers_walk(theirs, START, bent), rtol=1e-5, atol=1e-5)
