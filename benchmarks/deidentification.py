"""How well and how fast DICOM headers are de-identified: all figures, from planted identifiers and pydicom's own files.

    python benchmarks/deidentification.py

Needs no data. The planted corpus and the gold set of descriptions are made by `voxscore.deidentify.trial`; they are our
own, not those of a challenge. The speed is that of one process on whole files in memory, headers alone (no pixels),
by its own processor time.
"""

import contextlib
import time
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from voxscore.deidentify import Deidentifier, Pseudonyms, Refusal, TextCleaner, find_profile
from voxscore.deidentify.table import rows
from voxscore.deidentify.trial.canaries import plant_every_row
from voxscore.deidentify.trial.descriptors import descriptions, score_text
from voxscore.deidentify.trial.scorer import planted_corpus, score
from voxscore.volumes.quiet import quiet

KEY = b"a key for measurements, no secret"


def encoded(dataset: pydicom.Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    with quiet():
        write_dataset(buffer, dataset)
    return buffer.getvalue()


def planted_identifiers() -> None:
    for profile in ("basic", "research", "strict"):
        one = Deidentifier(find_profile(profile), Pseudonyms(KEY))
        wished = {r.tag for r in rows() if any(r.options.get(o) == "K" for o in one.profile.options)}
        for depth in range(4):
            planted = plant_every_row(depth)
            after = encoded(one.dataset(planted.dataset)[0])
            secrets = {row: words for row, words in planted.secrets.items() if row not in wished}
            leaks = sum(any(word in after for word in words) for words in secrets.values())
            print(f"planted identifiers, {profile}, depth {depth}: {leaks} of {len(secrets)} rows leak")


def midi() -> None:
    cases = planted_corpus(60)
    one = Deidentifier(find_profile("research"), Pseudonyms(KEY))
    ours = [one.dataset(case.dataset)[0] for case in cases]
    for name, outputs in {
        "ours": ours,
        "untouched": [case.dataset for case in cases],
        "deleted": [None] * len(cases),
    }.items():
        share, failed = score(cases, outputs)
        print(f"planted corpus of {len(cases)} objects, {name}: {100 * share:.2f} % of demands met; failed {failed}")


def text() -> None:
    gold = descriptions(600)
    result = score_text(TextCleaner(), gold)
    print(f"{len(gold)} descriptions: recall {100 * result.recall:.2f} %, technical words {100 * result.kept:.2f} %")


def speed() -> None:
    files = []
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*")):
        try:
            with quiet():
                dataset = pydicom.dcmread(path)
                for name in ("PixelData", "OverlayData", "WaveformSequence"):
                    if name in dataset:
                        del dataset[name]
                buffer = BytesIO()
                pydicom.dcmwrite(buffer, dataset)
        except Exception:  # no DICOM file, or one that cannot be written
            continue
        files.append(buffer.getvalue())
    one = Deidentifier(find_profile("basic"), Pseudonyms(KEY))
    released = 0
    for content in files[:10]:  # warm
        with contextlib.suppress(Refusal):
            one.dicom(content)
    started = time.process_time()
    for content in files:
        try:
            one.dicom(content)
            released += 1
        except Refusal:
            continue
    seconds = time.process_time() - started
    print(f"{len(files)} header-only files, {released} released: {len(files) / seconds:.0f} files per second and core")


if __name__ == "__main__":
    planted_identifiers()
    midi()
    text()
    speed()
