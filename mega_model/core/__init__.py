"""Shared by training and runtime: bodies, cameras, boxes, metrics and errors. It is the only part of mega_model that
`mega_ros` may import, so it needs neither torch nor ROS."""
