"""The beginning of the demo's clip, for tests that need people whom the default model finds."""

from pathlib import Path
from typing import Any

import cv2
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_JAZZY)
CLIP = Path(__file__).resolve().parents[1] / "demo" / "clip"


def bag(path: Path, seconds: float) -> Path:
    """A bag with all topics of the clip. It has 15 images per second, and ground truth for every third one."""
    with (
        AnyReader([CLIP], default_typestore=TYPES) as clip,
        Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer,
    ):
        topics = {c.topic: writer.add_connection(c.topic, c.msgtype, typestore=TYPES) for c in clip.connections}
        for connection, stamp, raw in clip.messages(stop=clip.start_time + int(seconds * 1e9)):
            writer.write(topics[connection.topic], stamp, raw)
    return path


def film(path: Path, seconds: float) -> Path:
    """Its images, as a video."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 15, (640, 480))
    with AnyReader([CLIP], default_typestore=TYPES) as clip:
        images = [connection for connection in clip.connections if "image" in connection.topic]
        for connection, _, raw in clip.messages(images, stop=clip.start_time + int(seconds * 1e9)):
            message: Any = clip.deserialize(raw, connection.msgtype)
            image = cv2.imdecode(message.data, cv2.IMREAD_COLOR)
            assert image is not None
            writer.write(image)
    writer.release()
    return path
