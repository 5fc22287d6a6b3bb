"""Panoptic nuclei segmentation of whole-slide H&E images."""

__version__ = "0.1.0"
