"""All that knows ROS: the node, its parameters and diagnostics, and messages to arrays and back.

`images` and `read` also take the messages of rosbags, so they import no ROS.
"""
