"""Accuracy on the validation split, through the same path users take: segment images, then evaluate the stores.

    python benchmarks/accuracy.py --data ../shared/data --out out/accuracy

Every set's validation images are segmented as flat images at their own pixel size; truth stays at its own
resolution. Prints one table a set and writes ``summary.json`` and ``tables.md``. Never run it on images a model was
trained on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from rich.console import Console

from nucleipan.evaluate import evaluate_folders
from nucleipan.network.weights import load_model, model_for
from nucleipan.segment import SegmentOptions, segment_slide

Names = dict[str, str | list[str] | None]


@dataclass(frozen=True)
class JudgedSet:
    """A data set, its scale, and which of our classes its codes mean (codes must not overlap to be scored)."""

    folder: str
    mpp: float
    names: Names | None = None


_ELSE = ["stroma", "lymphoid", "smooth muscle", "adipose", "mucus", "necrosis or debris"]
_TEXTURE: Names = {
    "1": "tumour epithelium",
    "2": ["stroma", "smooth muscle"],
    "4": "lymphoid",
    "5": ["mucus", "necrosis or debris"],
    "6": "benign epithelium",
    "7": "adipose",
    "8": "background",
}

SETS = (
    JudgedSet("nuclei/monuseg_train", 0.25),
    JudgedSet(
        "nuclei/consep_train",
        0.25,
        {
            "1": "dead or other",
            "2": "inflammatory",
            "3": "non-neoplastic epithelial",
            "4": "neoplastic",
            "5": "connective",
            "6": "connective",
            "7": "connective",
        },
    ),
    JudgedSet("nuclei/tnbc", 0.25),
    JudgedSet("nuclei/dsb2018_he", 0.25),
    JudgedSet("nuclei/nucls_sample", 0.25, {
        "1": ["inflammatory", "connective", "dead or other", "non-neoplastic epithelial"],
        "2": "neoplastic",
    }),
    JudgedSet("tissue/ebhi", 1.0, {
        "0": "background", "1": "tumour epithelium", "10": "tumour epithelium", "4": "benign epithelium", "2": _ELSE,
    }),
    JudgedSet("tissue/glas_train", 0.62, {
        "1": ["tumour epithelium", "benign epithelium"], "0": [*_ELSE, "background"],
    }),
    JudgedSet("tissue/wsss4luad", 1.0, {
        "0": "background", "1": "tumour epithelium", "2": ["stroma", "lymphoid"], "9": None,
    }),
    JudgedSet("tissue/kather2016", 0.495, _TEXTURE),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="auto", help="a name, a weights file, or auto: by the set's pixel size")
    parser.add_argument("--backend", default="auto", help="as of nucleipan segment")
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="folders of the sets to run, e.g. nuclei/tnbc")
    parser.add_argument("--split", default="val")
    args = parser.parse_args()

    splits = json.loads((args.data / "splits.json").read_text())
    console = Console(width=140)
    summary = {}
    for judged in SETS:
        if args.only and judged.folder not in args.only:
            continue
        model = load_model(model_for(judged.mpp) if args.model == "auto" else args.model)
        work = args.out / judged.folder
        truth, pred = work / "truth", work / "pred"
        for name, image in _write_truth(args.data / judged.folder, splits[judged.folder][args.split], judged, truth):
            options = SegmentOptions(mpp=judged.mpp, backend=args.backend, overwrite=True, flips=args.flips)
            link = truth / "images" / f"{name}{image.suffix}"
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(image.resolve())
            segment_slide(link, pred, model, options)
        evaluation = evaluate_folders(pred, truth)
        console.print(f"\n== {judged.folder} ({args.split}, {len(evaluation.images)} images, {model.info.name})")
        evaluation.print_table(console)
        summary[judged.folder] = evaluation.to_json() | {"images": len(evaluation.images), "model": model.info.name}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1))
    (args.out / "tables.md").write_text(_model_card_tables(summary))


def _write_truth(folder: Path, stems: list[str], judged: JudgedSet, truth: Path) -> list[tuple[str, Path]]:
    """Lay the set's truth out as ``nucleipan evaluate`` reads it; returns name and image of each."""
    is_nuclei = judged.folder.startswith("nuclei")
    plane_folder = truth / ("labels" if is_nuclei else "tissue")
    plane_folder.mkdir(parents=True, exist_ok=True)
    images = []
    for stem in stems:
        name = stem.replace("/", "__")
        if "/" in stem:  # a texture tile: all of it is the class its folder names
            image = folder / f"{stem}.jpg"
            shape = imagecodecs.imread(image).shape[:2]
            code = int(stem[:2]) if stem[:2] != "03" else 255
            imagecodecs.imwrite(plane_folder / f"{name}.png", np.full(shape, code, np.uint8))
        else:
            image = folder / "images" / f"{stem}.jpg"
            (plane_folder / f"{name}.png").write_bytes((folder / "labels" / f"{stem}.png").read_bytes())
        if is_nuclei and judged.names is not None:
            (truth / "classes").mkdir(exist_ok=True)
            (truth / "classes" / f"{name}.json").write_text((folder / "classes" / f"{stem}.json").read_text())
        images.append((name, image))
    if judged.names is not None:
        names_file = "class_names.json" if is_nuclei else "tissue_names.json"
        (truth / names_file).write_text(json.dumps(judged.names))
    return images


def _model_card_tables(summary: dict[str, Any]) -> str:
    """The tables of the model cards, in Markdown."""
    nuclei = {k.split("/")[1]: v for k, v in summary.items() if k.startswith("nuclei/")}
    tissue = {k.split("/")[1]: v for k, v in summary.items() if k.startswith("tissue/")}
    columns = ("PQ", "SQ", "RQ", "AJI", "Dice", "Fd")
    rows = [[name, s["images"], *(s["summary"][c] for c in columns)] for name, s in nuclei.items()]
    text = _markdown(["set", "images", *columns[:-1], "F1 of detection"], rows)
    kinds = nuclei.get("consep_train", {}).get("classes", {})
    if any(c["TP"] for c in kinds.values()):  # a model may know nuclei without kinds
        text += _markdown(
            ["kind", "F1", "PQ", "nuclei"], [[name, c["Fc"], c["PQ"], c["TP"] + c["FN"]] for name, c in kinds.items()]
        )
    rows = [
        [
            name,
            s["images"],
            s["summary"]["tissue accuracy"],
            s["summary"]["tissue balanced accuracy"],
            "; ".join(f"{t} {c['Dice']:.3f}" for t, c in s["tissues"].items() if c["Dice"] is not None),
        ]
        for name, s in tissue.items()
    ]
    return text + _markdown(["set", "images", "accuracy", "balanced accuracy", "Dice by class"], rows)


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [["-" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells) + "\n"


if __name__ == "__main__":
    main()
