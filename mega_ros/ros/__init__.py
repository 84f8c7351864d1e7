"""Everything that depends on ROS: the node, its parameters and diagnostics, and conversion of messages.

`images` and `read` also accept messages of rosbags, so they do not import ROS.
"""
