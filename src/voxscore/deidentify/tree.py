"""A folder de-identified: on several workers, to be continued after a crash, with a manifest that names nobody.

Every file is one task: its bytes in, a file under new names or a refusal out. The parent notes each in a journal as it
comes back, so a run that was killed goes on where it stopped; since the same key gives the same bytes, it ends where a
run without interruption ends.

Refused files are copied to a quarantine folder beside the output, readable for their owner alone, with a list that
says which is which and why. That folder is for the person who may see the originals; the manifest is for everybody.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from voxscore.deidentify.codes import Codes, Crosswalk, RandomCodes, RecordedCodes
from voxscore.deidentify.files import Deidentifier, deidentify_file
from voxscore.deidentify.pixels import PixelCleaner, read_rules
from voxscore.deidentify.profile import find_profile
from voxscore.deidentify.pseudonyms import Pseudonyms, read_key
from voxscore.deidentify.refusal import Refusal
from voxscore.deidentify.table import OPTION_CODES
from voxscore.errors import UserError
from voxscore.volumes.files import sha256, written_whole

__all__ = ["MANIFEST", "Settings", "Summary", "deidentify_tree", "find_files", "quarantine_of"]

MANIFEST = "manifest.json"
JOURNAL = ".journal.jsonl"
_DUPLICATE = "another file with other content has the same SOP instance UID or name"


@dataclass(frozen=True)
class Settings:
    """What a worker needs to do the same as any other.

    Attributes:
        key: the file with the secret key.
        profile: as `find_profile` takes it.
        crosswalk: the file that leads back, None for none.
        rules: the file with pixel rules, None for none.
    """

    key: Path
    profile: str = "research"
    crosswalk: Path | None = None
    rules: Path | None = None

    def deidentifier(self) -> Deidentifier:
        """Return what the settings describe.

        Raises:
            UserError: a file is missing or wrong, or strict mode has no crosswalk.
        """
        profile = find_profile(self.profile)
        pseudonyms = Pseudonyms(read_key(self.key))
        codes: Codes = pseudonyms
        if profile.strict and self.crosswalk is None:
            raise UserError(f"profile {self.profile}", "draws codes at random", "give a --crosswalk to remember them")
        if self.crosswalk is not None:
            crosswalk = Crosswalk(self.crosswalk)
            codes = RandomCodes(pseudonyms, crosswalk) if profile.strict else RecordedCodes(pseudonyms, crosswalk)
        rules = read_rules(self.rules) if self.rules else []
        return Deidentifier(profile, codes, pixels=PixelCleaner(rules))


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        done: files released, those of earlier runs included.
        quarantined: reason -> how many files.
        manifest: its path.
    """

    done: int
    quarantined: dict[str, int]
    manifest: Path


def quarantine_of(output: Path) -> Path:
    """Return the folder for what is refused: beside the output, never in it."""
    return output.with_name(output.name + "_quarantine")


def find_files(source: Path) -> Iterator[Path]:
    """Yield all files under a folder in a fixed order, links included and hidden files left out; or the one file.

    Raises:
        UserError: a folder cannot be read; passing over it would pass over patients.
    """

    def refuse(error: OSError) -> None:
        raise UserError(error.filename, f"cannot be read ({error.strerror})", "check its permissions") from error

    if not source.is_dir():
        yield source
        return
    for parent, folders, names in os.walk(source, onerror=refuse):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def deidentify_tree(
    source: Path, output: Path, settings: Settings, workers: int = 1, advance: Callable[[int, int], None] | None = None
) -> Summary:
    """De-identify a file or all files under a folder.

    Args:
        source: file or folder.
        output: folder for the new files; new, empty, or of an earlier run with the same settings.
        settings: what is done.
        workers: processes.
        advance: told how many of how many files are done.

    Raises:
        UserError: nothing could be done because of the input, the output or the settings.
    """
    _check_places(source, output, settings)
    deidentifier = settings.deidentifier()
    started = time.time()
    journal = _Journal(output, _configuration(settings, deidentifier))
    files = list(find_files(source))
    names = {path: deidentifier.codes.identifier("file", _identity(path, source)) for path in files}
    todo = [path for path in files if not journal.is_done(names[path], output)]
    try:
        for count, (path, entry) in enumerate(_work(todo, source, output, settings, deidentifier, workers), 1):
            journal.add(names[path], entry, output)
            if advance:
                advance(len(files) - len(todo) + count, len(files))
    finally:
        journal.close()
    entries = {name: entry for name, entry in journal.entries.items() if name in set(names.values())}
    _quarantine(entries, {name: path for path, name in names.items()}, quarantine_of(output))
    manifest = _manifest(entries, journal.configuration, started)
    with written_whole(output / MANIFEST, overwrite=True) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    refused = Counter(entry["reason"] for entry in entries.values() if "reason" in entry)
    return Summary(len(entries) - refused.total(), dict(refused), output / MANIFEST)


def _check_places(source: Path, output: Path, settings: Settings) -> None:
    if not source.exists():
        raise UserError(source, "there is no such file or folder", "check the path")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UserError(output, "is a link or a file", "name a new folder")
    inside, outside = output.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UserError(output, "lies in the input, or the input in it", "choose a folder elsewhere")
    for file, what in ((settings.crosswalk, "crosswalk"), (settings.key, "key")):
        if file is not None and inside in file.resolve().parents:
            raise UserError(file, f"the {what} would be given away with the output", "choose another folder for it")
    if output.is_dir() and any(output.iterdir()) and not (output / JOURNAL).exists():
        raise UserError(output, "is there already and holds other things", "name a new folder")


def _identity(path: Path, source: Path) -> str:
    """What makes a file the same file in another run."""
    name = path.relative_to(source) if path != source else Path(path.name)
    status = path.lstat()
    return f"{os.fsencode(name).hex()}\0{status.st_size}\0{status.st_mtime_ns}"


def _configuration(settings: Settings, deidentifier: Deidentifier) -> dict[str, Any]:
    return {
        "profile": deidentifier.profile.name,
        "conformance": deidentifier.profile.describe(),
        "options": sorted(deidentifier.profile.options),
        "strict": deidentifier.profile.strict,
        "key_id": deidentifier.codes.key_id,
        "pixel_rules_sha256": sha256(settings.rules) if settings.rules else None,
    }


class _Journal:
    """What became of each file, appended as it is known."""

    def __init__(self, output: Path, configuration: dict[str, Any]) -> None:
        self.configuration, self.entries = configuration, dict[str, dict[str, Any]]()
        self._owners: dict[str, str] = {}
        path = output / JOURNAL
        try:
            output.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            if lines and json.loads(lines[0]) != configuration:
                raise UserError(output, "was made with another key, profile or pixel rules", "name a new folder")
            for line in lines[1:]:
                found = json.loads(line)
                self._note(found.pop("id"), found)
            # A line that a crash cut short is left out.
            whole = b"".join(line + b"\n" for line in lines or [json.dumps(configuration).encode()])
            path.write_bytes(whole)
            self._file = path.open("ab")
        except (OSError, ValueError) as error:
            raise UserError(output, "cannot be written, or its journal is damaged", "name a new folder") from error

    def is_done(self, name: str, output: Path) -> bool:
        entry = self.entries.get(name)
        return entry is not None and "output" in entry and (output / entry["output"]).exists()

    def add(self, name: str, entry: dict[str, Any], output: Path) -> None:
        """Note one file; if its output is another one's with other content, neither is released."""
        owner = self._owners.get(entry.get("output", ""), name)
        if owner != name and self.entries[owner].get("sha256") != entry["sha256"]:
            (output / entry["output"]).unlink(missing_ok=True)
            self._write(owner, {"reason": _DUPLICATE})
            entry = {"reason": _DUPLICATE, "taken": entry["output"]}
        self._write(name, entry)

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps({"id": name, **entry}).encode() + b"\n")
        self._file.flush()
        self._note(name, entry)

    def _note(self, name: str, entry: dict[str, Any]) -> None:
        self.entries[name] = entry
        for place in (entry.get("output"), entry.get("taken")):
            if place:
                self._owners.setdefault(place, name)

    def close(self) -> None:
        self._file.close()


_worker: dict[str, Any] = {}


def _start(source: Path, output: Path, settings: Settings) -> None:
    _worker.update(source=source, output=output, deidentifier=settings.deidentifier())


def _one(path: Path) -> dict[str, Any]:
    return _entry(path, **_worker)


def _entry(path: Path, source: Path, output: Path, deidentifier: Deidentifier) -> dict[str, Any]:
    try:
        return asdict(deidentify_file(path, output, deidentifier, source))
    except Refusal as refusal:
        return {"reason": refusal.reason}


def _work(
    todo: list[Path], source: Path, output: Path, settings: Settings, deidentifier: Deidentifier, workers: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    if workers <= 1 or len(todo) < 2:
        for path in todo:
            yield path, _entry(path, source, output, deidentifier)
        return
    # Started anew rather than forked: a fork copies the locks of whatever threads the parent has.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (source, output, settings)) as pool:
        yield from zip(todo, pool.map(_one, todo, chunksize=8), strict=True)


def _quarantine(entries: dict[str, dict[str, Any]], paths: dict[str, Path], folder: Path) -> None:
    """Put what was refused aside, for the person who may see it."""
    refused = {name: entry["reason"] for name, entry in entries.items() if "reason" in entry}
    if not refused:
        return
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in refused:
            if not paths[name].is_symlink() and os.access(paths[name], os.R_OK):
                shutil.copyfile(paths[name], folder / name)
        with written_whole(folder / "reasons.csv", overwrite=True) as unfinished, unfinished.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            writer = csv.writer(file)
            writer.writerow(["id", "reason", "path"])
            writer.writerows([name, reason, os.fspath(paths[name])] for name, reason in sorted(refused.items()))
    except OSError as error:
        raise UserError(folder, f"cannot be written ({error.strerror})", "check the disk and permissions") from error


def _manifest(entries: dict[str, dict[str, Any]], configuration: dict[str, Any], started: float) -> dict[str, Any]:
    released = {name: entry for name, entry in entries.items() if "output" in entry}
    tags: Counter[str] = Counter()
    for entry in released.values():
        tags.update(entry["tags"])
    return {
        "tool": "voxscore",
        **configuration,
        "codes": {OPTION_CODES[o][0]: OPTION_CODES[o][1] for e in released.values() for o in e["codes"]},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "files": len(entries),
        "released": len(released),
        "quarantined": dict(Counter(entry["reason"] for entry in entries.values() if "reason" in entry)),
        "actions_by_tag": dict(sorted(tags.items())),
        "unknown_tags": sorted({tag for entry in released.values() for tag in entry["unknown"]}),
        "private_kept": sorted({tag for entry in released.values() for tag in entry["private"]}),
        "entries": [
            {"id": name, **{key: value for key, value in entry.items() if key not in ("tags", "taken")}}
            for name, entry in sorted(entries.items())
        ],
    }
