"""Scores: one module per table of the paper, and what they share.

`predict` runs a model once over an image set, `protocols` turns meshes into errors, `report` makes the table, the JSON
and the page, `draw` the figures.
"""
