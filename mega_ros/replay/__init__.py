"""Images from files and bags, what the product makes of them, and how good that is.

Only `live`, which plays to the node over DDS, needs rclpy.
"""
