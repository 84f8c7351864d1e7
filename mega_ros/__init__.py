"""The runtime: camera images to people as 3D surfaces. Never imports torch. Names load lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mega_model.core.cameras import Camera
    from mega_model.core.errors import InputError

    from .bundle import Bundle, BundleError
    from .recovery import People, Recovery
    from .stream import Stream, StreamSettings

__all__ = ["Bundle", "BundleError", "Camera", "InputError", "People", "Recovery", "Stream", "StreamSettings"]
_HOME = {
    "Bundle": "bundle",
    "BundleError": "bundle",
    "Camera": "recovery",
    "InputError": "recovery",
    "People": "recovery",
    "Recovery": "recovery",
    "Stream": "stream",
    "StreamSettings": "stream",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mega_ros.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mega_ros' has no attribute '{name}'")
