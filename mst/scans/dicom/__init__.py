"""DICOM files: a series becomes a scan, a segmentation a mask.

Geometry as in DICOM PS3.3 C.7.6.2 (image plane) and C.7.6.16.2 (functional groups). DICOM's LPS axes are
turned to RAS.
"""

from mst.scans.dicom.headers import is_dicom
from mst.scans.dicom.headers import preload as preload_dicom
from mst.scans.dicom.segmentation import read_dicom_mask
from mst.scans.dicom.series import read_dicom

__all__ = ["is_dicom", "preload_dicom", "read_dicom", "read_dicom_mask"]
