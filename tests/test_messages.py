"""People and topology as ROS messages."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_ros.ros import messages, standard
from mega_ros.ros.images import to_bgr
from mega_ros.ros.read import positions, read_cloud, read_stamp

HEADER = Header(stamp=Time(sec=12, nanosec=345), frame_id="camera_optical_frame")


def some_people(people: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(people)
    points = random.normal(size=(people, columns, 3)).astype(np.float32)
    return points, random.random((people, columns), np.float32), np.arange(7, 7 + people, dtype=np.uint32)


@settings(max_examples=20, deadline=None)
@given(people=st.integers(0, 4), columns=st.integers(1, 30))
def test_round_trip(people: int, columns: int) -> None:
    points, sigma, ids = some_people(people, columns)
    message = deserialize_message(standard.people_cloud(HEADER, points, sigma, ids), PointCloud2)
    assert message.header == HEADER and message.is_dense
    assert (message.height, message.width, message.point_step) == (people, columns, 20)
    assert [(f.name, f.offset, f.datatype) for f in message.fields] == [
        ("x", 0, PointField.FLOAT32),
        ("y", 4, PointField.FLOAT32),
        ("z", 8, PointField.FLOAT32),
        ("sigma", 12, PointField.FLOAT32),
        ("id", 16, PointField.UINT32),
    ]
    cloud = read_cloud(message)
    assert cloud.shape == (people, columns)
    np.testing.assert_array_equal(positions(cloud), points)
    np.testing.assert_array_equal(cloud["sigma"], sigma)
    np.testing.assert_array_equal(cloud["id"], np.tile(ids[:, None], columns))


def test_bags_hold_the_same() -> None:
    """What rosbags reads from rclpy's bytes is what was sent."""
    points, sigma, ids = some_people(2, 5)
    message = deserialize_message(standard.people_cloud(HEADER, points, sigma, ids), PointCloud2)
    store = get_typestore(Stores.ROS2_JAZZY)
    cloud = read_cloud(store.deserialize_cdr(serialize_message(message), "sensor_msgs/msg/PointCloud2"))
    np.testing.assert_array_equal(positions(cloud), points)
    np.testing.assert_array_equal(cloud["id"][:, 0], ids)


@pytest.mark.parametrize("order", ["<", ">"])
def test_foreign_clouds_are_read_by_field_name(order: str) -> None:
    """Other order, unknown fields, gaps within points, padding after rows, either byte order."""
    dtype = np.dtype(
        {
            "names": ["visible", "z", "y", "x"],
            "formats": [order + "f4", order + "f4", order + "f8", order + "f4"],
            "offsets": [0, 4, 8, 20],
            "itemsize": 28,
        }
    )
    cloud = np.zeros((2, 3), dtype)
    for k, name in enumerate(dtype.names or ()):
        cloud[name] = np.arange(6).reshape(2, 3) + 10 * k
    rows = np.pad(cloud.view(np.uint8).reshape(2, -1), ((0, 0), (0, 8)))
    message = PointCloud2(height=2, width=3, is_bigendian=order == ">", point_step=28, row_step=3 * 28 + 8)
    for name, offset, kind in (("visible", 0, 7), ("z", 4, 7), ("y", 8, 8), ("x", 20, 7)):
        message.fields.append(PointField(name=name, offset=offset, datatype=kind, count=1))
    message.data.frombytes(rows.tobytes())
    read = read_cloud(message)
    np.testing.assert_array_equal(read["visible"], cloud["visible"])
    expected = np.stack([cloud["x"], cloud["y"], cloud["z"]], axis=-1).astype(np.float32)
    np.testing.assert_array_equal(positions(read), expected)


def test_cut_off_cloud() -> None:
    message = deserialize_message(standard.people_cloud(HEADER, *some_people(2, 5)), PointCloud2)
    del message.data[-1:]
    with pytest.raises(InputError, match="only 199 bytes"):
        read_cloud(message)


def test_topology_message() -> None:
    topology = Topology(
        template=np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
        faces=np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], np.int32),
        joint_regressor=np.full((24, 4), 0.25, np.float32),
        parts=np.zeros(4, np.int32),
    )
    message = messages.mesh(topology)
    np.testing.assert_array_equal([t.vertex_indices for t in message.triangles], topology.faces)
    np.testing.assert_array_equal([[p.x, p.y, p.z] for p in message.vertices], topology.template)


def test_images_are_read_as_they_were_sent() -> None:
    """Wider than high, as a message and as a JPEG."""
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 32, axis=0)
    bgr = np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)
    raw = deserialize_message(serialize_message(messages.image(HEADER, bgr)), Image)
    assert (raw.header, raw.height, raw.width, raw.step, raw.encoding) == (HEADER, 32, 64, 192, "bgr8")
    np.testing.assert_array_equal(to_bgr(raw), bgr)
    jpeg = deserialize_message(standard.jpeg_image(HEADER, bgr), CompressedImage)
    assert (jpeg.header, jpeg.format) == (HEADER, "bgr8; jpeg compressed bgr8")
    assert np.abs(to_bgr(jpeg).astype(int) - bgr).mean() < 3


def test_a_header_of_a_bag_is_copied() -> None:
    recorded = get_typestore(Stores.ROS2_JAZZY).deserialize_cdr(
        serialize_message(Image(header=HEADER)), "sensor_msgs/msg/Image"
    )
    assert messages.header_of(recorded) == HEADER


def test_stamp_is_in_nanoseconds() -> None:
    assert read_stamp(PointCloud2(header=HEADER)) == 12_000_000_345
