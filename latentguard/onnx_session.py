"""Opening ONNX graphs in ONNX Runtime, on a processor."""

from __future__ import annotations

import onnxruntime

# Two threads take a prompt through an encoder 1.3 times as fast as one; more of them would mostly wait.
_MOST_THREADS = 4


def opened(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session that runs a graph on so many processor threads, four at most; many callers may use it at once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(threads, _MOST_THREADS)
    options.inter_op_num_threads = 1
    # Threads that wait for the next prompt must not take the cores from what scores this one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
