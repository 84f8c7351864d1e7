"""ros2 launch mega_ros mega.launch.py image:=/camera/image_raw
ros2 launch mega_ros mega.launch.py cameras:=front=/front_camera/image_raw,rear=/rear_camera/image_raw

By default, camera_info is the topic beside the image. params:=FILE sets the node's parameters; the arguments named like
parameters win over it. The launch ends with code 1 if the parameter file or rviz2 is missing, an argument has a wrong
value, or the node fails.
"""

from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription
from mega_ros.ros.launch_files import ending

SHARE = FindPackageShare("mega_ros")
PARAMETERS: dict[str, tuple[type, str]] = {
    "bundle": (str, "'default', or the folder of a bundle"),
    "provider": (str, "what runs the model: auto, tensorrt, cuda or cpu"),
    "image_transport": (str, "auto, raw or compressed"),
    "image_reliability": (str, "auto, reliable or best_effort"),
    "rectified": (str, "whether the images are: true, false or auto"),
    "rotate": (int, "degrees clockwise that turn people upright: 0, 90, 180, 270"),
    "boxes": (str, "source of the person boxes: detector, detections, full_frame or fixed"),
    "detector_model": (str, "ONNX file of your own person detector"),
    "score_threshold": (float, "detections with a lower score are ignored"),
    "tiles": (bool, "true also searches four parts of the image for smaller people, which takes five runs"),
    "max_people": (int, "if more are found, the least likely are left out; 0: nobody is"),
    "smoothing": (float, "of people over time, 0 to 1; 0: off"),
    "predict": (bool, "true publishes people where they are expected at publication"),
    "samples": (str, "samples per person, a number or auto"),
    "fov": (float, "field of view without camera_info, radians"),
    "timeout": (float, "seconds without an image after which the camera counts as silent"),
    "tf": (bool, "true also publishes a TF frame per person"),
    "autostart": (bool, "false leaves the node unconfigured, for a lifecycle manager"),
}
"""Of the node: type and description. Empty: as in the parameter file."""
SWITCH = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}
ON_EXIT = {"shutdown": ending("the node"), "continue": None}
ARGUMENTS: dict[str, tuple[Any, str]] = {
    "image": ("/camera/image_raw", "topic of the camera's images"),
    "camera_info": ("", "topic of the camera's intrinsics; empty: camera_info beside the image topic"),
    "cameras": (
        "",
        "several cameras in place of one, as front=/front_camera/image_raw,rear: a name, and its image topic if that "
        "is not <name>/image; RViz shows the first",
    ),
    "namespace": ("", "namespace of the node and its topics"),
    "params": (PathJoinSubstitution([SHARE, "config", "mega.yaml"]), "parameter file"),
    **{name: ("", f"{text}; empty: as in the parameter file") for name, (_, text) in PARAMETERS.items()},
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "emulate_tty": ("true", "false: output without colours, in blocks"),
    "respawn": ("false", "true starts the node again, two seconds after it ended; on_exit does not apply then"),
    "on_exit": ("shutdown", "what follows when the node ends: shutdown of the whole launch, or nothing (continue)"),
    "rviz": ("false", "true also starts RViz"),
    "frame": (
        "",
        "RViz's fixed frame: the images' frame_id, as camera_color_optical_frame of a RealSense, or one that tf "
        "connects to it; empty: camera_optical_frame, which few cameras have",
    ),
}


def check(context: LaunchContext) -> None:
    """Before anything starts, so that nothing has to be stopped."""
    params = Path(LaunchConfiguration("params").perform(context))
    if not params.is_file():
        raise FileNotFoundError(f"params: there is no file {params}")
    if chosen("rviz", LaunchConfiguration("rviz").perform(context), SWITCH):
        try:
            get_package_prefix("rviz2")
        except PackageNotFoundError:
            raise RuntimeError("rviz: rviz2 is not installed: apt install ros-$ROS_DISTRO-rviz2") from None


def nodes(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    cameras = named_topics(given["cameras"])
    if cameras and given["camera_info"]:
        raise ValueError("camera_info: each of several cameras has its own, beside its image topic; leave it out")
    # beside the base topic, as image_transport has it; a relative name stays relative
    beside, slash, _ = given["image"].removesuffix("/compressed").rpartition("/")
    remappings = [("image", given["image"]), ("camera_info", given["camera_info"] or f"{beside}{slash}camera_info")]
    if cameras:  # the node looks for their camera_info beside the image
        remappings = [(f"{name}/image", topic) for name, topic in cameras.items() if topic]
    respawn = chosen("respawn", given["respawn"], SWITCH)
    on_exit = chosen("on_exit", given["on_exit"], ON_EXIT)
    mega = Node(
        package="mega_ros",
        executable="node",
        name="mega",
        namespace=given["namespace"],
        output="screen",
        emulate_tty=chosen("emulate_tty", given["emulate_tty"], SWITCH),
        respawn=respawn,
        respawn_delay=2.0,
        on_exit=None if respawn else on_exit,
        ros_arguments=["--log-level", given["log_level"]] if given["log_level"] else [],
        remappings=remappings,
        # later ones win
        parameters=[
            given["params"],
            *({name: value(name, given[name])} for name in PARAMETERS if given[name]),
            *([{"cameras": [*cameras]}] if cameras else []),
        ],
    )
    if not chosen("rviz", given["rviz"], SWITCH):
        return [mega]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        namespace=given["namespace"],
        arguments=["-d", PathJoinSubstitution([SHARE, "rviz", "mega.rviz"])]
        + (["-f", given["frame"]] if given["frame"] else []),
        # the file's topics are those of a single camera; the node's are relative to the namespace
        remappings=[
            (f"/mega/{topic}", "/".join(["mega", *[*cameras][:1], topic]))
            for topic in ("mesh", "joints", "markers", "overlay")
        ],
    )
    return [mega, rviz]


def named_topics(text: str) -> dict[str, str]:
    """front=/front/image_raw,rear -> the topic of each name, or nothing."""
    pairs = [each.strip().partition("=") for each in text.split(",") if each.strip()]
    if len(names := {name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"cameras: two have one name: {', '.join(sorted(names))} in '{text}'")
    return {name: topic for name, _, topic in pairs}


def value(name: str, text: str) -> Any:
    kind, _ = PARAMETERS[name]
    if kind is bool:
        return chosen(name, text, SWITCH)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: '{text}' is not of type {kind.__name__}") from None


def chosen(name: str, text: str, meanings: dict[str, Any]) -> Any:
    """What the word means, in any case. An empty one is the argument's default."""
    word = text.strip().lower() or ARGUMENTS[name][0]
    if word not in meanings:
        raise ValueError(f"{name}: '{text}' is none of {', '.join(meanings)}")
    return meanings[word]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(k, default_value=v, description=text) for k, (v, text) in ARGUMENTS.items()),
            OpaqueFunction(function=check),
            OpaqueFunction(function=nodes),
        ]
    )
