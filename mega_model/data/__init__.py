"""Mesh sets, image sets and the synthetic scene generator."""
