"""Files that are whole or not there.

A reader must never meet half an output, and a crash must not cost the file that stood there before. So a
writer fills a hidden file in the same folder (a rename is atomic only within one file system) and renames it
when it is complete. Opening that hidden file is also the honest test of whether the folder can be written to.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxscore.errors import UserError

__all__ = ["VOLUME_SUFFIXES", "base_name", "read_bytes", "sha256", "volume_suffix", "written_whole"]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def volume_suffix(path: str | os.PathLike[str]) -> str:
    """Return the volume suffix of a file name in lower case, or "" if it has none that voxscore knows."""
    name = Path(path).name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), "")


def base_name(path: str | os.PathLike[str]) -> str:
    """Return the file name without its volume suffix: 'a/hippocampus_001.nii.gz' gives 'hippocampus_001'."""
    name = Path(path).name
    suffix = volume_suffix(path)
    return name[: -len(suffix)] if suffix else Path(name).stem


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return all bytes of an input file.

    Raises:
        UserError: missing, a folder, empty, or not readable.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(path, "there is no such file", "check the path") from error
    except IsADirectoryError as error:
        raise UserError(path, "is a folder, not a file", "name a file in it") from error
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    if not content:
        raise UserError(path, "is an empty file", "copy or export it again")
    return content


@contextmanager
def written_whole(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Give a file to fill that becomes `path` once the block ends without an exception.

    The file given lies in the same folder and has the same suffixes, so that writers which look at the suffix
    do the right thing. Missing parent folders are made. When the block raises, the file is removed and
    whatever stood at `path` is untouched.

    Args:
        path: where the complete file goes.
        overwrite: whether a file already there may be replaced.

    Yields:
        The path to write to; it exists and is empty.

    Raises:
        UserError: the output exists, its folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    suffix = volume_suffix(path) or path.suffix
    partial = path.with_name(f".{path.name[: len(path.name) - len(suffix)]}.{secrets.token_hex(4)}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield partial
        _refuse_existing(path, overwrite)  # another process may have finished first
        os.replace(partial, path)
    except UserError as error:
        # A writer inside the block may itself write whole; the hidden file's name would tell nobody anything.
        if error.subject != os.fspath(partial):
            raise
        raise UserError(path, error.fault, error.remedy) from error
    except OSError as error:
        ours = error.filename is None or os.fspath(error.filename) == os.fspath(partial)
        if error.errno in _FULL or (error.errno in _FORBIDDEN and ours):
            raise _unwritable(path, error) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise UserError(path, "is a folder", "name a file for the output")
    if not overwrite and os.path.lexists(path):
        raise UserError(path, "exists already", "choose another output, or replace it with --overwrite")


def _unwritable(path: Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        return UserError(path, "the disk is full; nothing was written", "free some space or choose another output")
    return UserError(
        path,
        f"cannot be written in the folder {path.parent} ({error.strerror})",
        "check the permissions or choose another output",
    )
