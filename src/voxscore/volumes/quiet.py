"""Libraries kept silent.

Readers of medical files complain about headers on standard error and quote them, and a header can name the
patient. What matters reaches the user as a `UserError`; the rest is kept off the screen.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

_LOGGERS = ("nibabel.global", "pydicom", "highdicom")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings and log messages of nibabel, pydicom and highdicom."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
