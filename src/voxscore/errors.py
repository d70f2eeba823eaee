"""The one exception a user is meant to read.

Every fault of an input, an output place, a bundle or a device is raised as `UserError`: which file, what is
wrong with it, what to do. The command line prints it as one line and exits with code 2; anything else that
escapes is a defect of voxscore and keeps its traceback.
"""

from __future__ import annotations

import os

__all__ = ["UserError"]


class UserError(Exception):
    """A fault the user can mend.

    Args:
        subject: the file, folder, option or bundle concerned.
        fault: what is wrong with it, without patient data.
        remedy: what to do about it.
    """

    def __init__(self, subject: str | os.PathLike[str], fault: str, remedy: str) -> None:
        self.subject, self.fault, self.remedy = os.fspath(subject), fault, remedy
        super().__init__(f"{self.subject}: {fault}; {remedy}")
