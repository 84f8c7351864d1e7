"""The ROS 2 node `mega`: camera images in, a mesh with sigma per person out.

It is a managed node (lifecycle): configure loads the model, activate subscribes and starts the work, deactivate ends
it, cleanup frees the model. With the parameter `autostart` it becomes active by itself.
"""

from __future__ import annotations

import gc
import shlex
import sys
import threading
import traceback
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain, repeat

import rclpy
import tyro
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from mega_model.core.errors import InputError, first_line

from ..bundle import Bundle
from ..engines import to_build
from ..recovery import Recovery
from ..stream import warm_up
from ..user_detector import UserDetector
from . import bodies, parameters
from .camera import LiveCamera
from .dds import remove_profile, transport, use_large_messages
from .outputs import Outputs
from .signals import Ending
from .transport import create_publisher
from .worker import Worker

FAULTS = (InputError, ParameterException, RuntimeError)
"""What a user can mend: rcl and rclpy raise RuntimeErrors for wrong arguments and `qos_overrides`."""


class MegaNode(LifecycleNode):  # type: ignore[misc]  # rclpy's types are skipped
    """Raises rclpy's ParameterException, with one clear line, if a parameter is not allowed."""

    def __init__(self, loading: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """loading: the context in which the model is loaded, which may take minutes."""
        super().__init__("mega")
        self._loading = loading
        parameters.declare(self)
        self._recovery: Recovery | None = None
        self._detector: UserDetector | None = None
        self._outputs: dict[str, Outputs] = {}  # by the name of the camera, empty for the only one
        self._humans: bodies.Humans | None = None
        self._cameras: list[LiveCamera] = []
        self._next_ids: dict[str, int] = {}  # by the name of the camera: no two people of a node's life have one id
        self._worker: Worker | None = None
        self._state = "unconfigured"
        self._fault = ""  # why the last transition failed; empty if it did not
        self._carrier, self._advice = transport()
        if self._advice:
            self.get_logger().warning(self._advice)
        self._diagnostics = create_publisher(self, DiagnosticArray, "/diagnostics", depth=10)
        # on its own clock: diagnostics go on when a bag that drives /clock pauses
        self.create_timer(1.0, self._diagnose, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self) -> bool:
        """Configure and activate, if `autostart` asks for it. False if that failed; the reason is in the log."""
        if not parameters.get(self, "autostart"):
            return True
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """What the services for parameters call. A refusal is one line that says why."""
        if reason := parameters.why_refused(self, parameter_list):
            return SetParametersResult(successful=False, reason=reason)
        return super().set_parameters_atomically(parameter_list)

    # ------------------------------------------------------------------------------------------------- the transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._loading():
            return self._change(self._load, "inactive", self._free)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._change(self._begin, "active", self._end)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._change(self._end, "inactive")

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._change(self._free, "unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._change(self.close, "finalized")

    def _change(
        self, step: Callable[[], None], goal: str, undo: Callable[[], None] = lambda: None
    ) -> TransitionCallbackReturn:
        """Go to the state `goal`. If `step` fails, what it has done is undone, the state stays, and the reason is told:
        rclpy would hide it."""
        try:
            step()
        except FAULTS as error:
            self._fault = first_line(error)
            self.get_logger().error(self._fault)
            self.get_logger().debug(traceback.format_exc())
        except Exception as error:
            self._fault = f"{type(error).__name__}: {first_line(error)}"
            self.get_logger().error(traceback.format_exc())
        else:
            self._state, self._fault = goal, ""
            return TransitionCallbackReturn.SUCCESS
        undo()
        return TransitionCallbackReturn.FAILURE

    def _load(self) -> None:
        bundle, provider = Bundle.load(parameters.get(self, "bundle")), parameters.get(self, "provider")
        with self._announced(to_build(bundle, provider)):
            self._recovery = recovery = Recovery(bundle, provider)
        self.get_logger().info(f"the model runs in {recovery.backend}{recovery.why and f', {recovery.why}'}")
        path = parameters.get(self, "detector_model")
        self._detector = UserDetector(path, provider) if path else None
        if self._detector:
            self.get_logger().info(f"detector: {self._detector.name}")
        warm_up(recovery, self._detector)
        if hri := bodies.package("hri_msgs"):
            self._humans = bodies.Humans(self, hri)
        for name in parameters.cameras(self) or [""]:
            self._outputs[name] = Outputs(self, recovery.topology, parameters.get(self, "tf"), name, self._humans)

    def _begin(self) -> None:
        assert self._recovery  # the node was configured
        self._worker = Worker()
        for name, outputs in self._outputs.items():
            self._cameras.append(
                LiveCamera(
                    self,
                    name,
                    self._recovery,
                    outputs,
                    self._worker,
                    self._advice,
                    self._detector,
                    self._next_ids.get(name, 0),
                )
            )

    def _end(self) -> None:
        if self._worker:
            self._worker.close()
        self._worker = None
        while self._cameras:
            camera = self._cameras.pop()
            self._next_ids[camera.name] = camera.close()

    def _free(self) -> None:
        while self._outputs:
            self._outputs.popitem()[1].close()
        if self._humans:
            self._humans.close()
        self._humans = None
        self._recovery = self._detector = None
        gc.collect()  # closed cameras and their subscriptions refer to each other, and hold the model

    def close(self) -> None:
        """End the work and free the model, in any state. Call it before the node is destroyed."""
        self._end()
        self._free()

    # ------------------------------------------------------------------------------------------------------ diagnostics

    def _diagnose(self) -> None:
        name = self.get_fully_qualified_name().lstrip("/")
        if self._cameras and self._recovery:
            facts = {
                "backend": self._recovery.backend,
                "backend_reason": self._recovery.why or "none",
                "detector": self._detector.name if self._detector else "the bundle's",
                "transport": self._carrier,
                **_facts(self._recovery.bundle),
            }
            warnings = chain([self._namesakes()], repeat(""))  # what concerns all is said once
            self._publish(
                camera.status(f"{name}/{camera.name}".rstrip("/"), warning, facts)
                for camera, warning in zip(self._cameras, warnings)
            )
        else:
            level = DiagnosticStatus.ERROR if self._fault else DiagnosticStatus.OK
            message = f"{self._state}: {self._fault}" if self._fault else self._state
            self._publish([DiagnosticStatus(level=level, name=name, hardware_id=name, message=message)])

    @contextmanager
    def _announced(self, work: str) -> Iterator[None]:
        """Warn of this work every second while it is done: it blocks the executor. Empty: say nothing."""
        if not work:
            yield
            return
        self.get_logger().warning(work)
        name = self.get_fully_qualified_name().lstrip("/")
        status = DiagnosticStatus(level=DiagnosticStatus.WARN, name=name, hardware_id=name, message=work)
        finished = threading.Event()

        def warn() -> None:
            while not finished.is_set():
                self._publish([status])
                finished.wait(1.0)

        thread = threading.Thread(target=warn, name="announcement", daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()

    def _publish(self, states: Iterable[DiagnosticStatus]) -> None:
        message = DiagnosticArray(status=list(states))
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _namesakes(self) -> str:
        names = self.get_node_names_and_namespaces()
        same = names.count((self.get_name(), self.get_namespace()))
        if same < 2:
            return ""
        # DDS misses a killed node only when its lease ends
        own = self.get_fully_qualified_name()
        return f"{same} nodes are named {own}: rename one (__node:=...); a killed one still counts for 20 s"


def _facts(bundle: Bundle) -> dict[str, str]:
    calibration = bundle.calibration
    coverage = ", ".join(f"{share:.0%} within {within}" for within, share in calibration.coverage.items())
    return {
        "bundle": bundle.name,
        "bundle_hash": bundle.hash,
        "calibration": f"sigma times {calibration.scale:g}; {coverage}; {calibration.how}",
    }


def options() -> None:
    """The ROS 2 node: subscribes to `image` and `camera_info`, publishes `~/mesh`, `~/joints`, `~/markers`, ...

    Topics and parameters are set as ROS arguments. `config/mega.yaml` lists the parameters.

    mega node --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info -p fov:=1.2
    """


def main(args: Sequence[str]) -> int:
    ending = Ending()
    use_large_messages()
    at_once = partial(ending.at_once, remove_profile)
    try:
        with at_once():
            tyro.cli(options, prog="mega node", args=remove_ros_args(list(args)))
            # rclpy's own handlers, and its spin(), do not always end with code 0
            rclpy.init(args=list(args), signal_handler_options=SignalHandlerOptions.NO)
            node = MegaNode(loading=at_once)
            name = node.get_fully_qualified_name()
            for file in parameters.unused_files(args, name):
                node.get_logger().warning(
                    f"{file}: it has no entry for {name}, so it is not used; name one /** or {name}"
                )
            started = node.start()
    except FAULTS as error:
        reason = first_line(error)
        if isinstance(error, rclpy_implementation.UnknownROSArgsError):
            reason = f"unknown ROS arguments: {shlex.join(literal_eval(reason))}"  # rclpy says the list and no more
        if "log directory" in reason:  # rcl's, which says no more
            reason += "; set ROS_LOG_DIR to a folder that can be written"
        print(f"mega node: {reason}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ending.wake = executor.wake
    try:
        while started and not ending.asked.is_set():
            executor.spin_once()
    finally:
        executor.shutdown()
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
        ending.ignore_more()
    return 0 if started else 1
