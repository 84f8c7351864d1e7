"""Evaluation: one module per table of the paper, and shared modules.

`predict` runs a model on an image set, `protocols` computes errors of meshes, `report` writes tables, JSON and HTML,
`draw` draws the figures.
"""
