# %% [markdown]
# # Read a store
#
# *Which nuclei lie in which tissue, how densely, and do they seek each other's company?* The table of nuclei and the
# class image answer together, since both count in the same ids and pixels. Reading them needs neither PyTorch nor a
# GPU.
#
# The store is the one that [segment_a_slide](segment_a_slide.ipynb) wrote; any other will do.

# %%
from pathlib import Path

import geopandas
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from nucleipan import open_corrected

# %% tags=["parameters"]
STORE = Path("demo/sample.ome.zarr")
KIND = "inflammatory"  # whose company is looked at
REACH_UM = 30  # nuclei closer than this are neighbours
N_SHUFFLES = 199

# %% [markdown]
# ## The table
#
# One row a nucleus. `store.nuclei` reads the columns that are asked for, as an Arrow table; what people corrected is
# already in it. Coordinates are pixels of the slide's full resolution, lengths and areas say their unit.

# %%
store = open_corrected(STORE)
nuclei = store.nuclei(["id", "class", "tissue", "area_um2", "centroid_x", "centroid_y"]).to_pandas()
things = [c.name for c in store.classes.things]
colors = {c.name: np.divide(c.color, 255) for c in store.classes.classes}
nuclei.head()

# %% [markdown]
# ## How many, in which tissue

# %%
counts = pd.crosstab(nuclei["tissue"], nuclei["class"]).reindex(columns=things, fill_value=0)
counts

# %% [markdown]
# ## How densely
#
# Counts follow how much of a tissue there is; densities do not. In the class image nuclei lie on top, so the area of a
# tissue is that of its free pixels and of the nuclei in it. Of tissues below 0.02 mm² a density would say little.

# %%
pixels = np.bincount(store.class_map().ravel(), minlength=len(store.classes) + 1)
free_mm2 = pd.Series({c.name: pixels[c.id] * store.mpp**2 / 1e6 for c in store.classes.stuff})
covered_mm2 = nuclei.groupby("tissue", observed=True)["area_um2"].sum() / 1e6
area_mm2 = free_mm2.add(covered_mm2, fill_value=0)
density = counts.div(area_mm2, axis=0)[area_mm2 > 0.02].drop(index="background", errors="ignore")

axes = density.plot.barh(stacked=True, color=colors, figsize=(8, 3.5))
axes.set(xlabel="nuclei per mm²", ylabel="")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Who is next to whom
#
# Count how often each two classes are neighbours, then deal the class names anew among the nuclei of each tissue and
# count again. Positions stay as they are, so neither crowding nor the border of the tissue can be mistaken for
# company, and what is left is more than the composition of each tissue explains. Red: more often neighbours than by
# chance.

# %%
points_um = nuclei[["centroid_x", "centroid_y"]].to_numpy() * store.slide["mpp"]
pairs = KDTree(points_um).query_pairs(REACH_UM, output_type="ndarray")
codes = pd.Series(pd.Categorical(nuclei["class"], things).codes.astype(int))
random = np.random.default_rng(0)


def neighbours(codes):
    """How often each class is a neighbour of each, [K, K]."""
    one_way = np.zeros((len(things), len(things)), int)
    np.add.at(one_way, (codes[pairs[:, 0]], codes[pairs[:, 1]]), 1)
    return one_way + one_way.T


found = neighbours(codes.to_numpy())
by_tissue = codes.groupby(nuclei["tissue"], observed=True)
shuffled = np.stack([neighbours(by_tissue.transform(random.permutation).to_numpy()) for _ in range(N_SHUFFLES)])
z = (found - shuffled.mean(0)) / np.where(shuffled.std(0) > 0, shuffled.std(0), np.nan)

figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
image = axes.imshow(z, cmap="RdBu_r", vmin=-10, vmax=10)
axes.set_xticks(range(len(things)), things, rotation=30, ha="right")
axes.set_yticks(range(len(things)), things)
for (row, column), value in np.ndenumerate(z):
    text, color = (f"{value:.0f}", "white" if abs(value) > 6 else "black") if np.isfinite(value) else ("-", "black")
    axes.text(column, row, text, color=color, ha="center", va="center")
figure.colorbar(image, label=f"z-score of neighbours within {REACH_UM} µm")
plt.show()

# %% [markdown]
# ## At which distance
#
# Ripley's K counts, around a nucleus of one kind, others of its kind within a radius; L is the radius of the disc in
# which that many would be expected if they lay anywhere. The grey band is what as many nuclei chosen at random from
# all of them give. Above the band they keep together, over the distances where the line lies above it.

# %%
radii = np.arange(5, 155, 5)
tissue_um2 = area_mm2.drop("background", errors="ignore").sum() * 1e6


def excess(points):
    """L(r) - r, in µm; without correction at the border, which lowers line and band alike."""
    tree, n = KDTree(points), len(points)
    pairs_within = tree.count_neighbors(tree, radii) - n
    return np.sqrt(pairs_within * tissue_um2 / (np.pi * n * (n - 1))) - radii


of_kind = (nuclei["class"] == KIND).to_numpy()
by_chance = np.stack([excess(points_um[random.permutation(of_kind)]) for _ in range(N_SHUFFLES)])

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.fill_between(radii, *np.quantile(by_chance, (0.025, 0.975), axis=0), color="lightgray", label="any, 95 %")
axes.plot(radii, excess(points_um[of_kind]), color=colors[KIND], label=f"{KIND}, n = {of_kind.sum()}")
axes.set(xlabel="radius r, µm", ylabel="L(r) - r, µm")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Outlines
#
# The table is GeoParquet: geopandas, DuckDB, QGIS and R read outlines and measurements as they are. Here are the
# nuclei around the largest one, coloured by how much haematoxylin they hold.

# %%
table = geopandas.read_parquet(STORE / "nuclei.parquet")
x, y = table.loc[table["area_um2"].idxmax(), ["centroid_x", "centroid_y"]]
around = table.cx[x - 250 : x + 250, y - 250 : y + 250]

axes = around.plot("haematoxylin_od_mean", edgecolor="black", linewidth=0.3, legend=True, figsize=(7, 5.5))
axes.set(title="haematoxylin, optical density")
axes.invert_yaxis()
axes.axis("off")
plt.show()
