# %% [markdown]
# # Fine-tune a model on your own annotations
#
# *The model finds my nuclei, but I call them by other names. How many images must I annotate, and what must I
# program?* A handful, and nothing: the classes, the data and the schedule are one short configuration. Needs `pip
# install 'nucleipan[train,notebooks]'`; a minute or two on a laptop.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from nucleipan import (
    PanopticStore,
    at_mpp,
    evaluate_folders,
    load_model,
    load_train_config,
    open_slide,
    overlay_of_store,
    segment_slide,
    train_model,
)
from nucleipan.synthetic import SyntheticScene, write_slide, write_truth

# %% tags=["parameters"]
FOLDER = Path("demo/fine_tune")
SIDE = 384  # of an image, in pixels
SETTINGS = ["schedule.steps=100", "schedule.batch_size=4"]

# %% [markdown]
# ## Annotations
#
# Synthetic images play the annotated ones here. Yours need the same three things under the same stem: an image, a
# label image in which every nucleus has a number of its own (0 is none), and the class of each number. Leave
# `classes/` out where nobody told kinds apart. QuPath's GeoJSON and the layouts of public data sets are read as they
# are.


# %%
def annotate(folder, name, seed):
    scene = SyntheticScene((SIDE, SIDE), seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_slide(scene, folder / "images" / f"{name}.tif", levels=1)
    write_truth(scene, folder, name)


for seed in (9, 19, 26, 33, 63, 98):
    annotate(FOLDER / "mine", f"case{seed}", seed)
for seed in (96, 47):
    annotate(FOLDER / "held_out", f"case{seed}", seed)
for path in sorted((FOLDER / "mine").glob("*/case9.*")):
    print(path)

# %% [markdown]
# ## One configuration
#
# Our pathologist tells epithelial and immune cells from the rest. `codes` says what each number of the annotators
# means in these classes; several classes for one number would say "one of these". What the file leaves open, such as
# the pixel size and the network, is as in the initial weights. The same file works with `nucleipan train`.

# %%
configuration = FOLDER / "mine.yaml"
configuration.write_text("""
name: mine
initial_weights: nucleipan-fast
data_root: .
output: run
classes:
  - {name: epithelial cell, is_thing: true, color: [230, 60, 60]}
  - {name: immune cell, is_thing: true, color: [70, 70, 220]}
  - {name: other cell, is_thing: true, color: [40, 160, 70]}
schedule: {steps: 1000, frozen_norm: true, learning_rate: 0.001, warmup_steps: 10, log_every: 5}
sources:
  - folder: mine
    layout: nuclei
    mpp: 0.5
    codes:
      "1": [epithelial cell]
      "2": [immune cell]
      "3": [other cell]
      "4": [other cell]
      "5": [epithelial cell]
""")
configuration

# %% [markdown]
# ## Train
#
# Everything is read and checked before the first step. A run that is interrupted goes on with the same cell to the
# same result. `frozen_norm` keeps the statistics that the initial weights come with; those of four images would be
# noisy.

# %%
weights = train_model(load_train_config(configuration, SETTINGS))
log = pd.read_json(FOLDER / "run" / "log.jsonl", lines=True)
log.plot("step", ["semantic", "mask", "offsets"], figsize=(6, 3), ylabel="loss")
plt.show()

# %% [markdown]
# ## Before and after
#
# Both models on images that neither has seen. The model we started from has other classes, so the truth says which of
# them would be right: `class_names.json` lists, for each number of the annotators, all names that mean it.

# %%
names = {
    "1": ["epithelial cell", "neoplastic", "non-neoplastic epithelial"],
    "2": ["immune cell", "inflammatory"],
    "3": ["other cell", "connective", "dead or other"],
}
names |= {"4": names["3"], "5": names["1"]}
(FOLDER / "held_out" / "class_names.json").write_text(json.dumps(names))

models = {"before": load_model("nucleipan-fast"), "after": load_model(weights)}
images = sorted((FOLDER / "held_out" / "images").glob("*.tif"))
scores = pd.DataFrame(index=["epithelial cell", "immune cell", "other cell", "whatever the class"])
for title, model in models.items():
    for image in images:
        segment_slide(image, FOLDER / title, model)
    evaluation = evaluate_folders(FOLDER / title, FOLDER / "held_out")
    scores[title] = [q.pq for q in (*evaluation.class_qualities, evaluation.pooled_quality)]
scores.round(3)

# %% [markdown]
# PQ is 1 for the truth itself. The nuclei were found before, too; what was learnt is what to call them.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 6), layout="constrained")
with open_slide(images[0]) as slide:
    for axes, title in zip(panels, models):
        store = PanopticStore.open(FOLDER / title / f"{images[0].stem}.ome.zarr")
        axes.imshow(overlay_of_store(store, at_mpp(slide, store.mpp)))
        axes.set_title(title)
        axes.axis("off")

# %% [markdown]
# ## With your images
#
# Copy [configs/your_data.yaml](../configs/your_data.yaml), put your folder and classes in, and take some 1000 steps.
# Keep whole patients aside to judge by, rather than other images of the same ones. Then `nucleipan segment slides/
# --out results --model runs/my-model/my-model.safetensors` does the rest.
