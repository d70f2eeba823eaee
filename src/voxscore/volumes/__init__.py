"""Volumes in and out of files, with their geometry untouched.

A segmentation is worth something only where it lies on the image it was made from. So everything here turns
around one promise: the voxel grid that leaves is the grid that came in, bit for bit, whichever format either
side is in. What cannot be read with certainty (missing slices, a truncated file, two series in one folder) is
refused with one sentence that says what to do; nothing is guessed and no partial file is ever left behind.

What a scanner measured before there was an image, k-space or a sinogram, is read and written under the same promise.
"""

from voxscore.volumes.dicom_derived import write_dicom_derived
from voxscore.volumes.dicom_mr import write_dicom_mr
from voxscore.volumes.dicom_seg import write_dicom_seg
from voxscore.volumes.files import VOLUME_SUFFIXES, base_name, sha256, volume_suffix, written_whole
from voxscore.volumes.raw_data import RawData, Sinogram, centred_fft, centred_ifft, make_raw, make_sinogram
from voxscore.volumes.raw_files import is_sinogram, read_raw, read_sinogram, write_raw, write_sinogram
from voxscore.volumes.read import find_volumes, read_label_map, read_volume
from voxscore.volumes.volume import Label, Volume
from voxscore.volumes.write import write_volume

__all__ = [
    "VOLUME_SUFFIXES",
    "Label",
    "RawData",
    "Sinogram",
    "Volume",
    "base_name",
    "centred_fft",
    "centred_ifft",
    "find_volumes",
    "is_sinogram",
    "make_raw",
    "make_sinogram",
    "read_label_map",
    "read_raw",
    "read_sinogram",
    "read_volume",
    "sha256",
    "volume_suffix",
    "write_dicom_derived",
    "write_dicom_mr",
    "write_dicom_seg",
    "write_raw",
    "write_sinogram",
    "write_volume",
    "written_whole",
]
