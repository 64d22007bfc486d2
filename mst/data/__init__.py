"""Data sets on disk: what a training manifest lists, and how it is checked."""

from mst.data.manifest import Case, ManifestError, read_manifest, read_manifests

__all__ = ["Case", "ManifestError", "read_manifest", "read_manifests"]
