"""Streams of images played to the node over DDS, and annotated photographs: what comes of them, and how good it is."""
