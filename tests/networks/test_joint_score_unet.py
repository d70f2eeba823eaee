"""The network of image and label is a `ScoreUNet`, and of an image alone it knows what it was trained to say of it."""

import pytest
import torch

from voxscore.diffusion import EDM, Group, JointNetDenoiser, condition
from voxscore.networks import DeepOutputs, JointScoreUNet, ScoreUNet

CHANNELS = (8, 8, 16)
IMAGE, CLASSES = 2, 3
SIZE = (5, 6, 9)


def joint(dims=3, **kwargs):
    """With no weight left at 0, so that everything in it acts."""
    torch.manual_seed(0)
    network = JointScoreUNet(dims, IMAGE, CLASSES, channels=CHANNELS, cond_features=3, **kwargs)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape)
    return network


def volumes(channels, dims=3, batch=2):
    return torch.randn(batch, channels, *SIZE[:dims], generator=torch.Generator().manual_seed(1))


def tensors(outputs):
    return (outputs.main, *outputs.decoder, *outputs.encoder)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("ratio_max", [80.0, 5.0])
@pytest.mark.parametrize("cond", [None, torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]])])
def test_an_image_alone_is_a_clean_image_beside_an_unknown_label(dims, ratio_max, cond):
    network, image = joint(dims, ratio_max=ratio_max).eval(), volumes(IMAGE, dims)
    state = torch.cat([image, torch.zeros(2, CLASSES, *SIZE[:dims])], dim=1)
    expected = network(state, torch.tensor([[0.0, ratio_max]] * 2), cond)[:, IMAGE:]
    torch.testing.assert_close(network(image, cond=cond), expected, rtol=1e-5, atol=1e-6)
    other = network(state, torch.tensor([[0.0, ratio_max / 2]] * 2), cond)[:, IMAGE:]
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"deep_heads": True}, {"position": True}, {"squeeze_excitation": None, "checkpointing": True}]
)
def test_with_noise_levels_it_is_a_score_unet_of_the_same_names(options):
    network = joint(**options)
    plain = ScoreUNet(3, 5, 5, CHANNELS, n_times=2, cond_features=3, **options)
    assert network.checkpointing == plain.checkpointing
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    x, t, cond = volumes(IMAGE + CLASSES), torch.tensor([[0.3, 2.0], [5.0, 0.0]]), torch.ones(2, 3)
    torch.testing.assert_close(network(x, t, cond), plain(x, t, cond), rtol=0, atol=0)
    assert torch.equal(network.eval()(x, t, cond), plain.eval()(x, t, cond))


def test_heads_speak_of_the_label_in_training_only():
    network, image = joint(deep_heads=True), volumes(IMAGE)
    state = torch.cat([image, torch.zeros(2, CLASSES, *SIZE)], dim=1)
    found, whole = network(image), network(state, torch.tensor([0.0, 80.0]))
    assert isinstance(found, DeepOutputs)
    assert [len(side) for side in found[1:]] == [len(side) for side in whole[1:]] == [2, 2]
    for z, all_channels in zip(tensors(found), tensors(whole), strict=True):
        assert torch.equal(z, all_channels[:, IMAGE:])
    torch.testing.assert_close(network.eval()(image), found.main)


def test_it_is_the_denoiser_of_an_unknown_label_given_the_image():
    """In the units of the network: an image of standard deviation 1 is told to it as it is."""
    network, image, path = joint().eval(), volumes(IMAGE), EDM()
    groups = [Group("image", IMAGE, sigma_data=1.0), Group("label", CLASSES, categorical=True, sigma_data=0.3)]
    label = condition(JointNetDenoiser(network, path, groups), "image", image)
    probability = label(torch.zeros(2, CLASSES, *SIZE), path.t_noise)
    torch.testing.assert_close(network(image).softmax(1), probability, rtol=1e-5, atol=1e-6)


def test_channels_of_the_correlation_widths_follow_those_of_the_classes():
    network, image = joint(correlations=2), volumes(IMAGE)
    state = torch.cat([image, torch.zeros(2, CLASSES, *SIZE)], dim=1)
    whole = network.eval()(state, torch.tensor([0.0, 80.0]))
    assert whole.shape == (2, IMAGE + CLASSES + 2, *SIZE)
    torch.testing.assert_close(network(image), whole[:, IMAGE : IMAGE + CLASSES], rtol=1e-5, atol=1e-6)


def test_a_joint_state_without_levels_is_refused():
    with pytest.raises(ValueError, match=r"without t it takes an image of 2 channels, got \(2, 5, 5, 6, 9\)"):
        joint()(volumes(IMAGE + CLASSES))


def test_of_an_image_alone_the_estimate_is_the_image():
    torch.manual_seed(0)
    network = JointScoreUNet(3, IMAGE, CLASSES, channels=CHANNELS, image_estimate=True).eval()
    torch.nn.init.normal_(network.head[-1].weight)
    image = volumes(IMAGE)
    state = torch.cat([image, image, torch.zeros(2, CLASSES, *SIZE)], dim=1)
    expected = network(state, torch.tensor([[0.0, 80.0]] * 2))[:, IMAGE:]
    torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-6)
