"""Explainable classification of 3D scans: the Medical Slice Transformer beside a 3D ResNet."""
