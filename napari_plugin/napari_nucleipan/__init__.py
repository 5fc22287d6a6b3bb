"""nucleipan in napari: see a slide and its nuclei, run the model on what you look at, correct what is wrong.

The plugin's parts are named in ``napari.yaml``; nothing is imported before napari asks for it.
"""
