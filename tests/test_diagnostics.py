"""What the statistics of frames say, without a node."""

import itertools

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from mega_model.core.errors import InputError
from mega_ros.recovery import People
from mega_ros.ros.diagnostics import TIMES, Health
from mega_ros.ros.images import to_bgr

GIVEN = (*TIMES, "infer_cpu")


def people(*distances: float) -> People:
    count = len(distances)
    sigma = np.tile(np.array([0, 0.125, 0.25], np.float32), (count, 1))
    joints = np.zeros((count, 2, 3), np.float32)
    ids, distance = np.arange(4, 4 + count), np.array(distances, np.float32)
    return People(joints, sigma, joints, sigma, ids, np.zeros((count, 4)), distance, distance, sigma)


def told(health: Health, silence: str = "", *warnings: str) -> tuple[DiagnosticStatus, dict[str, str]]:
    status = health.status("mega", 0, silence, warnings, {})
    return status, {value.key: value.value for value in status.values}


def test_times_and_people() -> None:
    health = Health()
    assert told(health)[1]["intrinsics"] == "no image has been processed"
    for k in range(21):
        health.received(k)
        health.processed(
            people(1.0, np.nan), {name: 0.1 * order + 0.001 * k for order, name in enumerate(GIVEN)}, np.array([4, 9])
        )
    status, values = told(health)
    assert status.level == DiagnosticStatus.OK
    for order, name in enumerate(TIMES):
        assert values[f"{name}_p50_s"] == f"{0.1 * order + 0.010:.4f}"
    assert values["latency_from_stamp_p95_s"] == "0.1190"
    assert values["infer_cpu_s"] == "14.9100"
    assert values["person_4"] == "sigma 0.125 m, distance 1.00"
    assert values["person_5"] == "sigma 0.125 m, distance nan"
    assert (values["people"], values["tracks"], values["samples"]) == ("2", "6", "4 to 9")
    assert values["intrinsics"] == "camera_info"
    health.processed(people(), dict.fromkeys(GIVEN, 0.0), np.zeros(0, int))
    _, values = told(health)
    assert (values["people"], values["tracks"], values["samples"]) == ("0", "6", "0")
    assert "person_4" not in values


def test_rate_and_times_are_those_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health = Health()
    now = 1005.0
    assert health.silence() == 5
    rates = {}
    for frame in range(1, 301):
        now = 1005 + frame / 10
        health.received(frame)
        health.processed(people(), dict.fromkeys(GIVEN, float(frame <= 150)), np.zeros(0, int))
        rates[frame] = told(health)[1]["rate_hz"]
    assert [float(rates[frame]) for frame in (5, 41, 300)] == pytest.approx([5, 10, 10], rel=0.03)
    assert told(health)[1]["latency_p95_s"] == "0.0000"
    now += 20
    assert health.silence() == 20
    _, values = told(health)
    assert (values["rate_hz"], values["latency_p50_s"]) == ("0.00", "nan")


def test_what_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health = Health()
    assert told(health, "no images")[0].level == DiagnosticStatus.WARN, "the camera may start after the node"
    health.received(0)
    assert told(health, "no images")[0].level == DiagnosticStatus.ERROR
    health.problem("/image", "cut off")
    assert told(health, "", "hot", "")[0].message == "/image: cut off; hot"
    now += 6
    status, values = told(health)
    assert (status.level, values["last_bad_input"]) == (DiagnosticStatus.OK, "/image: cut off")


def test_images_that_stay_away_are_counted_by_their_camera_info(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 frames at 10 Hz, those between the 30th and the 130th have no image. Then the camera stands still."""
    now = 0.0
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health, said = Health(), {}
    for frame in [*range(1, 201), *range(10**6, 10**6 + 20)]:
        now = frame / 10
        health.received_info(frame * 10**8)
        if not 30 <= frame < 130:
            health.received(frame * 10**8)
        said[frame] = health.losses()
    assert said[120].startswith("90 of the last "), "not only once images come again"
    _, values = told(health)
    assert (values["frames_received"], values["frames_lost"]) == ("120", "100")
    assert values["camera_rate_hz"] == "10.00"
    for frame in range(300, 303):  # a camera_info that is published once, or again and again with one stamp
        now = 2e5 + frame
        health.received_info(2 * 10**14)
    assert told(health)[1]["frames_lost"] == "100"


def test_an_image_may_come_after_its_camera_info(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health = Health()
    for frame in range(1, 100):
        now = frame / 10
        health.received_info(frame * 10**8)
        health.received((frame - 3) * 10**8)
    assert told(health)[1]["frames_lost"] == "0"


def test_many_losses_of_late_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = 0.0, {}
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health = Health()
    for frame in range(1, 501):
        now = frame / 10
        if frame not in (150, *range(300, 310)):
            health.received(frame * 10**8)
        said[frame] = health.losses()
    assert said[200] == "", "one of a hundred is not many"
    assert said[350] == "10 of the last 101 frames never arrived"
    assert said[450] == "", "it was more than ten seconds ago"


@pytest.mark.parametrize(("infos", "images"), [(1, 45), (1, 120), (3, 1)])
def test_a_camera_info_of_its_own_rate_tells_of_no_image(
    infos: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera whose camera_info comes at another rate loses nothing; nor does it when it stands still.

    infos, images: every how many thirtieths of a second they come.
    """
    now = 0.0
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health = Health()
    for tick in range(1, 1800):
        now = tick / 30
        if tick % infos == 0:
            health.received_info(round(now * 1e9))
        if tick % images == 0 and now < 45:
            health.received(round(now * 1e9))
    assert told(health)[1]["frames_lost"] == "0"


def test_who_is_unlike_the_training_set_is_a_warning() -> None:
    health = Health()
    health.processed(people(1.0, 2.5), dict.fromkeys(GIVEN, 0.0), np.zeros(0, int))
    status, _ = told(health)
    assert status.level == DiagnosticStatus.WARN
    assert status.message == "unlike the training set, so sigma may be too small: person 5"
    health.processed(people(1.0, 1.9), dict.fromkeys(GIVEN, 0.0), np.zeros(0, int))
    assert told(health)[0].level == DiagnosticStatus.OK


def test_the_same_sentence_is_not_said_twice() -> None:
    """Why intrinsics are assumed is a warning of its own, not also the last bad input."""
    health = Health()
    health.assumed = "/camera_info: no camera_info has come"
    status, values = told(health)
    assert status.message.count("no camera_info has come") == 1
    assert values["last_bad_input"] == "none"


def test_a_state_that_lasts_is_logged_when_it_begins_or_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, health, said = itertools.count(), Health(), []
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: next(seconds))
    states = [*["model 'fov' is unknown"] * 100, *["model 'none' is unknown"] * 100, *[""] * 10]
    states += [f"{k} of the last 300 never arrived" for k in range(100)]
    states += ["", "it is empty"] * 100  # comes and goes with each frame
    for state in states:
        if health.begins("camera", state):
            said.append(state)
        assert not health.begins("other", "")
    assert said[:3] == [states[0], states[100], states[210]]
    assert {*said[3:]} == {"it is empty"} and len(said) < 50, "not more often than other problems"


def test_states_may_end_in_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("mega_ros.ros.diagnostics.time.monotonic", lambda: now)
    health = Health()
    for _ in range(2):
        now += 20
        for state, what in itertools.product(("unknown", ""), ("lens", "clock")):
            now += 0.1
            assert health.begins(what, state and f"{what} is {state}") == bool(state)


def test_unknown_encodings_are_one_kind_of_problem() -> None:
    """Whatever their names are: 100 names gave 100 lines of the log."""
    health, due = Health(), 0
    for encoding in ("mono16", "16SC1", "a 16 b", "it's 16", "'16' '32"):
        message = Image(width=2, height=2, step=6, encoding=encoding)
        with pytest.raises(InputError, match="more than 8 bits") as raised:
            to_bgr(message)
        due += health.problem("/image", str(raised.value))
    assert due == 1
