"""Panoptic nuclei segmentation of whole-slide H&E images.

What most programs need can be imported from here; ``__init__.pyi`` lists it. Each name is loaded when it is first asked
for (Scientific Python's SPEC 1), so that reading a store never loads PyTorch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
