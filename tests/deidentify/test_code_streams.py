"""What compressors write beside the image goes, and the image stays: JPEG, JPEG-LS, JPEG 2000, in any fragments."""

import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from deidentify_support import KEY
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_fragments, generate_frames, get_frame
from test_tree import save

from voxscore.deidentify import Deidentifier, Refusal, find_profile
from voxscore.deidentify.code_streams import blank_comments
from voxscore.deidentify.pseudonyms import Pseudonyms
from voxscore.volumes.quiet import quiet

BASELINE, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 80, 90))
SECRET = b"DOE^JANE 4711"
PIXELS = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)


def jpeg(**more):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()  # ImageDescription
    Image.fromarray(PIXELS).save(buffer, "JPEG", comment=SECRET, exif=exif, quality=90, **more)
    return buffer.getvalue()


def jpeg_2000():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG2000", comment=SECRET, no_jp2=True)
    return buffer.getvalue()


def decoded(frame):
    return np.asarray(Image.open(io.BytesIO(frame)))


def split(frames, size):
    """Items of `size` bytes, so that a segment may lie in two, after an empty table of offsets."""
    stream = b"".join(frame + bytes(len(frame) % 2) for frame in frames)
    parts = [stream[k : k + size] for k in range(0, len(stream), size)]
    return b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in [b"", *parts])


@pytest.mark.parametrize(
    ("frame", "syntax"),
    [
        (jpeg(), BASELINE),
        (jpeg(progressive=True), BASELINE),
        (jpeg(restart_marker_rows=1), BASELINE),
        (jpeg_2000(), JPEG_2000),
    ],
    ids=["baseline", "several scans", "restart markers", "JPEG 2000"],
)
def test_comments_go_and_the_image_stays(frame, syntax):
    assert SECRET in frame
    content = encapsulate([frame + SECRET + b"\0", frame])  # and a note behind the first image
    new = blank_comments(content, syntax)
    assert len(new) == len(content)
    assert b"DOE" not in new
    for clean in generate_frames(new, number_of_frames=2):
        np.testing.assert_array_equal(decoded(clean), decoded(frame))
    assert blank_comments(new, syntax) == new
    cut = blank_comments(split([frame, frame], 20), syntax)
    assert b"".join(generate_fragments(cut)) == b"".join(
        generate_fragments(blank_comments(split([frame] * 2, 10**6), syntax))
    )
    assert b"DOE" not in b"".join(generate_fragments(cut))


def test_colours_are_kept():
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(PIXELS, 2, -1)[..., :4], "CMYK").save(buffer, "JPEG")
    assert b"Adobe" in buffer.getvalue()
    new = blank_comments(encapsulate([buffer.getvalue()]), BASELINE)
    np.testing.assert_array_equal(decoded(get_frame(new, 0, number_of_frames=1)), decoded(buffer.getvalue()))


@pytest.mark.parametrize(
    "frame", [b"DOE", b"DOE" + jpeg(), jpeg()[:30], b"\xff\xd8\xff\xfe\xff\xff", b"\xff\xd8\xff\xd8\xff"]
)
def test_what_is_no_code_stream_is_refused(frame):
    for syntax in (BASELINE, JPEG_LS, JPEG_2000):
        with pytest.raises(Refusal, match="not what its transfer syntax says"):
            blank_comments(encapsulate([frame]), syntax)
    with pytest.raises(Refusal):
        blank_comments(frame, BASELINE)


def test_other_syntaxes_are_left_alone():
    assert blank_comments(SECRET, "1.2.840.10008.1.2.5") == SECRET


def test_a_file_loses_its_comments(tmp_path):
    def compress(dataset):
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PlanarConfiguration = 16, 24, 3, 0
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = encapsulate([jpeg()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = BASELINE

    path = save(tmp_path / "a.dcm", compress)
    one = Deidentifier(find_profile("research"), Pseudonyms(KEY))
    content, outcome = one.dicom(path.read_bytes())
    assert SECRET in path.read_bytes()
    assert b"DOE" not in content
    assert outcome.pixels_before != outcome.pixels_after
    np.testing.assert_array_equal(dcmread(io.BytesIO(content)).pixel_array, dcmread(path).pixel_array)
    assert one.dicom(content)[0] == content


def test_compressed_files_of_pydicom_keep_their_frames():
    """Every code stream that pydicom ships either decodes to the same pixels or is refused."""
    seen = 0
    for name in sorted(str(p) for p in (Path(pydicom.__file__).parent / "data/test_files").rglob("*.dcm")):
        with quiet():
            dataset = dcmread(name, force=True)
            syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "")
            if "PixelData" not in dataset or not syntax or not getattr(syntax, "is_encapsulated", False):
                continue
            try:
                new = blank_comments(dataset.PixelData, syntax)
            except Refusal:
                assert "TextGBR" in name or "badVR" in name, name
                continue
            changed = [k for k, (a, b) in enumerate(zip(dataset.PixelData, new, strict=True)) if a != b]
            assert all(new[k] == 0 for k in changed)
            try:
                before = dataset.pixel_array
            except (NotImplementedError, RuntimeError, ValueError, AttributeError):
                continue
            dataset.PixelData = new
            np.testing.assert_array_equal(dataset.pixel_array, before)
            seen += 1
    assert seen >= 3
