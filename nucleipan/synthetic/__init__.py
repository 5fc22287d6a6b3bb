"""Synthetic H&E slides of any size with known truth: the tests' data, and a sample where there is no network."""

from nucleipan.synthetic.nuclei import WholeNucleus
from nucleipan.synthetic.scene import SyntheticScene
from nucleipan.synthetic.writing import write_slide, write_truth

__all__ = ["SyntheticScene", "WholeNucleus", "write_slide", "write_truth"]
