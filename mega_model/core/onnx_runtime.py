"""onnxruntime without its telemetry: import `ort` from here only.

From 1.29 on, onnxruntime collects usage data and sends them, unless this variable is set before its import.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
