"""The node as a managed node: what it has and does in each state."""

import gc
import importlib.util
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from domains import free_domain
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from test_node import GREY, Peer, image, running

from mega_model.core.errors import InputError
from mega_ros import Recovery
from mega_ros.ros.node import MegaNode
from mega_ros.ros.read import read_cloud

UNMANAGED = ("-p", "boxes:=full_frame", "-p", "provider:=cpu", "-p", "autostart:=false")
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """The tests below take this node through its states, in order."""
    with running(*UNMANAGED, starts=False) as (peer, _):
        yield peer


def change(peer: Peer, transition: int) -> str:
    """The label of the state after a transition that succeeds."""
    request = ChangeState.Request(transition=Transition(id=transition))
    assert peer.call(ChangeState, "change_state", request).success
    return str(peer.call(GetState, "get_state", GetState.Request()).current_state.label)


def listens(peer: Peer) -> bool:
    return bool(peer.get_subscriptions_info_by_topic("/image"))


def test_autostart_can_be_left_out(peer: Peer) -> None:
    peer.status(lambda s, v: s.message == "unconfigured" and s.level == DiagnosticStatus.OK)
    assert not peer.get_publishers_info_by_topic("/mega/mesh") and not listens(peer)


def test_configure_loads_and_activate_works(peer: Peer) -> None:
    assert change(peer, Transition.TRANSITION_CONFIGURE) == "inactive"
    peer.wait(lambda: peer.topologies)
    peer.status(lambda s, v: s.message == "inactive")
    assert not listens(peer)
    assert change(peer, Transition.TRANSITION_ACTIVATE) == "active"
    assert peer.ask(image(GREY))[0].height == 1


def test_nothing_is_computed_for_nobody(peer: Peer) -> None:
    """Frames that nobody wants are neither processed nor dropped. One subscriber to anything is enough."""

    def counted(frames: int) -> list[int]:
        """Processed, dropped and idle frames, after so many more."""
        received = int(peer.status(lambda s, v: True)["frames_received"])
        values = peer.status(
            lambda s, v: int(v["frames_received"]) >= received + frames, lambda: peer.send(image(GREY))
        )
        return [int(values[f"frames_{what}"]) for what in ("processed", "dropped", "idle")]

    peer.listen(False)
    before = counted(2)  # the node may not know yet
    after = counted(3)
    assert after[:2] == before[:2] and after[2] > before[2]
    peer.listen(True)
    assert peer.ask(image(GREY))[0].height == 1


def test_deactivate_ends_the_work_and_cleanup_the_outputs(peer: Peer) -> None:
    assert change(peer, Transition.TRANSITION_DEACTIVATE) == "inactive"
    peer.wait(lambda: not listens(peer))
    assert peer.get_publishers_info_by_topic("/mega/mesh")
    assert change(peer, Transition.TRANSITION_CLEANUP) == "unconfigured"
    peer.wait(lambda: not peer.get_publishers_info_by_topic("/mega/mesh"))


def test_it_works_again(peer: Peer) -> None:
    assert change(peer, Transition.TRANSITION_CONFIGURE) == "inactive"
    assert change(peer, Transition.TRANSITION_ACTIVATE) == "active"
    (person,) = read_cloud(peer.ask(image(GREY))[0])["id"][:, 0]
    assert person > 0, "an id is one person's, as long as the node lives"
    assert change(peer, Transition.TRANSITION_ACTIVE_SHUTDOWN) == "finalized"
    peer.wait(lambda: not listens(peer))


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[MegaNode]:
    """In this process, with the parameters of the test."""
    rclpy.init(args=["--ros-args", "-p", "provider:=cpu", *request.param], domain_id=free_domain())
    made = MegaNode()
    try:
        yield made
    finally:
        made.close()
        made.destroy_node()
        rclpy.shutdown()


def models() -> list[Recovery]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, Recovery)]


@pytest.mark.parametrize("node", [[]], indirect=True)
def test_cleanup_frees_the_model(node: MegaNode) -> None:
    others = models()  # of other tests
    before = len(others)
    assert node.trigger_configure() == SUCCESS
    (model,) = (model for model in models() if all(model is not other for other in others))
    assert model.seconds()["infer"] > 0, "the first image would wait"
    freed = weakref.ref(model)
    del model, others
    assert node.trigger_activate() == SUCCESS
    assert len(models()) == before + 1
    gc.disable()  # else it may happen to be freed later
    try:
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("node", [["-p", "detector_model:=own.onnx"]], indirect=True)
def test_a_failed_configure_frees_the_model_and_the_detector(node: MegaNode, monkeypatch: pytest.MonkeyPatch) -> None:
    detectors: weakref.WeakSet[Any] = weakref.WeakSet()

    class FakeDetector:
        name = "own"

        def __init__(self, *_: object) -> None:
            detectors.add(self)

    def fail(*_: object) -> None:
        assert detectors
        raise InputError("no")

    monkeypatch.setattr("mega_ros.ros.node.UserDetector", FakeDetector)
    monkeypatch.setattr("mega_ros.ros.node.warm_up", fail)
    before = len(models())
    assert node.trigger_configure() == FAILURE
    assert len(models()) == before and not detectors


@pytest.mark.parametrize(
    "node", [["-p", "max_peple:=3", "-p", "exposure:=5", "-p", "max_people:=4", "-p", "seed:=2"]], indirect=True
)
def test_a_misspelt_parameter_is_named(capfd: pytest.CaptureFixture[str], node: MegaNode) -> None:
    """Not one that may be meant for another node, which has the same parameter file."""
    lines = [line for line in capfd.readouterr().err.splitlines() if "no parameter" in line]
    assert len(lines) == 1
    assert "there is no parameter max_peple, so it is ignored; did you mean max_people?" in lines[0]
    assert not node.has_parameter("max_peple")
    assert node.get_parameter("max_people").value == 4 and node.get_parameter("seed").value == 2
    assert node.describe_parameter("max_people").integer_range[0].to_value == 1000


OVERRIDES = {
    "qos_overrides./image.subscription.reliability": "best_effort",
    "qos_overrides./image.subscriber.reliability": "best_effort",
    "qos_overrides.image.subscription.reliability": "best_effort",
    "qos_overrides./image.subscription.deadline": "100",
}


@pytest.mark.parametrize(
    "node",
    [["-p", "fov.value:=1.0", *(word for item in OVERRIDES.items() for word in ("-p", ":=".join(item)))]],
    indirect=True,
)
def test_a_parameter_in_the_wrong_place_is_named(capfd: pytest.CaptureFixture[str], node: MegaNode) -> None:
    lines = [line.partition("there is no parameter ")[2] for line in capfd.readouterr().err.splitlines()]
    overrides = [*OVERRIDES][1:]
    assert {line.partition(",")[0] for line in lines if line} == {"fov.value", *overrides}
    for line in filter(None, lines):
        meant = (
            "did you mean fov?" if line.startswith("fov") else "what can be set is qos_overrides.<full name of a topic>"
        )
        assert meant in line


@pytest.mark.parametrize("node", [["-p", "bundle:=nowhere"]], indirect=True)
def test_a_bad_bundle_fails_to_configure_and_the_node_lives(node: MegaNode, capfd: pytest.CaptureFixture[str]) -> None:
    assert not node.start()
    assert node.trigger_configure() == FAILURE
    lines = [line for line in capfd.readouterr().err.splitlines() if "ERROR" in line]
    assert len(lines) == 2 and all("nowhere/bundle.json: " in line for line in lines)


def test_a_failed_transition_is_an_error_in_the_diagnostics_until_one_succeeds() -> None:
    with running(*UNMANAGED, "-p", "bundle:=nowhere", starts=False) as (peer, _):
        configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        assert not peer.call(ChangeState, "change_state", configure).success
        values = peer.status(lambda s, v: s.level == DiagnosticStatus.ERROR)
        assert values["message"].startswith("unconfigured: nowhere/bundle.json: there is no such file")
        assert change(peer, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN) == "finalized"
        peer.status(lambda s, v: s.message == "finalized" and s.level == DiagnosticStatus.OK)


@pytest.mark.parametrize(
    "node", [["-p", "qos_overrides./camera_info.subscription.reliability:=perhaps"]], indirect=True
)
def test_a_failed_activation_leaves_nothing(node: MegaNode) -> None:
    before = len(list(node.subscriptions))
    assert not node.start()
    assert len(list(node.subscriptions)) == before


@pytest.mark.skipif(importlib.util.find_spec("tf2_msgs") is not None, reason="tf2_msgs is installed")
@pytest.mark.parametrize("node", [["-p", "tf:=true"]], indirect=True)
def test_frames_need_tf2(node: MegaNode, capfd: pytest.CaptureFixture[str]) -> None:
    assert not node.start()
    assert "the parameter tf needs the package tf2_msgs, which is not installed" in capfd.readouterr().err


@pytest.mark.parametrize("node", [[]], indirect=True)
def test_building_engines_is_reported_meanwhile(
    node: MegaNode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sent: list[DiagnosticStatus] = []
    peer, executor = Node("peer"), SingleThreadedExecutor()
    peer.create_subscription(DiagnosticArray, "/diagnostics", lambda message: sent.extend(message.status), 10)
    executor.add_node(peer)
    publisher = next(each for each in node.publishers if each.topic_name == "/diagnostics")
    while not publisher.get_subscription_count():
        executor.spin_once(timeout_sec=0.05)
    monkeypatch.setattr("mega_ros.ros.node.to_build", lambda bundle, provider: f"{provider}: engines are being built")
    assert node.trigger_configure() == SUCCESS
    while not sent:
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    peer.destroy_node()
    assert {(status.level, status.message) for status in sent} == {
        (DiagnosticStatus.WARN, "cpu: engines are being built")
    }
    assert not [thread for thread in threading.enumerate() if thread.name == "announcement"]
    said = capfd.readouterr().err
    assert "engines are being built" in said and "the model runs in onnxruntime CPUExecutionProvider" in said
