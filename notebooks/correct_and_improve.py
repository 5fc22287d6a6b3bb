# %% [markdown]
# # Correct, and improve the model
#
# *The model calls half of my nuclei by the wrong name. Can it learn from my corrections?* Corrections are kept beside
# what the model found; fields that were looked through become training data; the model that was trained on them is
# tried on a slide it has not seen. Needs `pip install 'nucleipan[train,notebooks]'`; a few minutes on a laptop.
#
# With slides one corrects in napari (*Correct*, in the plugin). Here the slide is synthetic, and what is known of it
# plays the pathologist. The calls are those that the plugin makes.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from skimage.measure import find_contours

from nucleipan import (
    Box,
    evaluate_folders,
    load_model,
    load_train_config,
    open_corrected,
    render_overlay,
    segment_slide,
    train_model,
)
from nucleipan.edits import (
    EditLog,
    change_class,
    delete_nuclei,
    export_training,
    nucleus_in_polygon,
    redraw_nucleus,
)
from nucleipan.synthetic import SyntheticScene, write_slide, write_truth

# %% tags=["parameters"]
FOLDER = Path("demo/correct_and_improve")
SHAPE = (1024, 1024)
FIELD = Box(256, 256, 768, 768)  # what the pathologist looks through
SETTINGS = ["schedule.steps=100", "schedule.batch_size=4"]

# %% [markdown]
# ## What the model finds
#
# Each run of the notebook works in a new folder, and so starts without corrections.

# %%
FOLDER.mkdir(parents=True, exist_ok=True)
folder = Path(tempfile.mkdtemp(dir=FOLDER))
scene = SyntheticScene(SHAPE, seed=2)
write_slide(scene, folder / "slide.tif")
model = load_model("nucleipan-fast")
store = segment_slide(folder / "slide.tif", folder / "found", model).store
image, truth, kinds = scene.rgb(FIELD), scene.instances(FIELD), scene.classes(FIELD)


def show(axes, title, instances, classes):
    axes.imshow(render_overlay(image, instances, classes, store.classes, thickness=2))
    axes.set_title(title)
    axes.axis("off")


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
show(left, "what the model finds", store.instances(FIELD), store.class_map(FIELD))
show(right, "what the pathologist sees", truth, kinds)

# %% [markdown]
# ## Correct it
#
# An edit is made from what somebody chose or drew, and takes effect when it is appended to the store's log. First the
# nuclei that are none, and those with another class than they should have.

# %%
log = EditLog.open(store)
found = log.instances(FIELD)
wrong, class_of = [], {}
for nucleus in np.unique(found[found > 0]).tolist():
    is_nucleus = truth[found == nucleus] > 0
    if is_nucleus.mean() < 0.5:
        wrong.append(nucleus)
    else:
        class_of[nucleus] = int(np.bincount(kinds[found == nucleus][is_nucleus]).argmax())

if wrong:
    log.append(delete_nuclei(log, wrong), author="A. Pathologist")
for thing in store.classes.things:
    ids = [i for i, class_id in class_of.items() if class_id == thing.id and log.class_of(i) != thing.id]
    if ids:
        log.append(change_class(log, ids, thing.id), author="A. Pathologist")

# %% [markdown]
# Then those that were missed: a polygon around one adds it. Points are (y, x) in pixels of the store.

# %%
for nucleus in np.unique(truth[truth > 0]).tolist():
    mask = truth == nucleus
    if (found[mask] > 0).mean() < 0.5 and mask.sum() > 20:
        outline = find_contours(np.pad(mask, 1), 0.5)[0] - 0.5 + (FIELD.y0, FIELD.x0)
        if nucleus_in_polygon(log, outline) is None:
            edit = redraw_nucleus(log, outline, None, class_id=int(kinds[mask][0]))
            log.append(edit, author="A. Pathologist")
pd.Series([saved.edit.kind for saved in log.edits], name="edits").value_counts()

# %% [markdown]
# ## Say that the field is done
#
# Training takes a field at its word: what is not marked there is no nucleus. So only fields that somebody has looked
# through are exported. The original is still in the store; `open_corrected` reads it with the corrections.

# %%
log.mark_checked(FIELD, author="A. Pathologist")
n_fields = export_training(log, folder / "slide.tif", folder / "corrections")
print(f"fields: {n_fields}, edits: {len(log.edits)}")

figure, axes = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
corrected = open_corrected(store.path)
show(axes, "corrected", corrected.instances(FIELD), corrected.class_map(FIELD))

# %% [markdown]
# ## Train on it
#
# With the fields comes a text that says what to paste into a configuration. The run starts from the model that was
# corrected and keeps its classes.

# %%
readme = (folder / "corrections" / "README.txt").read_text()
sources = readme[readme.index("sources:") :]
print(sources)

# %%
(folder / "improved.yaml").write_text(f"""
name: improved
initial_weights: nucleipan-fast
data_root: .
output: run
schedule: {{steps: 1000, frozen_norm: true, learning_rate: 0.001, warmup_steps: 10}}
{sources}""")
weights = train_model(load_train_config(folder / "improved.yaml", SETTINGS))

# %% [markdown]
# ## Better?
#
# On a second slide, of which no model has seen anything. PQ of each class punishes wrong names, missed nuclei and bad
# outlines alike.

# %%
second = SyntheticScene(SHAPE, seed=1)
write_slide(second, folder / "second.tif")
write_truth(second, folder / "truth", "second")
scores = {}
for title, candidate in (("before", model), ("after", load_model(weights))):
    segment_slide(folder / "second.tif", folder / title, candidate)
    evaluation = evaluate_folders(folder / title, folder / "truth")
    scores[title] = dict(zip(evaluation.classes, (q.pq for q in evaluation.class_qualities)))

axes = pd.DataFrame(scores).plot.barh(figsize=(7, 3.5), color=["silver", "seagreen"])
axes.set(xlabel="PQ", xlim=(0, 1))
axes.invert_yaxis()
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# One field helps with the stain and the organ at hand and may cost elsewhere: judge the new model on slides like those
# it is meant for, and keep a few checked fields out of the training to do so.
