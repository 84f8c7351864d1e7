"""ros2 launch mega_ros mega.launch.py image:=/camera/image_raw

By default, camera_info is the topic beside the image. params:=FILE sets the node's parameters.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

SHARE = FindPackageShare("mega_ros")
ARGUMENTS = {
    "image": ("/camera/image_raw", "topic of the camera's images"),
    "camera_info": ("", "topic of the camera's intrinsics; empty: camera_info beside the image topic"),
    "image_transport": ("", "auto, raw or compressed; empty: as in the parameter file"),
    "rectified": ("", "whether the images are: true, false or auto; empty: as in the parameter file"),
    "rotate": ("", "degrees clockwise that turn people upright: 0, 90, 180, 270; empty: as in the parameter file"),
    "bundle": ("", "'default', or the folder of a bundle; empty: as in the parameter file"),
    "namespace": ("", "namespace of the node and its topics"),
    "params": (PathJoinSubstitution([SHARE, "config", "mega.yaml"]), "parameter file"),
    "rviz": ("false", "true also starts RViz"),
}


def nodes(context: LaunchContext) -> list[Node]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    # beside the base topic, as image_transport has it; a relative name stays relative
    beside, slash, _ = given["image"].removesuffix("/compressed").rpartition("/")
    camera_info = given["camera_info"] or f"{beside}{slash}camera_info"
    return [
        Node(
            package="mega_ros",
            executable="node",
            name="mega",
            namespace=given["namespace"],
            output="screen",
            remappings=[("image", given["image"]), ("camera_info", camera_info)],
            # later ones win
            parameters=[
                given["params"],
                *({name: given[name]} for name in ("image_transport", "rectified", "rotate", "bundle") if given[name]),
            ],
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", PathJoinSubstitution([SHARE, "rviz", "mega.rviz"])],
            condition=IfCondition(given["rviz"]),
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(k, default_value=v, description=text) for k, (v, text) in ARGUMENTS.items()),
            OpaqueFunction(function=nodes),
        ]
    )
