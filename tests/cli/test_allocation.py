"""Memory that was freed is written again without the kernel clearing its pages anew."""

import platform
import subprocess
import sys

import pytest

from voxscore import cli
from voxscore.cli.allocation import keep_freed_memory

SECOND_BLOCK = """
import resource
from voxscore.cli.allocation import keep_freed_memory

assert not {keep} or keep_freed_memory()
bytearray(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    """Page faults of the second of two blocks of 64 MiB, in a process of its own."""
    command = [sys.executable, "-c", SECOND_BLOCK.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_freed_block_is_used_again():
    """Even in huge pages of 2 MiB a fresh block has 32 faults."""
    assert faults(keep=False) >= 32
    assert faults(keep=True) < 8


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    assert not keep_freed_memory()


def test_the_command_line_keeps_it(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(sys, "argv", ["voxscore", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert called
