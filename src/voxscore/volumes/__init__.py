"""Volumes in and out of files, with their geometry untouched.

A segmentation is worth something only where it lies on the image it was made from. So everything here turns
around one promise: the voxel grid that leaves is the grid that came in, bit for bit, whichever format either
side is in. What cannot be read with certainty (missing slices, a truncated file, two series in one folder) is
refused with one sentence that says what to do; nothing is guessed and no partial file is ever left behind.
"""

from voxscore.volumes.dicom_mr import write_dicom_mr
from voxscore.volumes.dicom_seg import write_dicom_seg
from voxscore.volumes.files import VOLUME_SUFFIXES, base_name, sha256, volume_suffix, written_whole
from voxscore.volumes.read import find_volumes, read_label_map, read_volume
from voxscore.volumes.volume import Label, Volume
from voxscore.volumes.write import write_volume

__all__ = [
    "VOLUME_SUFFIXES",
    "Label",
    "Volume",
    "base_name",
    "find_volumes",
    "read_label_map",
    "read_volume",
    "sha256",
    "volume_suffix",
    "write_dicom_mr",
    "write_dicom_seg",
    "write_volume",
    "written_whole",
]
