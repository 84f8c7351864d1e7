"""Everything that depends on ROS: the node, its parameters and diagnostics, and conversion of messages.

What the offline replay uses works without a ROS installation: `camera_info`, `images`, `markers`, `read`, `signals`,
`standard`.
"""
