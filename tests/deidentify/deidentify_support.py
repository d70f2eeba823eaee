"""What the tests of de-identification share: a key, pydicom's files, encoded data sets."""

from pathlib import Path

import pydicom
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from voxscore.volumes.quiet import quiet

KEY = b"a key for tests, of enough bytes"
CORPUS = Path(pydicom.__file__).parent / "data"


def encoded(dataset):
    """The bytes of a data set, explicit little endian."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    with quiet():
        write_dataset(buffer, dataset)
    return buffer.getvalue()


def corpus():
    """Paths of the DICOM files that pydicom ships in its wheel."""
    paths = sorted(p for part in ("test_files", "charset_files") for p in (CORPUS / part).rglob("*") if p.is_file())
    return [
        p for p in paths if p.suffix not in {".txt", ".json", ".icc", ".dump", ".gz", ".pdf"} and p.name != "README"
    ]
