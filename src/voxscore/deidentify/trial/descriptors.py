"""A gold set of descriptions: technique, with and without people in it.

The generator joins a technical phrase, written here by hand, with an identifying one at a random side and with a
random sign between them. Identifying phrases are made of names, record numbers and dates in the spellings that turn up
in headers. Some names are words of anatomy (Hand, Gray, Short); they stand behind a title, as the vocabulary
alone cannot tell them. Names and phrases are invented or common; no real record was looked at. A further set is
written whole.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from voxscore.deidentify.text import TextCleaner

__all__ = ["Description", "TextScore", "descriptions", "score_text"]

_TECHNICAL = (
    """
CT chest abdomen pelvis|MR brain without contrast|t1_mprage_sag_p2_iso|AX T2 FLAIR FS|CT head routine 5mm
ep2d_diff_3scan_trace_p2|MRA neck with gadolinium|PET/CT whole body FDG|lumbar spine AP lateral|left knee MRI
CTA coronary|XR hand right 3 views|US abdomen complete|T2 TSE COR|DWI b1000 ADC|thorax 1.0 B70f|MRCP
CT pulmonary angiogram|hip arthrogram left|sag STIR cervical spine|axial PD fat sat ankle|bone scan delayed
3D TOF MRA circle of willis|SWI phase magnitude|liver dynamic arterial portal venous|CT kidney stone dual energy
mammography bilateral MLO CC|pediatric hip ultrasound|prostate mpMRI DCE|cardiac cine short axis 4ch
CT temporal bone 0.6mm|brain perfusion CBF CBV MTT|scout topogram|AbdomenRoutine|localizer 3 plane|T1 post contrast
pelvis MRI rectal cancer staging|follow-up lung nodule|HASTE cor breath hold|non contrast CT sinus
""".strip()
    .replace("\n", "|")
    .split("|")
)
_FIRST = "Mary John Wei Fatima José Anna-Lena Igor Priya Chinedu Yuki Olga Hans Siobhan Jean-Luc Amina".split()  # noqa: SIM905
_LAST = "Smith Nguyen Müller O'Brien García Kowalski Okafor Tanaka Petrov Haddad van-Dijk Rossi Patel".split()  # noqa: SIM905
_TITLED = ["Hand", "Gray", "Short", "Long", "Foot", "White", "Young", "Stone", "Field", "Marrow"]
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_WHOLE: list[tuple[str, list[str], list[str]]] = [
    ("CT chest abdomen pelvis - 55F Dr. Smith", ["55F", "Smith"], ["CT", "chest", "abdomen", "pelvis"]),
    ("MRI brain, pt. Jane Doe, DOB 03/16/1977", ["Jane", "Doe", "03/16/1977"], ["MRI", "brain"]),
    ("Knee left (MRN 00482913)", ["00482913"], ["Knee", "left"]),
    ("St. Mary Hospital CT head w/o contrast", ["Mary"], ["CT", "head", "contrast"]),
    ("call 555-123-4567 for results, chest PA", ["555-123-4567"], ["chest", "PA"]),
    ("jane.doe@example.org lumbar spine", ["jane.doe@example.org"], ["lumbar", "spine"]),
    ("92 year old male, hip fracture", ["92"], ["hip", "fracture"]),
    ("BRAIN^ROUTINE 12-JAN-2019", ["12-JAN-2019"], ["BRAIN", "ROUTINE"]),
    ("DOE^JANE^^MS abdomen", ["DOE", "JANE"], ["abdomen"]),
    ("SSN 123-45-6789 liver", ["123-45-6789"], ["liver"]),
    ("19770316 T1 MPRAGE SAG p2 iso", ["19770316"], ["T1", "MPRAGE", "SAG", "p2", "iso"]),
    ("Thorax Frau Schmidt 4.5.2020", ["Schmidt", "4.5.2020"], ["Thorax"]),
    ("http://pacs.hospital.example/4711 pelvis", ["pacs.hospital.example/4711"], ["pelvis"]),
    ("report signed by Rossi, cardiac MR", ["Rossi"], ["cardiac", "MR"]),
    ("room 312 bed 4 portable chest", ["312"], ["portable", "chest"]),
]


@dataclass(frozen=True)
class Description:
    """One description.

    Attributes:
        text: all of it.
        secrets: its names, numbers and dates.
        technical: its words that should stay.
    """

    text: str
    secrets: list[str]
    technical: list[str]


@dataclass(frozen=True)
class TextScore:
    """How well descriptions were cleaned.

    Attributes:
        recall: share of secrets of which nothing is left.
        kept: share of technical words that are left.
        leaked: what got through.
        lost: technical words that did not.
    """

    recall: float
    kept: float
    leaked: list[str]
    lost: list[str]


def descriptions(number: int = 600, seed: int = 0) -> list[Description]:
    """Return the set written whole, and `number` made ones."""
    draw = random.Random(seed)
    made = [Description(*entry) for entry in _WHOLE]
    for _ in range(number):
        technical = draw.choice(_TECHNICAL)
        phrase, secrets = _identity(draw)
        sign = draw.choice([" ", " - ", ", ", "_", " / ", " ("])
        text = f"{technical}{sign}{phrase}" if draw.random() < 0.7 else f"{phrase}, {technical}"
        words = [word for word in technical.replace("/", " ").replace("_", " ").split()]
        made.append(Description(text, secrets, words))
    return made


def _identity(draw: random.Random) -> tuple[str, list[str]]:
    first, last = draw.choice(_FIRST), draw.choice(_LAST)
    number = "".join(draw.choice("0123456789") for _ in range(draw.randint(5, 9)))
    year, month, day = draw.randint(1931, 2024), draw.randint(1, 12), draw.randint(1, 28)
    name = _MONTHS[month - 1]
    date = draw.choice(
        [
            f"{year}{month:02d}{day:02d}",
            f"{month}/{day}/{year}",
            f"{day:02d}.{month:02d}.{year}",
            f"{year}-{month:02d}-{day:02d}",
            f"{day} {name} {year}",
            f"{name.title()} {day}, {year}",
            f"{day:02d}-{name}-{year}",
        ]
    )
    titled = draw.choice(_TITLED)
    return draw.choice(
        [
            (f"{first} {last}", [first, last]),
            (f"{last}^{first}", [first, last]),
            (f"{last.upper()}, {first.upper()}", [first.upper(), last.upper()]),
            (f"Dr. {last}", [last]),
            (f"Dr {titled}", [titled]),
            (f"patient {first} {last} {date}", [first, last, date]),
            (f"MRN {number}", [number]),
            (f"ID: {number}", [number]),
            (f"acc# {number}", [number]),
            (f"{number}", [number]),
            (f"{date}", [date]),
            (f"ref {first[0]}. {last}", [last]),
            (f"DOB {date}", [date]),
            (f"{last} {date}", [last, date]),
        ]
    )


def score_text(cleaner: TextCleaner, gold: list[Description]) -> TextScore:
    """Return what a cleaner leaves of secrets and of technique, without a header to seed it."""
    leaked, lost, secrets, technical = [], [], 0, 0
    for description in gold:
        left = cleaner.clean(description.text)
        joined = " ".join(description.technical)
        for secret in description.secrets:
            secrets += 1
            if left.count(secret) > joined.count(secret):
                leaked.append(f"{secret} in {description.text!r}")
        for word in description.technical:
            technical += 1
            if word not in left:
                lost.append(f"{word} of {description.text!r}")
    return TextScore(1 - len(leaked) / secrets, 1 - len(lost) / technical, leaked, lost)
