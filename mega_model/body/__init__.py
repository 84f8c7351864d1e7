"""Parametric bodies that make training meshes."""
