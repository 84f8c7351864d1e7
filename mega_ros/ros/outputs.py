"""What the node publishes about a frame. Each output is computed only while somebody subscribes to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from shape_msgs.msg import Mesh
from visualization_msgs.msg import MarkerArray

from mega_model.core.topology import Topology

from . import bodies, messages, standard
from .frame import ProcessedFrame
from .markers import Markers
from .transport import create_publisher, within


class Output:
    """A topic and how its message is made from a frame."""

    def __init__(self, publisher: Any, message: Callable[[ProcessedFrame], Any]) -> None:
        self._publisher = publisher
        self._message = message
        self.topic: str = publisher.topic_name

    def is_wanted(self) -> bool:
        return bool(self._publisher.get_subscription_count())

    def publish(self, frame: ProcessedFrame) -> None:
        self._publisher.publish(self._message(frame))


class Outputs:
    """All outputs of one camera: those of ROS' common messages, and those whose packages are installed."""

    def __init__(
        self, node: Node, topology: Topology, tf: bool, camera: str = "", humans: bodies.Humans | None = None
    ) -> None:
        """Publishes the topology. tf: whether to publish a frame per person. camera: its name, if there are several:
        `~/mesh` is `~/<camera>/mesh` then, and so on. humans: of all cameras, where hri_msgs is installed.

        Raises InputError if a package is missing, and what rclpy raises for a wrong `qos_overrides`.
        """

        def own(topic: str) -> str:
            return f"~/{within(camera, topic)}"

        scope = "/".join(filter(None, [*node.get_namespace().split("/"), camera]))
        markers = Markers(topology.faces)
        made: list[tuple[Any, str, Callable[[ProcessedFrame], Any]]] = [
            (PointCloud2, own("mesh"), _mesh),
            (PointCloud2, own("joints"), _joints),
            (MarkerArray, own("markers"), lambda frame: markers.message(frame.header, frame.people)),
            (Image, own("overlay"), lambda frame: messages.image(frame.header, frame.overlay)),
            (
                CompressedImage,
                own("overlay/compressed"),
                lambda frame: standard.jpeg_image(frame.header, frame.overlay),
            ),
        ]
        if vision := bodies.package("vision_msgs"):
            made.append((vision.Detection3DArray, own("people"), lambda frame: bodies.detections(vision, frame)))
        if tf:
            tf2 = bodies.required("tf2_msgs", "the parameter tf")
            made.append((tf2.TFMessage, "/tf", lambda frame: bodies.transforms(tf2, frame, scope, bool(humans))))
        self._outputs: list[Output | bodies.Bodies] = []
        self.topics: list[str] = []
        """The full names of what is made from a frame, but for `/humans/bodies/...`."""
        with ExitStack() as stack:
            latched = create_publisher(node, Mesh, own("topology"), durability=DurabilityPolicy.TRANSIENT_LOCAL)
            stack.callback(node.destroy_publisher, latched)
            for kind, topic, message in made:
                # many frames on one topic: tf2's own broadcasters have room for as many
                publisher = create_publisher(node, kind, topic, depth=100 if topic == "/tf" else 1)
                stack.callback(node.destroy_publisher, publisher)
                self._outputs.append(Output(publisher, message))
                self.topics.append(publisher.topic_name)
            self._bodies = bodies.Bodies(humans, scope) if humans else None
            if self._bodies:
                stack.callback(self._bodies.close)
                self._outputs.append(self._bodies)
            self._open = stack.pop_all()
        self.mesh = self.topics[0]
        """The full name of `~/mesh`."""
        latched.publish(messages.mesh(topology))

    def are_wanted(self) -> bool:
        """Whether anybody subscribes to anything that is made from a frame."""
        return any(output.is_wanted() for output in self._outputs)

    def publish(self, frame: ProcessedFrame) -> dict[str, Exception]:
        """Publishes what is wanted. What fails, by topic, and why: it does not keep the other outputs back."""
        failed: dict[str, Exception] = {}
        for output in self._outputs:
            try:
                if output.is_wanted():
                    output.publish(frame)
            except Exception as error:
                failed[output.topic] = error
        return failed

    def forget(self) -> None:
        """There are no images any more. Markers end by themselves, but the list of bodies has to be emptied."""
        if self._bodies:
            self._bodies.forget()

    def close(self) -> None:
        self._open.close()


def _mesh(frame: ProcessedFrame) -> bytes:
    people = frame.people
    return standard.people_cloud(frame.header, people.vertices, people.sigma, people.ids)


def _joints(frame: ProcessedFrame) -> bytes:
    people = frame.people
    return standard.people_cloud(frame.header, people.joints, people.joints_sigma, people.ids, people.distance)
