"""People in the boxes of your own detector: here, what moves before a camera that stands still.

    python own_boxes.py film.mp4 [my_bundle]

In ROS, publish the boxes as vision_msgs/Detection2DArray and start the node with boxes:=detections: see
docs/robot/people.md.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import cv2
import numpy as np

from mega_model.core.detection import Detections
from mega_ros import Recovery, Stream, StreamSettings

SMALLEST = 0.01
"""Share of the image: what is smaller is noise."""
background = cv2.createBackgroundSubtractorMOG2(history=100, detectShadows=False)


def find(image: np.ndarray) -> Detections:
    """Put your detector here. uint8 [H, W, 3] BGR -> boxes [P, 4]: x0, y0, x1, y1 in pixels; scores [P], 0 to 1."""
    moving = cv2.morphologyEx(background.apply(image), cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    outlines, _ = cv2.findContours(moving, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = [cv2.boundingRect(each) for each in outlines]
    large = [(x, y, x + w, y + h) for x, y, w, h in found if w * h > SMALLEST * moving.size]
    return Detections(np.array(large, np.float32).reshape(-1, 4), np.ones(len(large), np.float32), None)


parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
parser.add_argument("film")
parser.add_argument("bundle", nargs="?", default="default")
given = parser.parse_args()
film = cv2.VideoCapture(given.film)
good, image = film.read()
if not good:
    sys.exit(f"{given.film}: no film that OpenCV can read")
stream = Stream(Recovery.load(given.bundle), StreamSettings(boxes="detections"))
background.apply(image)  # for the first image, all is new
while good:
    stamp = round(film.get(cv2.CAP_PROP_POS_MSEC) * 1e6)  # nanoseconds
    people = stream.process(image, None, stamp, found=find(image))  # None: the intrinsics are not known
    for person, joints, sigma in zip(people.ids, people.joints, people.sigma):
        x, y, z = joints[0]  # the pelvis
        print(f"{stamp / 1e9:.2f} s: person {person} at {x:.2f} {y:.2f} {z:.2f} m, sigma {sigma.mean():.2f} m")
    good, image = film.read()
