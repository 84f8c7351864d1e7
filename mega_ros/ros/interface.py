"""What users see of the node: its topics and the values of its diagnostics. docs/robot/reference.md is made of it.

Tests compare it with a running node.
"""

from ..track import PATIENCE

INPUTS = {
    "image": (
        "sensor_msgs/Image, CompressedImage",
        "camera images. Only the newest is processed; the QoS follows the camera's",
    ),
    "camera_info": (
        "sensor_msgs/CameraInfo",
        "the camera, beside `image` unless remapped: intrinsics, lens, rectification, binning, window. Without it, a "
        "field of view is assumed",
    ),
    "detections": (
        "vision_msgs/Detection2DArray",
        "people that your own detector found, with `boxes:=detections`, where vision_msgs is installed",
    ),
}
"""Topic -> types and content."""

OUTPUTS = {
    "~/mesh": (
        "sensor_msgs/PointCloud2",
        "a row per person, a column per vertex: `x y z sigma`, metres in the camera's optical frame, and `id`. Stamp "
        "and frame of the image. Published for every frame, with height 0 if there is nobody",
    ),
    "~/joints": (
        "sensor_msgs/PointCloud2",
        "the same for SMPL's 24 joints, and `distance`: how far a person is from what the model knows",
    ),
    "~/topology": (
        "shape_msgs/Mesh",
        "latched: the triangles, whose indices are columns of `~/mesh`, and the template",
    ),
    "~/markers": (
        "visualization_msgs/MarkerArray",
        "shaded surfaces, from blue (sigma 0) to red (0.5 m and more); people who are gone are deleted, "
        f"and all end {PATIENCE:g} s after the last image",
    ),
    "~/overlay": (
        "sensor_msgs/Image",
        "the surfaces drawn over the image, a colour per person; at most 640 pixels wide",
    ),
    "~/overlay/compressed": ("sensor_msgs/CompressedImage", "the same as JPEG"),
    "~/people": (
        "vision_msgs/Detection3DArray",
        "the box of each body; its result is `person`, with the pelvis' pose; `id` is that of `~/joints`, which has "
        "`distance`. Where vision_msgs is installed",
    ),
    "/tf": (
        "tf2_msgs/TFMessage",
        "a frame `person_<id>` at each pelvis: x forward, y left, z up; where hri_msgs is installed, also "
        "`body_mega<id>` between the hips (REP-155). In the namespace `robot`, they are `robot/person_<id>` and "
        "`body_mega_robot_<id>`, as all nodes share this topic. With the parameter `tf`; needs tf2_msgs. Room for 100 "
        "messages, as tf2 has",
    ),
    "/humans/bodies/...": (
        "hri_msgs",
        "`tracked`, and for each body `mega<id>` (of several cameras: `mega_<camera>_<id>`; in the namespace `robot`: "
        "`mega_robot_<id>`, `mega_robot_<camera>_<id>`) its `roi` and `skeleton2d` "
        "(REP-155). Where hri_msgs is installed. `tracked` is emptied after `timeout` without images, and when the "
        "node is deactivated",
    ),
    "/diagnostics": ("diagnostic_msgs/DiagnosticArray", "once a second, in every state: see below"),
}
"""Topic -> type and content."""

DIAGNOSTICS = {
    "rate_hz": "processed frames per second",
    "latency_p50_s, latency_p95_s": "from arrival at the node to publication; all times are of the last 10 s",
    "latency_from_stamp_p50_s, latency_from_stamp_p95_s": "from the image's stamp to publication: end to end, if "
    "camera and node share a clock",
    "decode_p50_s, crop_p50_s, infer_p50_s, publish_p50_s": "stages of it: the image, the crops, the model, the "
    "outputs. The rest is waiting, tracking and fitting",
    "sampling_p50_s": "the part of `infer` that samples took; 0 for bundles with an error head",
    "infer_cpu_s": "CPU time of the model, all cores together: the sum over all frames since activation",
    "frames_received": "frames that reached the node: the sum of processed, dropped, rejected and idle ones, and those "
    "under way",
    "frames_processed": "frames of which results were published",
    "frames_dropped": "received frames that were not used: a newer one replaced them before their turn, no "
    "`detections` came for them, or they came in the first second, before a camera_info that is published",
    "frames_lost": "frames that never arrived: more time between the stamps than the camera's period for each, so one "
    "that was only late is taken off again; after a second without images, also each stamp of a camera_info that comes "
    "once per image",
    "frames_rejected": "frames that could not be used, damaged messages included",
    "frames_idle": "frames that nobody wanted: no output had a subscriber",
    "camera_rate_hz": "the rate of the camera, from the period of its stamps",
    "people": "how many the last processed image shows",
    "person_<id>": "of each of them: the mean sigma, and the distance from the training set",
    "samples": "how many each person in the last image got, the fewest to the most; 0 for bundles with an error head",
    "tracks": "how many ids were given since the node started",
    "intrinsics": "of the last processed image: `camera_info`, or why they are assumed",
    "last_bad_input": "the last input that could not be used, and why",
    "image_topic, image_type, image_reliability, camera_info_topic": "what the node subscribes to now",
    "rectified": "whether the images count as rectified",
    "transport": "how messages travel: the size of the shared memory, or UDP",
    "backend, backend_reason": "what runs the model, and why `provider: auto` did not take what comes before it",
    "detector": "who finds people: the bundle's detector, or the family of yours",
    "bundle, bundle_hash": "the model; the hash is over all its files",
    "calibration": "what sigma promises, and how that was measured",
}
"""Values -> what they say; several that belong together are separated by commas."""
