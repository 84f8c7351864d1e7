"""ROS domains for tests, so that nodes of tests that run at the same time do not meet."""

import itertools
import os
import random

_count = itertools.count(random.SystemRandom().randrange(230))


def free_domain() -> int:
    """1 to 230. Each process of pytest-xdist has a share of them, and takes them in turn."""
    share = 230 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return 1 + worker * share + next(_count) % share
