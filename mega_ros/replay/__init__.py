"""Streams of images played to the node over DDS, and what it made of them: table, video, contact sheet."""
