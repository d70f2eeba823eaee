"""Damaged files: no crash, and nothing of the patient in what is released all the same."""

import random
from io import BytesIO

import pytest
from deidentify_support import KEY
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from voxscore.deidentify import Deidentifier, Refusal, find_profile
from voxscore.deidentify.pseudonyms import Pseudonyms
from voxscore.volumes.quiet import quiet

WORD = "QZXCANARY"


def original(syntax):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2"
    dataset.PatientName = dataset.ReferringPhysicianName = dataset.PhysiciansOfRecord = f"{WORD}^JANE"
    dataset.PatientID = dataset.AccessionNumber = WORD
    dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20200103", "101112", "CT"
    dataset.StudyDescription, dataset.ImageComments = f"CT chest {WORD}", f"{WORD} again"
    dataset.Manufacturer, dataset.SliceThickness, dataset.WindowCenter = "SIEMENS", "1.5", ["40", "400"]
    dataset.SpecificCharacterSet, dataset.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY"]
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, "1.2.3.4"
    item.PersonName, item.TextValue = f"{WORD}^JOHN", f"seen by {WORD}"
    dataset.ReferencedInstanceSequence = Sequence([item])
    dataset.private_block(0x0009, WORD, create=True).add_new(1, "LO", WORD)
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(16)
    dataset.file_meta, dataset.preamble = FileMetaDataset(), WORD.encode().ljust(128, b"\0")
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    with quiet():
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def mutated(content, draw):
    """A few damages that leave the words as they are: single bytes, cuts, blocks moved, doubled or lost."""
    data = bytearray(content)
    words = [i for i in range(len(content)) if content.startswith(WORD.encode(), i)]
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(132, len(data))
        kind = draw.randrange(5)
        if kind < 2 and not any(word <= at < word + len(WORD) for word in words):
            data[at] = draw.randrange(256)
        elif kind == 2:
            size = draw.randint(1, 24)
            data[at:at] = data[at - size : at]
        elif kind == 3 and draw.random() < 0.5:
            del data[max(at, 300) :]
        else:
            size = 2 * draw.randint(1, 8)
            block = data[at : at + size]
            del data[at : at + size]
            to = draw.randrange(132, len(data))
            data[to:to] = block
        if len(data) < 200:
            break
    return bytes(data)


@pytest.mark.parametrize("profile", ["research", "basic"])
def test_300_damaged_files_neither_crash_nor_leak(profile):
    one = Deidentifier(find_profile(profile), Pseudonyms(KEY))
    draw = random.Random(7)
    whole = [original(syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)]
    for content in whole:
        released, _ = one.dicom(content)
        assert WORD.encode() not in released
    out, reasons = 0, set()
    for i in range(150):
        content = mutated(whole[i % 2], draw)
        try:
            released, _ = one.dicom(content)
        except Refusal as refusal:
            reasons.add(refusal.reason)
            continue
        out += 1
        assert WORD.encode() not in released, f"file {i}"
        with quiet():
            dcmread(BytesIO(released))
    assert 5 < out < 150
    assert not any(WORD in reason for reason in reasons)
