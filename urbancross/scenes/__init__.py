"""Scenes: rasters that say where on the globe they lie, cut into tiles on a grid."""
