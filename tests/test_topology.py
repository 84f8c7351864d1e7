"""A topology from a file: what does not fit together is refused by the field's name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mega_model.core.errors import InputError
from mega_model.core.topology import SMPL_JOINTS, Topology

VERTICES = 40
ARRAYS = {
    "template": np.random.default_rng(0).normal(size=(VERTICES, 3)).astype(np.float32),
    "faces": np.array([[0, 1, 2], [2, 3, VERTICES - 1]], np.int32),
    "joint_regressor": np.full((len(SMPL_JOINTS), VERTICES), 1 / VERTICES, np.float32),
    "parts": np.arange(VERTICES, dtype=np.int32) % len(SMPL_JOINTS),
    "joint_names": np.array(SMPL_JOINTS),
}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("faces", [[0, 1, VERTICES]], "field 'faces' holds something other than whole numbers from 0 to"),
        ("faces", [[0, 1, -1]], "field 'faces' holds something other than whole numbers from 0 to"),
        ("faces", [[0.0, 1.0, 2.0]], "field 'faces' holds something other"),
        (
            "template",
            np.full((VERTICES, 3), np.nan),
            "field 'template' holds something other than finite",
        ),
        ("template", np.zeros((7, 3)), "field 'faces' holds|field 'joint_regressor' has the shape"),
        ("joint_regressor", np.full((24, VERTICES), np.inf), "'joint_regressor' holds something other"),
        ("parts", np.full(VERTICES, 24), "field 'parts' holds something other"),
        ("joint_names", np.array(["pelvis"]), "'joint_regressor' has the shape"),
        ("joint_names", np.array(SMPL_JOINTS[::-1]), "'joint_names' is neither SMPL's 24 joints nor"),
        ("template", np.array([{}]), "field 'template' cannot be read"),
    ],
)
def test_a_topology_that_makes_no_sense(tmp_path: Path, field: str, value: Any, expected: str) -> None:
    path = tmp_path / "topology.npz"
    np.savez(path, **ARRAYS | {field: np.asarray(value)})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=expected) as caught:
        Topology.load(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.floats(0, 1),
)
def test_any_damage_is_a_topology_or_one_line(tmp_path: Path, changes: list[tuple[int, int]], keep: float) -> None:
    path = tmp_path / "topology.npz"
    np.savez(path, **ARRAYS)  # type: ignore[arg-type]
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data[: len(data) - int(keep**8 * len(data))])
    try:
        topology = Topology.load(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert topology.faces.max() < len(topology.template)


def test_a_topology_is_not_unpacked_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "topology.npz"
    np.savez_compressed(path, **ARRAYS | {"template": np.zeros((2**23, 3), np.float32)})  # type: ignore[arg-type]
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="field 'template' has 100663424 bytes when unpacked; at most 67108864"):
        Topology.load(path)


def test_a_topology_is_read_as_it_was_saved(tmp_path: Path) -> None:
    np.savez(tmp_path / "topology.npz", **ARRAYS)  # type: ignore[arg-type]
    topology = Topology.load(tmp_path / "topology.npz")
    topology.save(tmp_path / "again.npz")
    again = Topology.load(tmp_path / "again.npz")
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(getattr(again, name), value)
