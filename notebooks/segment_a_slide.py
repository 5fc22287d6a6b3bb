# %% [markdown]
# # Segment a slide
#
# *What lies on this slide, and where?* Segmenting gives every pixel a class and every nucleus an id of its own, across
# the whole slide. The sample takes a few seconds on a laptop, without a GPU.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from nucleipan import Box, at_mpp, export_store, load_model, model_for, open_slide, overlay_of_store, segment_slide
from nucleipan.sample import fetch_sample

# %% tags=["parameters"]
SLIDE = Path("demo/sample.svs")  # or a slide of yours
OUT = Path("demo")
FIELD = Box(600, 900, 1200, 1700)  # what to look at, y0, x0, y1, x1 in pixels of the model
DETAIL = Box(720, 1080, 900, 1350)

# %% [markdown]
# ## A slide
#
# The sample is a small public slide. Without a network a synthetic one takes its place: good for trying things out,
# but its tissue looks like no tissue that the models have seen.

# %%
if not SLIDE.exists():
    SLIDE.parent.mkdir(parents=True, exist_ok=True)
    print(fetch_sample(SLIDE).message)
slide = open_slide(SLIDE)
print(f"{slide.levels[0].shape} pixels of {slide.mpp} µm")

# %% [markdown]
# ## Segment it
#
# Between two of the models that come with the package, one for slides scanned at 40x and one for 20x, the slide's pixel
# size chooses. What comes out is a folder, the *store*. Run the cell again and the finished store is opened; had
# the run been interrupted, it would go on where it was.

# %%
model = load_model(model_for(slide.mpp))
result = segment_slide(SLIDE, OUT, model)
store = result.store
print(f"{store.n_nuclei} nuclei with {model.info.name} in {result.seconds:.1f} s: {store.path}")
for note in result.notes:
    print(note)

# %% [markdown]
# ## From far away: tissue
#
# Class ids become colours by a look-up. The coarsest level of the store's pyramid is enough for the whole slide.
# Nuclei are part of the class image, as the dark spots in the pale tissue.

# %%
classes = store.class_map(level=store.n_levels - 1)
present = [store.classes.by_id(i) for i in np.unique(classes[classes > 0]).tolist()]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 6), layout="constrained")
extent = (0, store.shape[1], store.shape[0], 0)
left.imshow(store.overview(), extent=extent)
right.imshow(store.classes.colors[classes], extent=extent, interpolation="nearest")
for axes in (left, right):
    axes.add_patch(Rectangle((FIELD.x0, FIELD.y0), FIELD.width, FIELD.height, fill=False, linewidth=2))
    axes.axis("off")
swatches = [Patch(facecolor=np.divide(c.color, 255), edgecolor="gray", label=c.name) for c in present]
figure.legend(handles=swatches, loc="outside lower center", ncols=5, frameon=False)
plt.show()

# %% [markdown]
# ## Closer: nuclei on tissue
#
# The framed field, pixel by pixel as the model saw it. Nuclei are outlined in the colour of their class, tissue is
# tinted. A *view* is the slide in the model's pixel size, whatever the slide's own.

# %%
view = at_mpp(slide, store.mpp)
Image.fromarray(overlay_of_store(store, view, FIELD))

# %% [markdown]
# ## Closest: single nuclei
#
# Three times enlarged. Are the outlines on the nuclei? Are neighbours told apart? This is the look that shows whether
# a model suits your stain and scanner; no score replaces it.

# %%
detail = Image.fromarray(overlay_of_store(store, view, DETAIL))
detail.resize((3 * detail.width, 3 * detail.height), Image.Resampling.BICUBIC)

# %% [markdown]
# ## Take it elsewhere
#
# A GeoJSON file opens in QuPath. In napari, `nucleipan view demo/sample.svs demo/sample.ome.zarr` shows slide and
# store. What Python reads from the store is the subject of [read_a_store](read_a_store.ipynb).

# %%
geojson = OUT / "sample.geojson.gz"
print(f"{export_store(store, 'geojson', geojson)} nuclei in {geojson}")
