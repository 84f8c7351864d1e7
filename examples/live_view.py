"""A live 3D page in the browser (viser), of a camera or a film, without ROS. Needs the extra `view`.

python live_view.py 0                      # the first camera of this machine; or a device, or a URL
python live_view.py film.mp4 [my_bundle]
"""

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import cv2
import trimesh
import viser

from mega_ros import Recovery, Stream
from mega_ros.draw import RED, sigma_colours

parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
parser.add_argument("camera")
parser.add_argument("bundle", nargs="?", default="default")
given = parser.parse_args()
camera = cv2.VideoCapture(int(given.camera) if given.camera.isdecimal() else given.camera)
good, image = camera.read()
if not good:
    sys.exit(f"{given.camera}: no camera or film that OpenCV can read")
recovery = Recovery.load(given.bundle)
stream = Stream(recovery)
server = viser.ViserServer()  # prints its address
server.scene.set_up_direction("-y")  # the camera frame: x right, y down, z ahead
server.initial_camera.position = (-2.0, -1.3, -1.6)
server.initial_camera.look_at = (0.2, 0.1, 3.0)
shown: set[str] = set()
while good:
    people = stream.process(image, None, time.time_ns())
    before, shown = shown, {f"/people/{person}" for person in people.ids}
    with server.atomic():  # the page shows all of a frame, or nothing of it
        for person, vertices, sigma in zip(people.ids, people.vertices, people.sigma):
            colours = sigma_colours(sigma, RED)[:, ::-1].astype("uint8")  # RGB: blue is certain, red is not
            mesh = trimesh.Trimesh(vertices, recovery.topology.faces, vertex_colors=colours, process=False)
            server.scene.add_mesh_trimesh(f"/people/{person}", mesh)  # the same name takes the place of the last one
        for name in before - shown:
            server.scene.remove_by_name(name)
    good, image = camera.read()
input("The last image stays. Enter ends it\n")
