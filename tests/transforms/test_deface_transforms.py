"""Deface: MONAI's conventions around the face removal of voxscore.deidentify."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

from voxscore.errors import UserError
from voxscore.transforms import Deface, DefaceD, Defaced, DefaceDict

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from deface import on_spacing


@pytest.fixture(scope="module")
def head():
    return on_spacing((4.0, 4.0, 4.0))


def tensor(array, head, **meta):
    return MetaTensor(torch.as_tensor(array, dtype=torch.float32)[None], affine=torch.as_tensor(head.affine), meta=meta)


def test_face_goes_brain_stays_and_the_record_says_so(head):
    image = tensor(head.image, head, note="kept")
    out = Deface()(image, tensor(head.brain, head))
    changed = (out != image)[0].numpy()
    assert not changed[head.brain].any()
    assert (out[0].numpy()[head.face] == out.meta["deface"]["fill"]).mean() > 0.99
    assert out.meta["deface"]["brain_removed"] == 0
    assert out.meta["deface"]["brain"] == "given"
    assert out.meta["note"] == "kept"
    assert "deface" not in image.meta
    assert torch.equal(image[0], torch.as_tensor(head.image))
    torch.testing.assert_close(out.affine, image.affine)


def test_array_tensor_and_metatensor_agree(head):
    brain = head.brain[None]
    expected = Deface()(tensor(head.image, head), brain)
    for image in (head.image[None], torch.as_tensor(head.image)[None]):
        assert torch.equal(Deface()(image, brain, head.affine), expected)


def test_each_channel_has_its_own_background(head):
    channels = np.stack([head.image, head.image + 500])
    out = Deface()(channels, head.brain[None], head.affine).numpy()
    region = out[0] != channels[0]
    assert np.median(out[1][region]) == pytest.approx(500 + np.median(out[0][region]), abs=2)
    torch.testing.assert_close(out[1][~region] - 500, out[0][~region])


def test_dictionary_version(head):
    assert Defaced is DefaceD is DefaceDict
    data = {"image": tensor(head.image, head), "brain": tensor(head.brain, head), "other": 1}
    out = Defaced("image", "brain")(data)
    assert torch.equal(out["image"], Deface()(data["image"], data["brain"]))
    assert out["brain"] is data["brain"]
    assert "deface" not in data["image"].meta
    with pytest.raises(KeyError):
        Defaced("absent", "brain")(data)
    assert Defaced("absent", "brain", allow_missing_keys=True)(data) == data


def test_orientation_does_not_matter(head):
    data = {"image": tensor(head.image, head), "brain": tensor(head.brain, head)}
    there = Orientationd(("image", "brain"), "PIL", labels=None)
    back = Orientationd("image", "RAS", labels=None)
    turned = Compose([there, Defaced("image", "brain"), back])(data)["image"]
    assert torch.equal(turned, Defaced("image", "brain")(data)["image"])


def test_refusals(head):
    image, brain = tensor(head.image, head), tensor(head.brain, head)
    with pytest.raises(UserError, match="where its front is"):
        Deface()(head.image[None], head.brain[None])
    with pytest.raises(UserError, match="dimensions"):
        Deface()(image[0], brain)
    elsewhere = brain.clone()
    elsewhere.affine = brain.affine + torch.tensor([[0, 0, 0, 5.0]] + [[0.0] * 4] * 3)
    with pytest.raises(UserError, match="lies elsewhere"):
        Deface()(image, elsewhere)
    with pytest.raises(UserError, match="not one channel"):
        Deface()(image, head.brain[None].repeat(2, 0))
    broken = image.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        Deface()(broken, brain)
    with pytest.raises(UserError, match="which no brain has"):
        Deface()(image, torch.zeros_like(brain))


def test_builds_from_a_configuration():
    config = {"d": {"_target_": "voxscore.transforms.Defaced", "keys": ["image"], "mask_key": "brain", "margin": 6.0}}
    assert ConfigParser(config).get_parsed_content("d").deface.margin == 6.0
