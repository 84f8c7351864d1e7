"""What training and runtime share: bodies, cameras, boxes, scores and errors, in numpy. `mega_ros` may import this
part of mega_model alone, so nothing here may import torch."""
