"""Sampling behind MONAI's inferer interface: the same volumes as the loop itself, from engines and from configs."""

from functools import partial

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Generator

from voxscore.diffusion import (
    EDM,
    Ancestral,
    Denoiser,
    DiagonalCovariance,
    Discrete,
    DPMSolver,
    Euler,
    Flow,
    Gaussian,
    GaussianDenoiser,
    MomentMatching,
    NetDenoiser,
    UniPC,
    VolumeNoise,
    karras_times,
    log_uniform_times,
    sample,
    uniform_times,
)
from voxscore.inferers import (
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    RFlowScheduler,
    SamplerInferer,
    checkpoint_denoiser,
    unet_denoiser,
    volume_seed,
)

SIZE = (1, 4, 4, 4)


def exact(path=None):
    """The denoiser of N(1, 0.5^2) on small 3-D volumes."""
    return GaussianDenoiser(path or EDM(), Gaussian(torch.ones(SIZE), DiagonalCovariance(torch.full(SIZE, 0.25))))


class ExactNet(torch.nn.Module):
    """A network that predicts the clean volume, as well as can be."""

    def forward(self, x, t):
        return exact()(x, t)


def inferer(**kwargs):
    arguments = {"times": karras_times(EDM(), 6, clean=True), "sampler": Ancestral(), "full_precision": True}
    return SamplerInferer(partial(NetDenoiser, path=EDM(), prediction="x0"), **{**arguments, **kwargs})


def by_hand(seed, denoiser, sampler, times):
    generators = [Generator().manual_seed(seed)]
    x = denoiser.path.sigma(times[0]) * VolumeNoise(generators, 1)(torch.empty(1, *SIZE))
    return sample(denoiser, x, times, sampler, generators)


def test_each_volume_is_the_loops_and_has_a_seed_of_its_own():
    run = inferer(seed=7)
    y = torch.cat([run(torch.zeros(2, *SIZE), ExactNet()), run(torch.zeros(1, *SIZE), ExactNet())])
    for k in range(3):
        torch.testing.assert_close(
            y[k : k + 1], by_hand(volume_seed(7, k), exact(), Ancestral(), run.times), rtol=1e-5, atol=1e-5
        )


def test_seeds_can_be_given():
    y = inferer()(torch.zeros(2, *SIZE), ExactNet(), seeds=[volume_seed(5, 0)] * 2)
    torch.testing.assert_close(y[0], y[1], rtol=0, atol=0)
    torch.testing.assert_close(y[:1], inferer(seed=5)(torch.zeros(1, *SIZE), ExactNet()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="got 1 for a batch of 2"):
        inferer()(torch.zeros(2, *SIZE), ExactNet(), seeds=[5])


def test_runs_share_no_volume():
    seeds = [volume_seed(seed, k) for seed in range(20) for k in range(50)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_metadata_and_channels():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    image = MetaTensor(torch.zeros(1, 3, 4, 4, 4), affine=affine)
    y = inferer(channels=1)(image, ExactNet())
    assert y.shape == (1, *SIZE)
    assert y.dtype is torch.float32
    assert torch.equal(y.affine, affine)


def test_a_posterior_sees_the_input_and_may_take_gradients_under_no_grad():
    """The input is a noisy measurement of every voxel: the posterior's variance is 1 / (1/0.25 + 1/0.25)."""
    y = 1 + 0.5 * torch.randn(4, *SIZE, generator=Generator().manual_seed(0))
    run = inferer(
        sampler=UniPC(3),
        times=log_uniform_times(EDM(), 24, clean=True),
        posterior=lambda denoiser, y: MomentMatching(denoiser, lambda v: v, y, 0.5),
    )
    with torch.no_grad():
        x = run(y, ExactNet())
    standardised = (x - (1 + y) / 2) / 0.125**0.5
    assert abs(float(standardised.mean())) < 4 / 256**0.5
    assert abs(float(standardised.std()) - 1) < 4 / (2 * 256) ** 0.5


def test_an_evaluator_runs_it():
    data = [{"image": torch.zeros(SIZE)} for _ in range(3)]
    results = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=ExactNet(),
        inferer=inferer(),
        postprocessing=lambda item: results.append(item["pred"]) or item,
    )
    evaluator.run()
    expected = inferer()(torch.zeros(3, *SIZE), ExactNet())
    torch.testing.assert_close(torch.stack(results), expected, rtol=1e-5, atol=1e-5)


def test_a_config_of_literals_builds_it():
    parser = ConfigParser(
        {
            "path": {"_target_": "voxscore.diffusion.EDM"},
            "inferer": {
                "_target_": "voxscore.inferers.SamplerInferer",
                "denoiser": {
                    "_target_": "voxscore.diffusion.NetDenoiser",
                    "_mode_": "callable",
                    "path": "@path",
                    "prediction": "x0",
                },
                "times": {"_target_": "voxscore.diffusion.karras_times", "path": "@path", "n": 6, "clean": True},
                "sampler": {"_target_": "voxscore.diffusion.Ancestral"},
                "full_precision": True,
            },
        }
    )
    y = parser.get_parsed_content("inferer")(torch.zeros(1, *SIZE), ExactNet())
    torch.testing.assert_close(y, inferer()(torch.zeros(1, *SIZE), ExactNet()), rtol=0, atol=0)


def test_a_denoiser_is_taken_as_it_is_and_conditions_reach_the_network():
    torch.testing.assert_close(
        inferer()(torch.zeros(1, *SIZE), exact()), inferer()(torch.zeros(1, *SIZE), ExactNet()), rtol=1e-5, atol=1e-5
    )

    class Shifted(torch.nn.Module):
        def forward(self, x, t, shift):
            return torch.full_like(x, shift)

    y = inferer()(torch.zeros(1, *SIZE), Shifted(), shift=3.0)
    torch.testing.assert_close(y, torch.full((1, *SIZE), 3.0))


def test_progress_is_shown_when_asked(capsys):
    inferer(progress=True)(torch.zeros(1, *SIZE), ExactNet())
    shown = capsys.readouterr()
    assert "Sampling" in shown.out + shown.err
    inferer()(torch.zeros(1, *SIZE), ExactNet())
    quiet = capsys.readouterr()
    assert quiet.out + quiet.err == ""


# A checkpoint of MONAI as a denoiser. The network is the best there is for N(0, 0.3^2), in what the scheduler predicts.


def best_network(scheduler):
    def network(x, timesteps):
        if isinstance(scheduler, RFlowScheduler):
            t = (timesteps / 1000).reshape(-1, 1, 1, 1, 1)
            alpha, sigma = 1 - t, t
        else:
            a = scheduler.alphas_cumprod.double()[timesteps.round().long()].reshape(-1, 1, 1, 1, 1)
            alpha, sigma = a.sqrt(), (1 - a).sqrt()
        d = 0.09 * alpha / (0.09 * alpha**2 + sigma**2) * x
        eps = (x - alpha * d) / sigma
        kind = "flow" if isinstance(scheduler, RFlowScheduler) else str(scheduler.prediction_type)
        answers = {"epsilon": eps, "sample": d, "v_prediction": alpha * eps - sigma * d, "flow": d - eps}
        return answers[kind]

    return network


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(1000),
        DDIMScheduler(1000, prediction_type="v_prediction"),
        DDIMScheduler(1000, prediction_type="sample", schedule="scaled_linear_beta"),
        PNDMScheduler(1000, schedule="cosine"),
        RFlowScheduler(1000),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_checkpoint_is_the_exact_denoiser_of_its_data(scheduler):
    denoiser = checkpoint_denoiser(best_network(scheduler), scheduler)
    truth = GaussianDenoiser(denoiser.path, Gaussian(torch.zeros(SIZE), DiagonalCovariance(torch.full(SIZE, 0.09))))
    x = torch.randn(3, *SIZE, generator=Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.05, 0.4, 0.99] if denoiser.path == Flow() else [5.0, 400.0, 990.0], dtype=torch.float64)
    # The scheduler keeps its table in float32.
    torch.testing.assert_close(denoiser(x, t), truth(x, t), rtol=1e-4, atol=1e-5)


def test_few_steps_of_a_checkpoint():
    """A run multiplies its start by a number, the standard deviation of the samples: 20 steps are enough.

    Only integer times, as the network above knows no others.
    """
    scheduler = DDPMScheduler(1000)
    denoiser = checkpoint_denoiser(best_network(scheduler), scheduler)
    times = log_uniform_times(denoiser.path, 20, clean=True).round()
    one = torch.ones(1, *SIZE, dtype=torch.float64)
    gain = sample(denoiser, one, times, UniPC(3))
    assert float(gain.mean()) == pytest.approx(0.3, abs=2e-3)


def unet():
    torch.manual_seed(0)
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(8, 8),
        num_res_blocks=1,
        attention_levels=(False, False),
        norm_num_groups=4,
        num_head_channels=4,
    ).eval()


def test_a_diffusion_unet_samples_in_one_line():
    network = unet()
    run = SamplerInferer(lambda net: unet_denoiser(net, Flow()), uniform_times(Flow(), 3), Euler(), full_precision=True)
    y = run(torch.zeros(2, 1, 8, 8, 8), network)
    generators = [Generator().manual_seed(volume_seed(0, k)) for k in (0, 1)]
    denoiser, x = unet_denoiser(network, Flow()), VolumeNoise(generators, 2)(y)
    torch.testing.assert_close(y, sample(denoiser, x, uniform_times(Flow(), 3), Euler()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_the_times_a_unet_is_told_keep_their_rank(path):
    """The effective rank (of 64) of its embedding over a time grid; of EDM's ln(sigma)/4 it is hardly above 1."""
    told = []

    def network(x, timesteps):
        told.append(timesteps)
        return x

    times = karras_times(path, 255, ratio_min=0.002, ratio_max=80.0)
    unet_denoiser(network, path)(torch.zeros(256, 1, 1), times)

    def rank(t):
        s = torch.linalg.svdvals(get_timestep_embedding(t.float(), 64)).square()
        p = s / s.sum()
        return float(torch.exp(-(p * p.clamp(min=1e-30).log()).sum()))

    assert rank(told[0]) > 15
    assert rank(path.ratio(times).log() / 4) < 1.5
    assert 0 < told[0].min() < told[0].max() < 1000


def test_pure_noise_and_clean_data_have_a_time_too():
    told = []
    unet_denoiser(lambda x, t: told.append(t) or x, Flow(), "x0")(torch.zeros(2, 1, 1), torch.tensor([0.0, 1.0]))
    assert told[0].tolist() == [0.0, 1000.0]


def test_volumes_of_a_checkpoint_in_three_dimensions():
    """DPM-Solver++ on the table of a DDPM, 20 steps, through the inferer: the right spread, a seed per volume."""
    scheduler = DDPMScheduler(1000)
    path = Discrete(scheduler.betas)
    run = SamplerInferer(
        lambda net: checkpoint_denoiser(net, scheduler),
        log_uniform_times(path, 20, clean=True).round(),
        DPMSolver(3),
        full_precision=True,
    )
    y = run(torch.zeros(8, 1, 8, 8, 8), best_network(scheduler))
    assert abs(float(y.std()) / 0.3 - 1) < 4 / (2 * 4096) ** 0.5 + 0.01


def test_a_network_of_another_shape_is_an_error():
    class Wrong(Denoiser):
        def forward(self, x, t):
            return x[:, :0]

    with pytest.raises(ValueError, match="the denoiser made"):
        inferer()(torch.zeros(1, *SIZE), Wrong(EDM()))


def test_a_learned_variance_is_left_to_ddpm():
    """Such a checkpoint has twice the channels; the first half is its mean."""
    scheduler = DDPMScheduler(1000, variance_type="learned_range")
    best = best_network(scheduler)
    twice = checkpoint_denoiser(lambda x, t: torch.cat([best(x, t), torch.ones_like(x)], 1), scheduler)
    x, t = torch.randn(2, *SIZE, generator=Generator().manual_seed(0)), torch.tensor(400.0)
    torch.testing.assert_close(twice(x, t), checkpoint_denoiser(best, DDPMScheduler(1000))(x, t))
