"""The napari plugin is not part of this version."""
