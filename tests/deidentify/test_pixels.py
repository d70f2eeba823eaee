"""Burned-in text: blanked exactly where it should be, in every frame and colour space; refused where nobody knows."""

import json

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from voxscore.deidentify import PixelCleaner, PixelRule, Refusal, read_rules
from voxscore.errors import UserError

FRAMES, ROWS, COLUMNS = 3, 8, 10
BOX = (2, 1, 6, 4)


def image(photometric="MONOCHROME2", samples=1, planar=0, **more):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.3.1", "US"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = ROWS, COLUMNS, FRAMES
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    if samples > 1:
        dataset.PlanarConfiguration = planar
    size = 2 if photometric == "YBR_FULL_422" else samples
    dataset.PixelData = np.random.default_rng(0).integers(1, 255, FRAMES * ROWS * COLUMNS * size, np.uint8).tobytes()
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def pixels(dataset):
    """(frames, rows, columns, samples), whatever the order they are stored in."""
    samples = dataset.SamplesPerPixel
    words = np.frombuffer(dataset.PixelData, np.uint8)
    if samples > 1 and dataset.PlanarConfiguration == 1:
        return words.reshape(FRAMES, samples, ROWS, COLUMNS).transpose(0, 2, 3, 1)
    return words.reshape(FRAMES, ROWS, COLUMNS, samples)


def inside():
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    return mask


RULE = PixelRule({"Modality": "US", "Rows": ROWS}, (BOX,))


@pytest.mark.parametrize(
    ("photometric", "samples", "planar", "black"),
    [
        ("MONOCHROME2", 1, 0, [0]),
        ("MONOCHROME1", 1, 0, [255]),
        ("PALETTE COLOR", 1, 0, [0]),
        ("RGB", 3, 0, [0, 0, 0]),
        ("RGB", 3, 1, [0, 0, 0]),
        ("YBR_FULL", 3, 0, [0, 128, 128]),
    ],
)
def test_boxes_are_black_in_every_frame_and_the_rest_is_untouched(photometric, samples, planar, black):
    dataset = image(photometric, samples, planar)
    before = pixels(dataset)
    assert PixelCleaner([RULE]).clean(dataset)
    after = pixels(dataset)
    assert (after[:, inside()] == black).all()
    assert (after[:, ~inside()] == before[:, ~inside()]).all()


def test_subsampled_colour():
    dataset = image("YBR_FULL_422", 3)
    before = np.frombuffer(dataset.PixelData, np.uint8).reshape(FRAMES, ROWS, COLUMNS // 2, 4)
    PixelCleaner([RULE]).clean(dataset)
    after = np.frombuffer(dataset.PixelData, np.uint8).reshape(before.shape)
    pairs = inside()[:, 0::2]
    assert (after[:, pairs] == [0, 0, 128, 128]).all()
    assert (after[:, ~pairs] == before[:, ~pairs]).all()


def test_ultrasound_keeps_its_regions_alone():
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = BOX[0], BOX[1]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = BOX[2] - 1, BOX[3] - 1
    dataset = image(SequenceOfUltrasoundRegions=Sequence([region]))
    before = pixels(dataset)
    assert PixelCleaner().clean(dataset)
    after = pixels(dataset)
    assert (after[:, inside()] == before[:, inside()]).all()
    assert not after[:, ~inside()].any()


def test_compressed_pixels_come_out_plain():
    dataset = image()
    before = pixels(dataset)
    dataset.compress(RLELossless, generate_instance_uid=False)
    PixelCleaner([RULE]).clean(dataset)
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (pixels(dataset)[:, ~inside()] == before[:, ~inside()]).all()
    assert not pixels(dataset)[:, inside()].any()


def test_text_that_a_reader_finds_is_blanked():
    seen = []

    def reader(frame):
        seen.append(frame.shape)
        return [BOX] if len(seen) == 2 else []

    dataset = image()
    assert PixelCleaner(reader=reader).clean(dataset)
    assert seen == [(ROWS, COLUMNS)] * FRAMES
    assert not pixels(dataset)[:, inside()].any()


def test_overlays_of_old_in_unused_bits_are_cleared():
    dataset = image(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT", BitsStored=6, HighBit=5)
    before = pixels(dataset)
    dataset.add_new(0x60000102, "US", 7)
    assert not PixelCleaner().clean(dataset)
    assert (pixels(dataset) == before & 63).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "kind that carries text"),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "kind that carries text"),
        ({"Modality": "XA", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1"}, "kind that carries text"),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "BurnedInAnnotation": "YES"}, "declares text"),
        (
            {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "ImageType": ["DERIVED", "SCREEN SAVE"]},
            "screen capture",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated document"),
    ],
)
def test_likely_text_without_a_rule_is_refused(change, reason):
    with pytest.raises(Refusal, match=reason):
        PixelCleaner().clean(image(**change))
    # An empty rule is a person's word that there is nothing to blank.
    allowed = image(**change)
    before = allowed.PixelData
    assert PixelCleaner([PixelRule({"Rows": ROWS}, ())]).clean(allowed)
    assert allowed.PixelData == before


def test_what_cannot_be_decoded_or_is_too_short_is_refused():
    broken = image()
    broken.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    with pytest.raises(Refusal, match="cannot be decoded"):
        PixelCleaner([RULE]).clean(broken)
    short = image(PixelData=bytes(10))
    with pytest.raises(Refusal, match="fewer pixels"):
        PixelCleaner([RULE]).clean(short)
    padded = image()
    whole = padded.PixelData
    padded.PixelData += b"DOE^JANE"
    PixelCleaner([PixelRule({"Modality": "US"}, ())]).clean(padded)
    assert padded.PixelData == whole


def test_rules_are_read_from_a_file(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([{"match": {"Modality": "US", "Rows": ROWS}, "blank": [list(BOX)]}]))
    assert read_rules(path) == [RULE]
    for wrong in ("nothing", "[1]", '[{"match": {}, "blank": []}]', '[{"match": {"PatientName": "x"}, "blank": []}]',
                  '[{"match": {"Rows": 1}, "blank": [[5, 0, 1, 1]]}]'):  # fmt: skip
        path.write_text(wrong)
        with pytest.raises(UserError, match="no list of pixel rules"):
            read_rules(path)
