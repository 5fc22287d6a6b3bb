"""Exports: one file per format, each reads a finished store and writes one file or folder."""

from nucleipan.exports.geojson import export_geojson

__all__ = ["export_geojson"]
