"""Pages made of the code are current, and what they say of topics and diagnostics is what a running node has."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from xml.etree import ElementTree

import pytest
from test_node import GREY, Peer, image, running

from mega_ros.ros import interface

NOT_HERE = ("tf2_msgs",) if find_spec("vision_msgs") else ("tf2_msgs", "vision_msgs")
"""Packages whose messages the node has no topics of: without the parameter `tf`, or as they are not installed."""
OF_POLICY = {"/camera/image_raw": "/image", "/camera/camera_info": "/camera_info"}
"""The camera's topics in the policy -> what they are here."""
WITH_IDS = "/humans/"
"""Topics whose names hold the ids of people, and that of all ids; test_message_packages.py has them."""
OF_RCLPY = ("/rosout", "/parameter_events", "/clock", "/mega/transition_event")


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with running("-p", "boxes:=full_frame", "-p", "provider:=cpu") as (peer, _):
        yield peer


def in_graph(name: str) -> str:
    """A relative or private name, as the graph has it."""
    return re.sub("^~", "/mega", re.sub("^([a-z])", r"/\1", name))


def texts(group: ElementTree.Element) -> list[str]:
    return [item.text or "" for item in group]


def said(which: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Topic -> its types, of packages that are here; names as the graph has them."""
    here = {topic: types for topic, (types, _) in which.items() if not types.startswith(NOT_HERE)}
    return {in_graph(topic): types for topic, types in here.items() if not topic.startswith(WITH_IDS)}


def found(topics: list[tuple[str, list[str]]]) -> dict[str, str]:
    own = [(name, types) for name, types in topics if name not in OF_RCLPY and not name.startswith(WITH_IDS)]
    return {name: ", ".join(types).replace("/msg/", "/") for name, types in own}


def test_topics(peer: Peer) -> None:
    assert found(peer.get_publisher_names_and_types_by_node("mega", "/")) == said(interface.OUTPUTS)
    inputs = found(peer.get_subscriber_names_and_types_by_node("mega", "/"))
    assert inputs.keys() == said(interface.INPUTS).keys()
    assert all(said(interface.INPUTS)[name].startswith(kind) for name, kind in inputs.items())


def test_diagnostics(peer: Peer) -> None:
    peer.ask(image(GREY))
    values = peer.status(lambda _, values: int(values.get("people", 0)) > 0)
    names = {re.sub(r"^person_\d+$", "person_<id>", name) for name in values} - {"message"}
    assert names == {name for names in interface.DIAGNOSTICS for name in names.split(", ")}


def test_the_policy_of_sros_2_allows_all_that_the_node_has(root: Path, peer: Peer) -> None:
    (policy,) = re.findall("```xml\n(.*?)```", (root / "docs" / "robot" / "security.md").read_text(), re.DOTALL)
    profile = next(ElementTree.fromstring(policy).iter("profile"))
    for kind, found, further in (
        ("topics[@publish='ALLOW']", peer.get_publisher_names_and_types_by_node, interface.OUTPUTS),
        ("topics[@subscribe='ALLOW']", peer.get_subscriber_names_and_types_by_node, interface.INPUTS),
        ("services[@reply='ALLOW']", peer.get_service_names_and_types_by_node, ()),
        ("services[@request='ALLOW']", peer.get_client_names_and_types_by_node, ()),
    ):
        allowed = {in_graph(OF_POLICY.get(name, name)) for group in profile.findall(kind) for name in texts(group)}
        had = {name for name, _ in found("mega", "/")} | {in_graph(name) for name in further}
        assert not {name for name in had if not name.startswith(WITH_IDS)} - allowed, kind


def test_the_pages_made_of_the_code_are_current(root: Path) -> None:
    for file, page in run_path(str(root / "scripts" / "document.py"))["PAGES"].items():
        assert (root / "docs" / file).read_text() == page(), f"{file}: run scripts/document.py"
