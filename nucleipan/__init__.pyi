from .classes import DEFAULT_CLASSES, PanopticClass, PanopticClasses
from .config import load_train_config
from .edits import open_corrected
from .errors import NucleipanError
from .evaluate import evaluate_folders
from .exports import ExportOptions, export_store
from .geometry import Box
from .network.weights import Model, embedded_models, load_model, model_for
from .overlay import overlay_of_store, render_overlay
from .panoptic import numbers_in_class
from .report import write_report
from .segment import SegmentOptions, SegmentResult, segment_slide
from .slide import Slide, SlideView, at_mpp, open_slide
from .store import PanopticStore
from .training.fit import train_model

__all__ = [
    "DEFAULT_CLASSES",
    "Box",
    "ExportOptions",
    "Model",
    "NucleipanError",
    "PanopticClass",
    "PanopticClasses",
    "PanopticStore",
    "SegmentOptions",
    "SegmentResult",
    "Slide",
    "SlideView",
    "at_mpp",
    "embedded_models",
    "evaluate_folders",
    "export_store",
    "load_model",
    "load_train_config",
    "model_for",
    "numbers_in_class",
    "open_corrected",
    "open_slide",
    "overlay_of_store",
    "render_overlay",
    "segment_slide",
    "train_model",
    "write_report",
]

__version__: str
