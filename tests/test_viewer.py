"""`mega view`: the page's scene, what a browser shows of it, recordings, and files and topics as sources."""

import base64
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from domains import free_domain
from geometry_msgs.msg import Point
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from shape_msgs.msg import Mesh, MeshTriangle
from std_msgs.msg import Header
from test_outputs import K, some_people

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_ros.bundle import DEFAULT, TOPOLOGY
from mega_ros.draw import vertex_normals
from mega_ros.replay.results import MeshFile
from mega_ros.ros import messages, standard
from mega_ros.viewer import Meshes, Page, RecordedMeshes, ViewOptions, main

msgspec = pytest.importorskip("msgspec")
pytest.importorskip("viser")
import trimesh  # noqa: E402  # viser brings these
import zstandard  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from mega_ros.ros.view import NodeView  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
IMAGE = np.full((240, 320, 3), (255, 0, 0), np.uint8)
OTHER = [500.0, 0.0, 160.0, 0.0, 500.0, 120.0, 0.0, 0.0, 1.0]
"""K of an image that is not rectified."""


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology.load(DEFAULT / TOPOLOGY)


def port() -> int:
    return random.SystemRandom().randint(20000, 60000)


@pytest.fixture
def page(topology: Topology, tmp_path: Path) -> Iterator[Page]:
    made = Page(topology.faces, "localhost", port(), tmp_path / "out" / "view.html")
    yield made
    made.close()


def meshes(topology: Topology, ids: list[int], image: np.ndarray | None = None) -> Meshes:
    people = some_people(topology, ids)
    return Meshes(people.vertices, people.sigma, people.ids, image, Camera(K))


def content(html: str) -> tuple[float, list[tuple[float, dict[str, Any]]]]:
    """The duration of a recorded page, seconds, and its messages with their times."""
    found = re.search('__VISER_EMBED_DATA__="(.*?)"', html)
    assert found
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(base64.b64decode(found[1])[8:])
    (length,) = struct.unpack("<Q", raw[:8])
    decoded = msgspec.msgpack.decode(raw[8 : 8 + length])
    return decoded["durationSeconds"], decoded["messages"]


def messages_of(page: Page) -> list[tuple[float, dict[str, Any]]]:
    """What a browser that connects now is sent."""
    return content(page.server.get_scene_serializer().as_html())[1]


def scene(page: Page) -> dict[str, Any]:
    """What a browser that connects now is shown: name -> properties."""
    return {message["name"]: message["props"] for _, message in messages_of(page) if "props" in message}


def surface(properties: dict[str, Any]) -> Any:
    stream = trimesh.util.wrap_as_stream(bytes(properties["glb_data"]))
    return next(iter(trimesh.load_scene(stream, file_type="glb", process=False).geometry.values()))


def test_the_scene_has_surfaces_ids_and_the_image(topology: Topology, page: Page) -> None:
    shown = meshes(topology, [3, 5], IMAGE)
    page.show(shown)
    found, tops = scene(page), {}
    for k, person in enumerate(shown.ids):
        mesh = surface(found[f"/people/{person}"])
        np.testing.assert_allclose(mesh.vertices, shown.vertices[k], atol=1e-5)
        np.testing.assert_array_equal(mesh.faces, topology.faces)
        colours = mesh.visual.vertex_colors.astype(int)
        certain, uncertain = colours[shown.sigma[k] < 0.1], colours[shown.sigma[k] > 0.4]
        assert (certain[:, 2] > certain[:, 0]).all() and (uncertain[:, 0] > uncertain[:, 2]).all()
        assert found[f"/ids/{person}"]["text"] == f"{person}: sigma 0.25 m"
        tops[f"/ids/{person}"] = shown.vertices[k][shown.vertices[k, :, 1].argmin()] - [0, 0.12, 0]
    moves = [message for _, message in messages_of(page) if message["type"] == "SetPositionMessage"]
    places = {message["name"]: message["position"] for message in moves}
    for name, top in tops.items():
        np.testing.assert_allclose(places[name], top, atol=1e-5, err_msg="over the head")
    assert found["/camera"]["fov"] == pytest.approx(2 * np.arctan(120 / 300))
    assert found["/camera"]["aspect"] == pytest.approx(320 / 240)
    image = cv2.imdecode(np.frombuffer(found["/camera"]["_image_data"], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape == (240, 320, 3) and image[..., 0].mean() > 240
    page.show(meshes(topology, [5]))
    assert {name for name in scene(page) if re.search(r"\d|camera", name)} == {"/people/5", "/ids/5"}


def test_surfaces_grow_by_k_sigma(topology: Topology, page: Page) -> None:
    shown = meshes(topology, [3])
    shown.sigma[0, 7] = np.nan
    page.show(shown)
    page.growth.value = 2.0  # type: ignore[misc]  # viser sets its setter by __setattr__
    grown = surface(scene(page)["/people/3"]).vertices
    outwards = vertex_normals(shown.vertices[0], topology.faces)
    np.testing.assert_allclose(
        grown, shown.vertices[0] + 2 * np.nan_to_num(shown.sigma[0])[:, None] * outwards, atol=1e-5
    )


def test_a_recording_is_a_page_with_every_frame_in_its_time(
    topology: Topology, page: Page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 50.0
    monkeypatch.setattr("mega_ros.viewer.time", SimpleNamespace(monotonic=lambda: now))
    page.show(meshes(topology, [3]))
    page.toggle_recording()
    for person in (4, 5):
        now += 0.25
        page.show(meshes(topology, [person]))
    now += 0.125
    page.toggle_recording()
    seconds, found = content((tmp_path / "out" / "view.html").read_text())
    assert seconds == pytest.approx(0.625)
    at = {message["name"]: when for when, message in found if "props" in message}
    assert [at[f"/people/{person}"] for person in (3, 4, 5)] == pytest.approx([0, 0.25, 0.5])
    assert [message["name"] for _, message in found if message["type"] == "RemoveSceneNodeMessage"]


def test_a_page_that_is_closed_saves_its_recording(topology: Topology, tmp_path: Path) -> None:
    page = Page(topology.faces, "localhost", port(), tmp_path / "view.html")
    page.toggle_recording()
    page.show(meshes(topology, [3]))
    page.close()
    _, found = content((tmp_path / "view.html").read_text())
    assert "/people/3" in {message["name"] for _, message in found if "props" in message}


def test_a_recording_that_cannot_be_written_does_not_begin(topology: Topology, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for record, reason in ((tmp_path, f"{tmp_path}: .*it is a folder"), (tmp_path / "file" / "v.html", "file: cannot")):
        page = Page(topology.faces, "localhost", port(), record)
        with pytest.raises(InputError, match=reason):
            page.toggle_recording()
        page.close()  # it saves what is being recorded


def test_an_address_of_another_machine_is_named(topology: Topology, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"host: 192\.0\.2\.1 cannot be served"):
        Page(topology.faces, "192.0.2.1", port(), tmp_path / "view.html")


@pytest.mark.parametrize("given", ["-1", "65536"])
def test_a_port_that_cannot_be_is_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--port {given}: must be [<>]= "):
        main([str(tmp_path), "--port", given])


@pytest.mark.parametrize("node", ["/mega/", "/front camera"])
def test_a_name_that_is_no_node_s_is_one_line(node: str, root: Path) -> None:
    command = [sys.executable, "-m", "mega_ros.cli", "view", "--node", node]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert re.fullmatch(f"mega view: --node {node}: Invalid topic name: .* must not contain .*\n", done.stderr)


@contextmanager
def browser(url: str, folder: Path) -> Iterator[Callable[[], np.ndarray]]:
    """A headless Chromium at an address; what is yielded takes a screenshot, BGR."""
    flags = "--headless --no-sandbox --enable-unsafe-swiftshader --use-angle=swiftshader --window-size=960,600".split()
    process = subprocess.Popen(
        [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        active = folder / "DevToolsActivePort"
        while not (active.is_file() and active.read_text().strip()):
            assert process.poll() is None, "Chromium ended"
            time.sleep(0.1)
        devtools = f"http://localhost:{active.read_text().split()[0]}/json"
        while not (pages := [p for p in json.load(urllib.request.urlopen(devtools)) if p["url"].startswith(url)]):
            time.sleep(0.1)
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as socket:

            def shot() -> np.ndarray:
                socket.send(json.dumps({"id": 1, "method": "Page.captureScreenshot"}))
                while "result" not in (answer := json.loads(socket.recv())):
                    pass
                data = np.frombuffer(base64.b64decode(answer["result"]["data"]), np.uint8)
                image = cv2.imdecode(data, cv2.IMREAD_COLOR)
                assert image is not None
                return image

            yield shot
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here: apt-get install chromium")
def test_a_browser_shows_the_mesh(topology: Topology, page: Page, tmp_path: Path) -> None:
    def red_and_blue() -> tuple[int, int]:
        """Pixels of uncertain and of certain vertices, between what viser warns of and the panel."""
        b, g, r = np.moveaxis(shot()[:, 320:600].astype(int), -1, 0)
        return int(((r > 1.5 * g) & (r > 1.5 * b)).sum()), int(((b > 1.5 * r) & (b > 1.3 * g)).sum())

    with browser(page.url, tmp_path / "browser") as shot:
        empty = red_and_blue()
        page.show(meshes(topology, [3]))
        while min(red_and_blue()) < 100:
            time.sleep(0.2)
    assert max(empty) < 20, "nothing was red or blue before"


def replayed(folder: Path, topology: Topology) -> None:
    """A meshes.npz with one person, nobody, two people."""
    folder.mkdir()
    file = MeshFile(folder, topology)
    for stamp, ids in enumerate(([3], [], [3, 5])):
        file.add(stamp * 10**8, some_people(topology, ids))
    file.close()


def test_meshes_of_a_replay(topology: Topology, tmp_path: Path) -> None:
    replayed(tmp_path / "out", topology)
    recorded = RecordedMeshes(tmp_path / "out")
    assert [recorded[k].ids.tolist() for k in range(len(recorded))] == [[3], [], [3, 5]]
    assert [recorded.seconds(k) for k in range(3)] == pytest.approx([0.1, 0.1, 0.02])
    np.testing.assert_array_equal(recorded[2].vertices, some_people(topology, [3, 5]).vertices)


MESHES = {
    "stamps": np.arange(2),
    "frame": np.zeros(1, int),
    "faces": np.array([[0, 1, 2]]),
    "vertices": np.zeros((1, 3, 3)),
    "sigma": np.full((1, 3), np.nan),
    "ids": np.zeros(1, int),
}


def test_frames_are_played_again_and_again_in_their_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But no frame for longer than a second: recordings have gaps."""
    path = tmp_path / "meshes.npz"
    np.savez(path, **MESHES | {"stamps": np.array([0, 300_000_000, 60 * 10**9])})  # type: ignore[arg-type]
    slept: list[float] = []
    shown: list[int] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr("mega_ros.viewer.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(Page, "show", lambda self, meshes: shown.append(len(meshes.ids)))
    assert main([str(path), "--port", str(port())]) == 0
    assert slept == pytest.approx([0.3, 1, 0.02] * 2 + [0.3])
    assert shown == [1, 0, 0] * 2 + [1]


def test_a_recording_is_saved_when_the_process_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.savez(tmp_path / "meshes.npz", **MESHES)  # type: ignore[arg-type]
    record = tmp_path / "view.html"
    shown = Page.show

    def record_and_end(page: Page, meshes: Meshes) -> None:
        page.toggle_recording()
        shown(page, meshes)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Page, "show", record_and_end)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM would have ended it"))
    try:
        assert main([str(tmp_path), "--port", str(port()), "--record", str(record)]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "/people/0" in {message["name"] for _, message in content(record.read_text())[1] if "props" in message}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"vertices": None}, "field 'vertices' is missing"),
        ({"vertices": np.zeros(3)}, "field 'vertices' has the shape"),
        ({"sigma": np.zeros((2, 3))}, "field 'sigma' has the shape"),
        ({"faces": np.array([[0, 1, 3]])}, "field 'faces' holds something other than whole numbers from 0 to 2"),
        ({"frame": np.array([2])}, "field 'frame' holds something other than whole numbers from 0 to 1"),
        ({"stamps": np.array(["a", "b"])}, "field 'stamps' holds something other than finite numbers"),
        ({"ids": np.zeros((1, 1), int)}, "field 'ids' has the shape"),
    ],
)
def test_files_that_are_no_meshes_are_named(changed: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "meshes.npz"
    np.savez(path, **MESHES)  # type: ignore[arg-type]
    assert len(RecordedMeshes(path)) == 2
    np.savez(path, **{k: v for k, v in (MESHES | changed).items() if v is not None})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"meshes\.npz: {reason}"):
        main([str(path)])


def test_a_running_node_is_shown(topology: Topology, tmp_path: Path) -> None:
    """With the image of the mesh's stamp, from the topic that the diagnostics name."""
    rclpy.init(domain_id=free_domain())
    executor = SingleThreadedExecutor()
    view, peer = NodeView(ViewOptions(node="/mega/front", port=port(), record=tmp_path / "v.html")), Node("peer")
    try:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        topologies = peer.create_publisher(Mesh, "/mega/front/topology", latched)
        clouds = peer.create_publisher(PointCloud2, "/mega/front/mesh", 1)
        images = peer.create_publisher(Image, "/back/image_raw", 1)
        infos = peer.create_publisher(CameraInfo, "/calibration", 1)
        diagnostics = peer.create_publisher(DiagnosticArray, "/diagnostics", 1)

        def tell(image_topic: str) -> None:
            """What the diagnostics of the node say, and those of another camera."""
            statuses = []
            for name, topic in (("mega/front", image_topic), ("mega/rear", "/rear/image")):
                said = {"image_topic": topic, "camera_info_topic": "/calibration", "rectified": "true"}
                values = [KeyValue(key=key, value=value) for key, value in said.items()]
                statuses.append(DiagnosticStatus(name=name, values=values))
            diagnostics.publish(DiagnosticArray(status=statuses))

        for node in (view, peer):
            executor.add_node(node)
        for triangles in ([], [MeshTriangle(vertex_indices=[0, 1, 2])]):
            topologies.publish(Mesh(triangles=triangles, vertices=[Point()] * 2))
            for _ in range(20):
                executor.spin_once(timeout_sec=0.02)
        assert view.page is None, "neither can be drawn"
        topologies.publish(messages.mesh(topology))
        people, stamp = some_people(topology, [3]), 0
        wanted = pytest.approx(2 * np.arctan(120 / 350))  # once image and camera_info have come
        while not view.page or scene(view.page).get("/camera", {}).get("fov") != wanted:
            assert stamp < 1000, "the page shows no image through this camera"
            tell(["no topic", "/other/image", "/back/image_raw"][min(stamp, 2)])  # as of nodes that start anew
            infos.publish(CameraInfo(width=320, height=240, p=[350.0, 0, 160, 0, 0, 350, 120, 0, 0, 0, 1, 0], k=OTHER))
            header, stamp = Header(), stamp + 1
            header.stamp.sec = stamp
            images.publish(bytes(40))  # a damaged one costs nothing
            images.publish(messages.image(header, IMAGE))
            clouds.publish(standard.people_cloud(Header(), people.vertices[:, :9], people.sigma[:, :9], people.ids))
            for _ in range(5):
                executor.spin_once(timeout_sec=0.02)
            clouds.publish(standard.people_cloud(header, people.vertices, people.sigma, people.ids))
            for _ in range(5):
                executor.spin_once(timeout_sec=0.02)
        np.testing.assert_allclose(surface(scene(view.page)["/people/3"]).vertices, people.vertices[0], atol=1e-5)
        page = view.page
        topologies.publish(messages.mesh(topology))  # the node was configured again
        for _ in range(10):
            executor.spin_once(timeout_sec=0.02)
        assert view.page is page, "the page, its slider and its recording stay"
        topologies.publish(messages.mesh(replace(topology, faces=topology.faces[:-1])))  # with another bundle
        while view.page is page:
            stamp += 1
            assert stamp < 1300, "the page shows the old topology"
            executor.spin_once(timeout_sec=0.02)
        assert len(view.page.faces) == len(topology.faces) - 1
    finally:
        executor.shutdown()
        view.close()
        for node in (view, peer):
            node.destroy_node()
        rclpy.shutdown()


def test_foxglove_shows_the_topics(root: Path) -> None:
    """A layout as Foxglove exports it: every panel of the arrangement is configured, and shows what the node has."""
    layout = json.loads((root / "foxglove" / "mega.json").read_text())
    assert set(layout) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}

    def panels(part: Any) -> list[str]:
        return [part] if isinstance(part, str) else panels(part["first"]) + panels(part["second"])

    shown = panels(layout["layout"])
    assert sorted(shown) == sorted(layout["configById"])
    assert {name.partition("!")[0] for name in shown} == {"3D", "Image", "DiagnosticSummary", "Plot"}
    scene = next(config for name, config in layout["configById"].items() if name.startswith("3D!"))
    assert {"/mega/mesh", "/mega/markers", "/mega/joints"} <= set(scene["topics"])
    image = next(config for name, config in layout["configById"].items() if name.startswith("Image!"))
    assert image["imageMode"]["imageTopic"] == "/mega/overlay/compressed"
    # a cloud without a field to colour by is coloured by its first one, whatever its mode is
    assert all(scene["topics"][topic]["colorField"] == "sigma" for topic in ("/mega/mesh", "/mega/joints"))


def test_foxglove_looks_along_the_camera_and_shows_people_upright(root: Path) -> None:
    """Foxglove's viewer looks along -z, y is up; it is turned by phi around x, then by -thetaOffset around z."""
    layout = json.loads((root / "foxglove" / "mega.json").read_text())
    state = next(config for name, config in layout["configById"].items() if name.startswith("3D!"))["cameraState"]
    phi, theta = np.radians([state["phi"], -state["thetaOffset"]])
    around_x, _ = cv2.Rodrigues(np.array([phi, 0, 0]))
    around_z, _ = cv2.Rodrigues(np.array([0, 0, theta]))
    right, up, back = (around_z @ around_x).T
    assert back[2] < -0.9 and right[0] > 0.9 and up[1] < -0.9, "x right, y down, z ahead"
