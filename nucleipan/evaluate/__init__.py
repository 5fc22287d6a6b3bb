"""Score a folder of predictions against a folder of truth, file names being the link.

A truth folder, and a prediction folder that did not come from this program, looks like this::

    labels/<stem>.png             instance ids, 0 = none (png, tif, tiff or npy)       each of labels/, tissue/
    classes/<stem>.json           {"1": 3, ...} id -> class number                     is optional, not both
    class_names.json              {"3": "neoplastic", "6": ["connective", ...], "7": null}
    tissue/<stem>.png             class codes, 255 = not labelled
    tissue_names.json             {"1": "tumour epithelium", "2": ["stroma", "smooth muscle"], "0": null}

A prediction folder otherwise holds stores, ``<stem>.ome.zarr``. The ``*_names.json`` of the truth say which classes of
a store each number covers: one, several (then these are scored as one class) or null (nobody knows). Numbers that cover
the same classes are one class; partial overlap is an error, because no prediction could be judged by it. Two label
layouts without names are taken to use the same numbers.

Truth may also be in a panoptic format: COCO's JSON and PNGs, Cityscapes, PASTIS. Then every pixel has one class, PQ is
what counts, and void and crowds are treated as COCO's and Cityscapes' own evaluations do; see ``evaluate.panoptic``.

The truth's grid is the one scored. A prediction in another grid, as of a model at 0.5 mpp on images at 0.25, is brought
there by taking for every truth pixel the predicted pixel its centre lies in: ids stay exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from nucleipan.errors import DataError
from nucleipan.evaluate.formats import open_truth
from nucleipan.evaluate.panoptic import evaluate_panoptic
from nucleipan.evaluate.reading import STORE_SUFFIX, LabelReader, StoreReader, label_reader, read_pairs
from nucleipan.evaluate.vocabulary import CLASSES, PLANE_SUFFIXES, TISSUE, read_vocabulary
from nucleipan.metrics.detection import DEFAULT_RADIUS_PX, PairWithin, pair_centroids
from nucleipan.metrics.evaluation import Evaluation
from nucleipan.metrics.panoptic_evaluation import PanopticEvaluation
from nucleipan.metrics.scoring import ImagePair, evaluate_pairs

__all__ = ["Evaluation", "ImagePair", "PanopticEvaluation", "evaluate_folders", "evaluate_pairs", "evaluate_panoptic"]


def evaluate_folders(
    pred: str | Path, truth: str | Path, *, radius_px: float = DEFAULT_RADIUS_PX, pair: PairWithin = pair_centroids
) -> Evaluation | PanopticEvaluation:
    """Score every truth of ``truth`` against its namesake in ``pred``, in the truth's pixels.

    Args:
        pred: folder of stores, or of label images in the layout of a truth.
        truth: folder with ``labels/``, ``tissue/`` or both, see the module's description; or COCO panoptic, Cityscapes
            or PASTIS.
        radius_px: how far apart centroids of one nucleus may lie, in pixels of the truth.
        pair: how centroids are paired. Panoptic formats have no use for either.

    Returns:
        Scores per image and over all: ``summary()`` under the papers' names (PQ of Kirillov et al., arXiv 1801.00868;
        AJI of Kumar et al. 2017; F1 of HoVer-Net, arXiv 1812.06499), ``to_json()`` with everything, nan as None.
        Predictions without truth are listed.

    Raises:
        DataError: a folder lacks its parts, a truth has no prediction, a name or number is unknown, or a prediction's
            shape is not the truth's at any scale.
    """
    pred, truth = Path(pred), Path(truth)
    panoptic = open_truth(truth)
    if panoptic is not None:
        return evaluate_panoptic(pred, panoptic)
    return _evaluate_label_images(pred, truth, partial(evaluate_pairs, radius_px=radius_px, pair=pair))


def _evaluate_label_images(pred: Path, truth: Path, evaluate: Callable[..., Evaluation]) -> Evaluation:
    names = _names_of(truth)
    stores = {p.name.removesuffix(STORE_SUFFIX): p for p in sorted(pred.glob(f"*{STORE_SUFFIX}"))}
    predicted = set(stores) if stores else set(_names_of(pred))
    missing = [name for name in names if name not in predicted]
    if missing:
        raise DataError(f"{len(missing)} of {len(names)} truths have no prediction in {pred}: {_listed(missing)}")
    classes, tissues = (read_vocabulary(part, truth, pred, has_stores=bool(stores)) for part in (CLASSES, TISSUE))
    read_pred = StoreReader(stores, classes, tissues) if stores else label_reader(pred, classes, tissues)
    read_truth = LabelReader(truth, classes, tissues)
    evaluation = evaluate(read_pairs(names, read_pred, read_truth), classes=classes.names, tissues=tissues.names)
    notes = [*classes.notes, *tissues.notes, *(read_pred.notes() if isinstance(read_pred, StoreReader) else ())]
    return replace(evaluation, unmatched_predictions=tuple(sorted(predicted - set(names))), notes=tuple(notes))


def _names_of(folder: Path) -> list[str]:
    """Stems of a label layout, sorted."""
    planes = [p for part in ("labels", TISSUE.folder) for p in (folder / part).glob("*") if p.suffix in PLANE_SUFFIXES]
    if not planes:
        raise DataError(
            f"{folder} holds neither labels/<stem>{{{','.join(PLANE_SUFFIXES)}}} nor tissue/<stem>..."
            f" (nor, as a prediction, <stem>{STORE_SUFFIX}; nor, as truth, COCO panoptic, Cityscapes or PASTIS)"
        )
    return sorted({p.stem for p in planes})


def _listed(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
