"""Scans: reading them from files, and where their voxels lie in the patient."""

from mst.errors import ScanError
from mst.scans.nifti import nifti_image, write_nifti
from mst.scans.reading import read_mask, read_scan
from mst.scans.resampling import subtract
from mst.scans.scan import Scan

__all__ = ["Scan", "ScanError", "nifti_image", "read_mask", "read_scan", "subtract", "write_nifti"]
