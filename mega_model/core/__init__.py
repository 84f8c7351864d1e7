"""Shared by training and runtime, numpy only: bodies, cameras, boxes, metrics and errors. It is the only part of
mega_model that `mega_ros` may import, so it must not import torch."""
