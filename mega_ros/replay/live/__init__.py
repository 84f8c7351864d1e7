"""The live half of the replay: images played over DDS to a node in its own process, in real time. Needs rclpy."""
