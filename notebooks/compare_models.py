# %% [markdown]
# # Compare two models
#
# *Model A scores 0.02 more than model B. Is A better, or were the images kind to it?* Both models see the same images,
# so the difference on each image tells more than two means; how far its mean can be trusted, a bootstrap over images
# says.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from nucleipan import SegmentOptions, evaluate_folders, load_model, segment_slide
from nucleipan.synthetic import SyntheticScene, write_slide, write_truth

# %% tags=["parameters"]
FOLDER = Path("demo/compare_models")
IMAGES, TRUTH = FOLDER / "images", FOLDER / "truth"  # or annotated images of yours
MPP = 0.25  # micrometres per pixel of the images
MODELS = ["nucleipan-fast", "nucleipan-accurate"]  # or weights files
N_IMAGES, SIDE = 12, 512  # synthetic ones to make where there are none

# %% [markdown]
# ## Images whose nuclei are known
#
# Any folder of images will do, with a folder of truth beside it: `labels/<stem>.png`, in which every nucleus has a
# number of its own. Here both are drawn. For an answer that counts take images that neither model was trained on.

# %%
if not IMAGES.exists():
    IMAGES.mkdir(parents=True)
    for k in range(N_IMAGES):
        scene = SyntheticScene((SIDE, SIDE), seed=60 + k, mpp=MPP)
        write_slide(scene, IMAGES / f"image{k:02d}.tif", levels=1)
        write_truth(scene, TRUTH, f"image{k:02d}")

# %% [markdown]
# ## Score both on each
#
# PQ is the product of RQ, how many nuclei are found (F1), and SQ, how well their outlines fit (mean IoU). Images in
# which there is nothing to find have no PQ and are left out.

# %%
pq = pd.DataFrame()
for name in MODELS:
    model = load_model(name)
    out = FOLDER / model.info.name
    for image in sorted(IMAGES.iterdir()):
        segment_slide(image, out, model, SegmentOptions(mpp=MPP))
    evaluation = evaluate_folders(out, TRUTH)
    pq[model.info.name] = pd.Series({image.name: image.nuclei.quality.pq for image in evaluation.images})
pq = pq.dropna()
pq.describe().loc[["count", "mean", "std", "min", "max"]].round(3)

# %% [markdown]
# ## Image by image
#
# Points above the line are images on which the second model is better. A few points far from the line are worth
# opening.

# %%
first, second = pq.columns
low = pq.to_numpy().min() - 0.03
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.axline((low, low), slope=1, color="gray", linewidth=1)
axes.scatter(pq[first], pq[second])
axes.set(xlabel=f"PQ of {first}", ylabel=f"PQ of {second}", xlim=(low, 1), ylim=(low, 1), aspect="equal")
furthest = (pq[second] - pq[first]).abs().idxmax()
axes.annotate(furthest, pq.loc[furthest], xytext=(6, 6), textcoords="offset points")
plt.show()

# %% [markdown]
# ## How sure is the difference?
#
# Draw as many images as there are, with replacement, and take the mean difference; repeat; the middle 95 % are the
# interval. If it holds 0, these images do not tell the models apart. Images of one patient resemble each other: with
# several per patient, take the mean of each patient first, or the interval is too narrow.

# %%
difference = (pq[second] - pq[first]).to_numpy()
found = bootstrap((difference,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0))
low, high = found.confidence_interval

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.hist(found.bootstrap_distribution, bins=40, color="lightsteelblue")
axes.axvspan(low, high, color="steelblue", alpha=0.2, label="95 % interval")
axes.axvline(difference.mean(), color="black", label="mean")
axes.axvline(0, color="crimson", linestyle="--", label="no difference")
axes.set(xlabel=f"mean PQ of {second} less that of {first}", yticks=[])
axes.legend(frameon=False)
print(f"{difference.mean():+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, {len(difference)} images")
