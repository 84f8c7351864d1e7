"""The page of reference is current, and what it says of topics and diagnostics is what a running node has."""

import re
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import pytest
from test_node import GREY, Peer, image, running

from mega_ros.ros import interface

NOT_HERE = ("vision_msgs", "tf2_msgs", "hri_msgs")
"""Packages without wheels."""
OF_RCLPY = ("/rosout", "/parameter_events", "/clock", "/mega/transition_event")


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with running("-p", "boxes:=full_frame", "-p", "provider:=cpu") as (peer, _):
        yield peer


def said(which: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Topic -> its types, of packages that are here; names as the graph has them."""
    return {
        re.sub("^~", "/mega", re.sub("^([a-z])", r"/\1", topic)): types
        for topic, (types, _) in which.items()
        if not types.startswith(NOT_HERE)
    }


def found(topics: list[tuple[str, list[str]]]) -> dict[str, str]:
    return {name: ", ".join(types).replace("/msg/", "/") for name, types in topics if name not in OF_RCLPY}


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


def test_the_page_of_reference_is_current(root: Path) -> None:
    script = run_path(str(root / "scripts" / "document"))
    assert script["PAGE"].read_text() == script["page"](), "run scripts/document"
