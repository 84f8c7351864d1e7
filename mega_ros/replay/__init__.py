"""Replays images from files and bags, and evaluates the result.

Only `live`, which plays to the node over DDS, needs rclpy.
"""
