"""`mega view`: people as surfaces in a page of the browser, of a running node or of a replay's meshes. Needs viser.

The class `Page` knows nothing of ROS; `mega_ros.ros.view` fills it from a node's topics.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import tyro
from msgspec import Meta

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.files import floats, indices, make_folder, read_npz
from mega_model.core.geometry import intrinsics_from_fov
from mega_model.core.settings import parse

from .draw import RED, SCALE, shrunk, sigma_colours, vertex_normals
from .recovery import FOV_DEFAULT
from .ros.signals import ended_as_by_ctrl_c

MOST = 3.0
"""The largest k by which surfaces grow: three sigma."""
FRAMES = 20
"""Frames that the rate is taken from."""
LONGEST = 1.0
"""Seconds for which a frame of a file is shown at most."""


@dataclass(frozen=True)
class ViewOptions:
    """A 3D page in the browser. Without a file, it shows what a running node publishes."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """meshes.npz of a replay, or the folder that has it. Left out: the topics of `--node`."""
    node: str = "/mega"
    """Full name of the node; with several cameras, of one of them: /mega/front."""
    host: str = "localhost"
    """Address that the page is served on. 0.0.0.0 serves other machines, too."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    record: Path = Path("mega_out/view.html")
    """Where the button `record` puts its page, which needs no other file."""


@dataclass(frozen=True)
class Meshes:
    """The people in one image."""

    vertices: np.ndarray
    """float32 [P, V, 3], metres in the camera frame."""
    sigma: np.ndarray
    """float32 [P, V], metres."""
    ids: np.ndarray
    """int [P]."""
    image: np.ndarray | None = None
    """uint8 [H, W, 3] BGR, if it is known."""
    camera: Camera | None = None
    """Of the image; None assumes a field of view of 60 degrees."""


class Page:
    """Serves the page until `close`. Any thread may call `show`."""

    def __init__(self, faces: np.ndarray, host: str, port: int, record: Path) -> None:
        """faces: int [F, 3]. port: the next free one is taken. record: the file that the button writes.

        Raises InputError if the address cannot be served.
        """
        import viser

        self.faces, self._record_to = faces, record
        self._lock = threading.RLock()
        self._meshes: Meshes | None = None
        self._shown: dict[str, object] = {}
        self._times: deque[float] = deque(maxlen=FRAMES)
        self._recording: viser.StateSerializer | None = None  # type: ignore[name-defined]
        self._recorded = 0.0
        try:
            asyncio.run(_serve_once(host))  # viser would wait for ever
        except OSError as error:
            raise InputError(f"host: {host} cannot be served ({error})") from None
        self.server = viser.ViserServer(host, port, label="mega view", verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        # the camera frame has y down and z forward: look from the left of the camera, a little from above
        self.server.scene.set_up_direction("-y")
        self.server.initial_camera.position = (-2.6, -1.0, -0.2)
        self.server.initial_camera.look_at = (0.35, 0.2, 2.9)
        self.server.initial_camera.fov = 0.75
        self._text = self.server.gui.add_markdown("no mesh has come")
        self.server.gui.add_html(_legend())
        self.growth = self.server.gui.add_slider(
            "grow by k sigma", 0.0, MOST, 0.1, 0.0, hint="moves each vertex outwards by k times its sigma"
        )
        """Its `value` is k; it may be set, too."""
        self.growth.on_update(lambda _: self._draw())
        self._record = self.server.gui.add_button("record", hint=f"to {record}, until it is pressed again")
        self._record.on_click(self._on_record)

    @property
    def url(self) -> str:
        host = self.server.get_host()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server.get_port()}"

    def show(self, meshes: Meshes) -> None:
        """The next frame."""
        with self._lock:
            self._meshes = meshes
            self._times.append(time.monotonic())
            self._draw()
            seconds = self._times[-1] - self._times[0]
            rate = f", {(len(self._times) - 1) / seconds:.1f} frames per second" if seconds else ""
            people = ", ".join(map(str, meshes.ids.tolist())) or "nobody"
            self._text.content = f"people: {people}{rate}"

    def toggle_recording(self) -> None:
        """Begins a recording, or ends it and writes the file. Raises InputError if the file cannot be written."""
        with self._lock:
            if self._recording is None:
                make_folder(self._record_to.parent)  # or it would be lost when all is recorded
                if self._record_to.is_dir():
                    raise InputError(f"{self._record_to}: cannot be written, it is a folder")
                self._recording, self._recorded = self.server.get_scene_serializer(), time.monotonic()
                self._record.label = "stop recording"
                return
            recording, self._recording = self._recording, None
            recording.insert_sleep(time.monotonic() - self._recorded)
            self._record.label = "record"
        page = recording.as_html()
        try:
            self._record_to.write_text(page, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{self._record_to}: cannot be written ({error.strerror})") from None
        print(f"recorded {self._record_to}")

    def close(self) -> None:
        """Saves what is being recorded."""
        with self._lock:
            if self._recording:
                self.toggle_recording()
        self.server.stop()

    def _on_record(self, event: Any) -> None:
        try:
            self.toggle_recording()
        except InputError as error:
            event.client.add_notification("record", str(error), color="red")

    def _draw(self) -> None:
        with self._lock, self.server.atomic():
            if self._meshes is None:
                return
            if self._recording:
                now = time.monotonic()
                self._recording.insert_sleep(now - self._recorded)
                self._recorded = now
            before, self._shown = self._shown, {}
            for vertices, sigma, person in zip(self._meshes.vertices, self._meshes.sigma, self._meshes.ids.tolist()):
                self._add_person(vertices, sigma, person)
            if self._meshes.image is not None:
                self._add_image(self._meshes.image, self._meshes.camera)
            for name in before.keys() - self._shown.keys():
                self.server.scene.remove_by_name(name)

    def _add_person(self, vertices: np.ndarray, sigma: np.ndarray, person: int) -> None:
        import trimesh

        normals = vertex_normals(vertices, self.faces)
        grown = vertices + self.growth.value * np.nan_to_num(sigma)[:, None] * normals
        colours = sigma_colours(sigma, RED)[:, ::-1].astype(np.uint8)
        # without normals, the browser shows each triangle as flat
        surface = trimesh.Trimesh(grown, self.faces, vertex_normals=normals, process=False, vertex_colors=colours)
        scene, name = self.server.scene, f"/people/{person}"
        self._shown[name] = scene.add_mesh_trimesh(name, surface)
        top = vertices[vertices[:, 1].argmin()] - [0, 0.12, 0]
        text = f"{person}: sigma {sigma.mean():.2f} m"
        self._shown[f"/ids/{person}"] = scene.add_label(f"/ids/{person}", text, position=top, anchor="bottom-center")

    def _add_image(self, image: np.ndarray, camera: Camera | None) -> None:
        """A frustum at the camera, with the image in it."""
        height, width = image.shape[:2]
        K = camera.K if camera else intrinsics_from_fov(width, height, FOV_DEFAULT)
        field_of_view = 2 * np.arctan(height / 2 / K[1, 1])  # viser's frustum has its axis in the middle
        small, _ = shrunk(image, Camera(K))
        self._shown["/camera"] = self.server.scene.add_camera_frustum(
            "/camera",
            fov=float(field_of_view),
            aspect=width / height,
            scale=0.5,
            image=cv2.cvtColor(small, cv2.COLOR_BGR2RGB),
            format="jpeg",
        )


async def _serve_once(host: str) -> None:
    """Raises OSError if an address cannot be served."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, 0)
    server.close()


def _legend() -> str:
    """The colours of sigma with their scale, as HTML."""
    colours = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for b, g, r in SCALE.tolist())
    bar = f"height: 0.8em; background: linear-gradient(to right, {colours})"
    ends = "display: flex; justify-content: space-between; font-size: 0.8em"
    return (
        f'<div style="margin: 0.5em 0.8em"><div style="{bar}"></div>'
        f'<div style="{ends}"><span>0</span><span>sigma</span><span>{RED:g} m and more</span></div></div>'
    )


class RecordedMeshes:
    """The frames of a meshes.npz, as `mega replay` writes it."""

    def __init__(self, path: Path) -> None:
        """path: the file, or its folder. Raises InputError if it is not such a file."""
        path = path / "meshes.npz" if path.is_dir() else path
        arrays = read_npz(path, ("stamps", "frame", "faces", "vertices", "sigma", "ids"))

        def whole(name: str, shape: tuple[int | None, ...], count: int) -> np.ndarray:
            return indices(path, name, arrays[name], shape, count)

        self._vertices = floats(path, "vertices", arrays["vertices"], (None, None, 3))
        people, vertices = self._vertices.shape[:2]
        floats(path, "sigma", np.nan_to_num(arrays["sigma"]), (people, vertices))
        self._sigma = arrays["sigma"]  # NaN in a bundle that does not know it
        floats(path, "stamps", arrays["stamps"], (None,))
        self.stamps = arrays["stamps"].astype(np.int64)
        self._frame = whole("frame", (people,), len(self.stamps))
        self.faces = whole("faces", (None, 3), vertices)
        self._ids = whole("ids", (people,), 2**31)

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, frame: int) -> Meshes:
        rows = self._frame == frame
        return Meshes(self._vertices[rows], self._sigma[rows], self._ids[rows])

    def seconds(self, frame: int) -> float:
        """For how long a frame is shown."""
        until = self.stamps[min(frame + 1, len(self) - 1)]
        return float(np.clip((until - self.stamps[frame]) / 1e9, 0.02, LONGEST))


def play(recorded: RecordedMeshes, page: Page) -> None:
    """Shows the frames again and again, until Ctrl-C; a slider and a check box choose among them."""
    at = page.server.gui.add_slider("frame", 0, max(len(recorded) - 1, 1), 1, 0)
    playing = page.server.gui.add_checkbox("play", True)
    shown = -1
    while True:
        if at.value != shown:
            shown = min(at.value, len(recorded) - 1)
            page.show(recorded[shown])
        time.sleep(recorded.seconds(shown) if playing.value else 0.05)
        if playing.value:
            at.value = (shown + 1) % len(recorded)  # type: ignore[misc]  # viser sets its setter by __setattr__


def main(args: Sequence[str]) -> int:
    options = parse(ViewOptions, [*args])
    if options.file is None:
        return int(import_module("mega_ros.ros.view").show(options))
    recorded = RecordedMeshes(options.file)
    if not len(recorded):
        raise InputError(f"{options.file}: it has no frames")
    page = Page(recorded.faces, options.host, options.port, options.record)
    print(f"{page.url}, Ctrl-C ends it")
    try:
        with ended_as_by_ctrl_c():
            play(recorded, page)
    except KeyboardInterrupt:
        pass
    finally:
        page.close()
    return 0
