"""The loss is its formula; teachers teach and are not taught; heads attach to any U-shaped network."""

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet, DynUNet

from voxscore.networks import DeepHeads, DeepOutputs, DualSelfDistillationLoss, ScoreUNet, SelfDistilled
from voxscore.networks.self_distillation import distillation_kl

SIZE = (1, 3, 4, 4, 4)


def logits(n, **kwargs):
    return tuple(torch.randn(SIZE, dtype=torch.float64, **kwargs) for _ in range(n))


def no_truth(prediction, target):
    return prediction.sum() * 0


def test_kl_is_zero_iff_equal():
    torch.manual_seed(0)
    a, b = logits(2)
    assert distillation_kl(a, a + 7.0, 3.0).abs() < 1e-6  # softmax does not see a constant
    assert distillation_kl(a, b, 3.0) > 0.1
    assert distillation_kl(a, a + 1e-2 * b, 3.0) > 0


def test_kl_of_two_known_distributions():
    p, q, t = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4]), 3.0
    teacher, student = (t * v.log().reshape(1, 3, 1, 1, 1).expand(2, 3, 2, 2, 2) for v in (p, q))
    expected = t**2 * (p * (p / q).log()).sum()
    torch.testing.assert_close(distillation_kl(teacher, student, t), expected)


def test_loss_is_its_formula():
    torch.manual_seed(0)
    outputs = DeepOutputs(logits(1)[0], logits(3), logits(2))
    target = torch.randint(0, 3, (1, 1, 4, 4, 4))
    truth = DiceCELoss(to_onehot_y=True, softmax=True)
    loss = DualSelfDistillationLoss(truth, weight=0.5, temperature=2.0)
    expected = sum(truth(z.float(), target) for z in (outputs.main, *outputs.decoder))
    for teacher, *students in (outputs.decoder, outputs.encoder):
        p = (teacher / 2).softmax(1)
        for student in students:
            expected = expected + 0.5 * 4 * (p * (p / (student / 2).softmax(1)).log()).sum(1).mean()
    torch.testing.assert_close(loss(outputs, target).double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_teacher_gets_no_gradient_when_detached(detach):
    torch.manual_seed(0)
    outputs = DeepOutputs(*logits(1), logits(2, requires_grad=True), logits(2, requires_grad=True))
    DualSelfDistillationLoss(no_truth, detach_teacher=detach)(outputs, outputs.main).backward()
    for teacher, student in (outputs.decoder, outputs.encoder):
        assert student.grad.abs().sum() > 0
        assert (teacher.grad is None or teacher.grad.abs().sum() == 0) == detach


def test_plain_output_gets_the_segmentation_loss():
    z, target = torch.randn(SIZE), torch.randint(0, 3, (1, 1, 4, 4, 4))
    truth = DiceCELoss(to_onehot_y=True, softmax=True)
    torch.testing.assert_close(DualSelfDistillationLoss(truth)(z, target), truth(z, target))


def test_equal_levels_share_a_head():
    heads = DeepHeads(3, encoder=[(16, 1), (8, 0)], decoder=[(16, 1), (24, 2)], out_channels=3)
    assert set(heads.heads) == {"16x1", "8x0", "24x2"}
    # 1x1 convolution C K + K, and one 2x2x2 transposed convolution K K 8 + K however many doublings.
    assert sum(p.numel() for p in heads.parameters()) == sum((c + 1) * 3 for c in (16, 8, 24)) + 2 * (72 + 3)


def test_a_fresh_head_repeats_its_coarse_logits():
    head = DeepHeads(3, [(4, 2)], [(4, 2)], 2).heads["4x2"]
    x = torch.randn(1, 4, 2, 2, 2)
    coarse = head.classify(x)
    repeated = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.testing.assert_close(head(x), repeated)


def dynunet():
    network = DynUNet(3, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 24, 32])
    encoder = [("downsamples.1", 24, 2), ("downsamples.0", 16, 1), ("input_block", 8, 0)]
    decoder = [("upsamples.1", 16, 1), ("upsamples.0", 24, 2), ("bottleneck", 32, 3)]
    return network, encoder, decoder


def basicunet():
    network = BasicUNet(3, 1, 3, features=(8, 8, 16, 24, 32, 8))
    encoder = [("down_3", 24, 3), ("down_2", 16, 2), ("down_1", 8, 1), ("conv_0", 8, 0)]
    decoder = [("upcat_2", 8, 1), ("upcat_3", 16, 2), ("upcat_4", 24, 3), ("down_4", 32, 4)]
    return network, encoder, decoder


@pytest.mark.parametrize("host", [dynunet, basicunet])
def test_attaches_to_monai_networks(host):
    torch.manual_seed(0)
    network, encoder, decoder = host()
    before = network.eval()(x := torch.randn(1, 1, 32, 32, 32)).detach()
    levels = [[(c, n) for _, c, n in side] for side in (encoder, decoder)]
    distilled = SelfDistilled(
        network, [n for n, *_ in encoder], [n for n, *_ in decoder], DeepHeads(3, *levels, out_channels=3)
    )
    torch.testing.assert_close(distilled.eval()(x), before, rtol=0, atol=0)
    outputs = distilled.train()(x)
    assert {z.shape for z in (*outputs.decoder, *outputs.encoder)} == {(1, 3, 32, 32, 32)}
    loss = DualSelfDistillationLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    loss(outputs, torch.randint(0, 3, (1, 1, 32, 32, 32))).backward()
    assert [n for n, p in distilled.named_parameters() if p.grad is None] == []
    assert all(not m._forward_hooks for m in network.modules())


def test_unknown_submodule_is_named():
    with pytest.raises(ValueError, match=r"no submodule \['bottom'\]"):
        SelfDistilled(ScoreUNet(3, 1, 2, (8, 16)), ["encoder.0"], ["bottom"], None)
