"""`mega view` of a running node: its topics to the page of `mega_ros.viewer`."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.exceptions import NameValidationException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, PointCloud2
from shape_msgs.msg import Mesh

from mega_model.core.errors import InputError, first_line

from ..viewer import Meshes, Page, ViewOptions
from .camera_info import camera_for
from .dds import use_large_messages
from .images import to_bgr
from .read import positions, read_cloud, read_stamp
from .signals import Ending
from .transport import MatchedSubscription, image_sources

IMAGES = 30
"""Images that are kept until their mesh comes."""


class NodeView(Node):  # type: ignore[misc]  # rclpy's types are skipped
    """Subscribes to a node's mesh and topology, and to the images that its diagnostics name."""

    def __init__(self, options: ViewOptions) -> None:
        super().__init__("mega_view")
        self._options = options
        self.page: Page | None = None
        """From the topology on."""
        self._vertices = 0
        self._images: deque[Any] = deque(maxlen=IMAGES)
        self._info: Any = None  # CameraInfo
        self._rectified = False
        self._topics = "", ""  # of images and camera_info
        self._sources: list[MatchedSubscription] = []
        self.create_subscription(PointCloud2, f"{options.node}/mesh", self._on_mesh, 1)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(Mesh, f"{options.node}/topology", self._on_topology, latched)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def close(self) -> None:
        if self.page:
            self.page.close()

    def _on_topology(self, topology: Mesh) -> None:
        faces = np.array([triangle.vertex_indices for triangle in topology.triangles], np.int64)
        if not len(faces) or faces.max() >= len(topology.vertices):
            self._warn("it has no triangles, or some of vertices that it lacks", f"{self._options.node}/topology")
            return
        same = self._vertices == len(topology.vertices)
        if self.page and same and np.array_equal(faces, self.page.faces):  # the node was configured again
            return
        self.close()
        self._vertices = len(topology.vertices)
        self.page = Page(faces, self._options.host, self._options.port, self._options.record)
        print(f"{self.page.url}, Ctrl-C ends it", flush=True)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {value.key: value.value for value in status.values}
            topics = values.get("image_topic", ""), values.get("camera_info_topic", "")
            if status.name != self._options.node.strip("/") or not all(topics):
                continue
            self._rectified = values.get("rectified") == "true"
            try:
                if topics != self._topics:  # the node has started anew, with another camera
                    self._listen(*topics)
                for source in self._sources:
                    source.follow()
            except (ValueError, RuntimeError) as error:  # rclpy's, about names that are no topics
                why = f"image_topic and camera_info_topic {', '.join(topics)}: {first_line(error)}"
                self._warn(why, "/diagnostics")

    def _listen(self, image: str, camera_info: str) -> None:
        """To these topics, in place of earlier ones."""
        while self._sources:
            self._sources.pop().close()
        self._topics, self._info = (image, camera_info), None
        self._images.clear()
        sources = image_sources(image, "auto")
        self._sources.append(MatchedSubscription(self, sources, self._on_image, self._warn))
        infos = [(camera_info, CameraInfo)]
        self._sources.append(MatchedSubscription(self, infos, self._on_camera_info, self._warn))

    def _on_image(self, image: Any) -> None:
        self._images.append(image)

    def _warn(self, reason: str, topic: str) -> None:
        self.get_logger().warning(f"{topic}: {reason}", throttle_duration_sec=5.0)

    def _on_camera_info(self, info: Any) -> None:
        self._info = info

    def _on_mesh(self, message: PointCloud2) -> None:
        if self.page is None:
            return
        try:
            cloud = read_cloud(message)
            if cloud.size and cloud.shape[1] != self._vertices:
                raise InputError(f"{cloud.shape[1]} vertices, the topology has {self._vertices}")
            ids = cloud["id"][:, 0] if cloud.size else np.zeros(0, np.uint32)
            meshes = Meshes(positions(cloud), cloud["sigma"], ids, *self._image(read_stamp(message)))
        except (ValueError, KeyError) as error:  # the first word on what other nodes publish
            self._warn(str(error), f"{self._options.node}/mesh")
            return
        self.page.show(meshes)

    def _image(self, stamp: int) -> tuple[Any, ...]:
        """The image of this stamp and its camera, as far as they are known."""
        # without stamps, the node gives meshes the time of arrival
        image = next((to_bgr(image) for image in reversed(self._images) if read_stamp(image) in (stamp, 0)), None)
        if image is None:
            return ()
        height, width = image.shape[:2]
        camera = camera_for(self._info, width, height, self._rectified)[0] if self._info else None
        return (image, camera) if camera else (image,)


def show(options: ViewOptions) -> int:
    """Until a signal."""
    ending = Ending()
    use_large_messages()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        view = NodeView(options)
    except NameValidationException as error:
        rclpy.try_shutdown()
        raise InputError(f"--node {options.node}: {first_line(error).rstrip(':')}") from None
    print(f"waiting for {options.node}/topology", flush=True)
    executor = SingleThreadedExecutor()
    executor.add_node(view)
    try:
        while not ending.asked.is_set():
            executor.spin_once(timeout_sec=0.1)
    finally:
        executor.shutdown()
        view.close()
        view.destroy_node()
        rclpy.try_shutdown()
    return 0
