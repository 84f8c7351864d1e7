"""`mega clip`: renders the demo's clip, two people with held-out motion, as a ROS 2 bag in demo/clip.

`mega clip --crowd` renders a longer one, to measure how people are told apart (docs/robot/people.md).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys.stores import ros2_jazzy as ros
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation, Slerp
from tqdm import tqdm

from export.options import Clip
from mega_model.body.anny import AnnyBody
from mega_model.core.geometry import intrinsics_from_fov
from mega_model.data import backgrounds, sensor
from mega_model.data.appearance import Appearance, Light
from mega_model.data.meshes import POSES, BodySampler
from mega_model.data.scenes import VIEW_AXES, Renderer, Scene, Thing, View
from mega_ros.ros.read import POINT
from mega_ros.ros.standard import MESSAGES, camera_info, header, point_cloud, serialised

RATE, SECONDS = 15, 6
CROWD_SECONDS = 20
TURNING = 15
"""Frames in which somebody of the crowd turns around."""
WIDTH, HEIGHT = 640, 480
FOV = np.radians(60)
FINER = 4
"""Ground contact is computed at this many times the clip's rate."""
TRUTH_EVERY = 3
"""Every third frame has ground truth, to limit the size of the file."""
START = 1_767_225_600
"""Stamp of the first frame, seconds: 1 January 2026."""
QUALITY = 85
"""Of the JPEG images."""
FRAME = "camera_optical_frame"
SEED = 6
PILLAR = [(0.57, 0.63, 0.16, 0.91), (0.60, 0.86, 0.67, 0.91)]
"""And a low wall."""
WALL = [(0.52, 0.86, 0.12, 0.95)]
"""Of the crowd: nobody is seen behind it, for about two seconds."""


def motion(body: AnnyBody, clip: int, phenotype: np.ndarray, speed: float, seconds: int = SECONDS) -> np.ndarray:
    """A body that moves over the ground with the poses of a motion clip: [T, V, 3], y up, initially facing z.

    The poses are unevenly spaced in time, so the mean joint `speed` (m/s) is assumed constant. Root translation is
    unknown, so the lowest vertices are assumed to stand still. Clips that are too short are repeated.
    """
    with np.load(POSES, allow_pickle=False) as data:
        poses, bones = data["pose"][data["clip"] == clip].astype(np.float64), data["joints"].tolist()
    phenotypes = np.repeat(phenotype[None], len(poses), axis=0)
    _, heads, root = body.canonical(poses, bones, phenotypes)
    heads = np.einsum("tij,tbj->tbi", root, heads)
    steps = np.linalg.norm(np.diff(heads, axis=0), axis=-1).mean(axis=1) / speed
    times = np.concatenate([[0], np.cumsum(steps)])

    wanted = np.arange(RATE * seconds * FINER) / (RATE * FINER)
    if times[-1] < wanted[-1]:
        poses, times = _repeat(poses, heads, times, wanted[-1])
    turns = [Slerp(times, Rotation.from_rotvec(poses[:, k]))(wanted).as_rotvec() for k in range(len(bones))]
    vertices, _, root = body.canonical(np.stack(turns, axis=1), bones, np.repeat(phenotype[None], len(wanted), axis=0))
    vertices = np.einsum("tij,tvj->tvi", root, vertices)

    lowest = np.argsort(vertices[:-1, :, 1] + vertices[1:, :, 1], axis=1)[:, :12]
    slip = np.take_along_axis(np.diff(vertices, axis=0), lowest[..., None], axis=1).mean(axis=1)
    path = np.concatenate([np.zeros((1, 3)), -np.cumsum(slip, axis=0)])
    path[:, 1] = -vertices[..., 1].min(axis=1)
    return (vertices + gaussian_filter1d(path, FINER, axis=0)[:, None])[::FINER]


def _repeat(poses: np.ndarray, heads: np.ndarray, times: np.ndarray, until: float) -> tuple[np.ndarray, np.ndarray]:
    """Poses and times of the clip, looped until `until`; the loop joins the two most similar poses."""
    apart = np.linalg.norm(heads[:, None] - heads[None], axis=-1).mean(axis=-1)
    apart[times[None] - times[:, None] < 0.6 * times[-1]] = np.inf
    first, last = np.unravel_index(np.argmin(apart), apart.shape)
    length = times[last] - times[first]
    rounds = range(int(until / length) + 1)
    looped = np.concatenate([times[first:last] - times[first] + k * length for k in rounds] + [[len(rounds) * length]])
    return np.concatenate([poses[first:last]] * len(rounds) + [poses[first : first + 1]]), looped


def scene(body: AnnyBody) -> np.ndarray:
    """One person walks from left to right, one towards the camera: [T, 2, V, 3], world (y up), metres."""
    # clips 40 and 90 belong to the test split; phenotypes: gender, age, muscle, weight, height, proportions
    walks = [
        # clip, joint speed, phenotype, heading (0: to the camera, 90: to the right), where at half time: right, away
        (90, 0.28, [0.1, 0.70, 0.5, 0.45, 0.45, 0.6], 84, (0.1, 3.9)),
        (40, 0.22, [0.9, 0.75, 0.6, 0.55, 0.55, 0.5], -9, (-0.75, 4.8)),
    ]
    people = []
    for clip, speed, phenotype, heading, (right, away) in walks:
        points = motion(body, clip, np.array(phenotype), speed)
        points = points @ Rotation.from_euler("y", heading, degrees=True).as_matrix().T
        middle = points[len(points) // 2].mean(axis=0)
        people.append(points - [middle[0] - right, 0, middle[2] + away])
    return np.stack(people, axis=1)


def crowd(body: AnnyBody) -> np.ndarray:
    """Five people who walk to and fro across the view: [T, 5, V, 3], world (y up), metres."""
    walks = [
        # clip, joint speed, phenotype, heading (0: to the camera, 90: to the right), start: right, away; turns, seconds
        (90, 0.28, [0.1, 0.70, 0.5, 0.45, 0.45, 0.6], 90, (-2.4, 4.6), (5, 10, 15)),
        (90, 0.26, [0.9, 0.60, 0.6, 0.55, 0.60, 0.5], -90, (2.6, 5.6), (5.5, 11, 16)),
        (40, 0.24, [0.8, 0.75, 0.6, 0.55, 0.55, 0.5], 80, (-3.2, 6.4), (6.5, 13)),
        (40, 0.22, [0.3, 0.50, 0.4, 0.40, 0.30, 0.4], -75, (2.0, 7.2), (6, 12.5, 18)),
        (90, 0.22, [0.6, 0.80, 0.5, 0.50, 0.50, 0.5], 15, (-1.4, 8.0), (7, 14)),
    ]
    people = []
    for clip, speed, phenotype, heading, (right, away), turns in walks:
        points = motion(body, clip, np.array(phenotype), speed, CROWD_SECONDS)
        middle = points.mean(axis=1) * [1, 0, 1]
        times = np.arange(len(points))
        turned = np.sum([np.clip((times - RATE * turn) / TURNING, 0, 1) for turn in turns], axis=0)
        rotation = Rotation.from_rotvec((heading + 180 * turned)[:, None] * [0, 1, 0], degrees=True).as_matrix()
        steps = np.einsum("tij,tj->ti", rotation[:-1], np.diff(middle, axis=0))
        path = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]) + [right, 0, -away]
        people.append((points - middle[:, None]) @ rotation.swapaxes(1, 2) + path[:, None])
    return np.stack(people, axis=1)


def camera() -> View:
    """A camera 1.35 m above the ground, tilted slightly down."""
    tilt = Rotation.from_euler("x", -5, degrees=True).as_matrix()
    frame = np.array([WIDTH, HEIGHT])
    return View(np.array([0, 1.35, 0]), tilt @ VIEW_AXES, intrinsics_from_fov(WIDTH, HEIGHT, FOV), frame)


def render(
    body: AnnyBody, vertices: np.ndarray, view: View, boards: list[tuple[float, float, float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """People [T, P, V, 3] (camera frame) behind boards: left, right, top, bottom, as shares of the image.

    Returns images uint8 [T, H, W, 3] RGB and visible bool [T, P, V].
    """
    rng = np.random.default_rng(SEED)
    bodies = BodySampler("test")
    topology = body.topology(bodies.poses[:200], bodies.bones, np.full((200, 6), 0.5))
    renderer = Renderer(topology, HEIGHT, WIDTH)
    appearances = [Appearance.draw(rng) for _ in range(vertices.shape[1])]
    light = Light.draw(rng)
    background = backgrounds.room(rng, view.rays(HEIGHT, WIDTH), view.eye[1], 6).astype(np.float32)
    things = [_board(rng, *board) for board in boards]
    images, visible = [], []
    for points in tqdm(vertices, desc="rendering"):
        shown = Scene(points, appearances, view.intrinsics, view.rotation, light, background, things)
        image, seen, _ = renderer.render([shown])[0]
        images.append(sensor.display(image))
        visible.append(seen)
    return np.stack(images), np.stack(visible)


def _board(rng: np.random.Generator, left: float, right: float, top: float, bottom: float) -> Thing:
    outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return Thing(outline, backgrounds.texture(rng))


def write_bag(
    path: Path, images: np.ndarray, intrinsics: np.ndarray, vertices: np.ndarray, visible: np.ndarray
) -> None:
    """JPEG images, camera_info and ground truth as a compressed MCAP bag, in the format of the demo."""
    writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        info, compressed, truth = (
            writer.add_connection(topic, f"sensor_msgs/msg/{kind}", typestore=MESSAGES)
            for topic, kind in (
                ("/camera/camera_info", "CameraInfo"),
                ("/camera/image_raw/compressed", "CompressedImage"),
                ("/mega/ground_truth", "PointCloud2"),
            )
        )
        for frame, image in enumerate(images):
            stamp = START * 10**9 + round(frame * 1e9 / RATE)
            head = header(stamp, FRAME)
            jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].ravel()
            writer.write(info, stamp, serialised(camera_info(head, WIDTH, HEIGHT, intrinsics)))
            writer.write(compressed, stamp, serialised(ros.sensor_msgs__msg__CompressedImage(head, "jpeg", jpeg)))
            if frame % TRUTH_EVERY == 0:
                points = _points(vertices[frame], visible[frame])
                writer.write(truth, stamp, serialised(point_cloud(head, points)))


def _points(vertices: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """People [P, V, 3] with the fields of the node's mesh, and `visible` (1: the camera sees the vertex)."""
    points = np.zeros(visible.shape, [*POINT.descr, ("visible", "<f4")])
    for axis, name in enumerate("xyz"):
        points[name] = vertices[..., axis].round(3)  # millimetres, for compression
    points["id"] = np.arange(len(points))[:, None]
    points["visible"] = visible
    return points


def make(out: Path, crowded: bool = False) -> None:
    """Write the clip to `out`. Existing content is replaced."""
    body, view = AnnyBody(), camera()
    vertices = view.camera((crowd if crowded else scene)(body))
    images, visible = render(body, vertices, view, WALL if crowded else PILLAR)
    shutil.rmtree(out, ignore_errors=True)
    write_bag(out, images, view.intrinsics, vertices, visible)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {len(images)} frames, {size / 1e6:.1f} MB")


def main(config: Clip) -> None:
    make(config.out, config.crowd)
