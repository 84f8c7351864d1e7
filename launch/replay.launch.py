"""ros2 launch mega_ros replay.launch.py bag:=my_bag

Plays a bag to the node, over DDS and with /clock, and reports latency, drops and losses, and the scores of the offline
run. It is `mega replay --live` in the ROS domain of this shell, so that RViz and others can watch. It ends when the
report is written, with code 1 if that failed.
"""

import os

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from launch import LaunchContext, LaunchDescription
from mega_ros.ros.launch_files import ending

ARGUMENTS = {
    "rate": ("1.0", "how much faster than recorded the bag is played"),
    "bundle": ("default", "'default', or the folder of a bundle"),
    "boxes": ("detector", "source of the person boxes: detector or full_frame"),
    "out": ("mega_out/replay", "folder for the results"),
}
"""Those of `mega replay` with these names: default and description."""


def replay(context: LaunchContext) -> list[ExecuteProcess]:
    given = {name: LaunchConfiguration(name).perform(context) for name in ("bag", *ARGUMENTS)}
    options = {name: given[name] for name in ARGUMENTS} | {"domain": os.environ.get("ROS_DOMAIN_ID") or "0"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    # by the Python of an active virtual environment, as scripts/node: the one that runs `ros2` may lack what it needs
    command = ["python3", "-m", "mega_ros.cli", "replay", given["bag"], "--live", *words]
    on_exit = ending("the replay")
    return [ExecuteProcess(cmd=command, name="replay", output="screen", emulate_tty=True, on_exit=on_exit)]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="the bag: a folder of rosbag2, .mcap or .db3"),
            *(DeclareLaunchArgument(k, default_value=v, description=text) for k, (v, text) in ARGUMENTS.items()),
            OpaqueFunction(function=replay),
        ]
    )
