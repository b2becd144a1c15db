"""Writing ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
MICROSOFT = "com.microsoft"
_OPSET, _IR_VERSION = 18, 9  # understood by ONNX Runtime 1.16 and later

Array = NDArray[Any]
Declared = Mapping[str, tuple[int, Sequence[int | str]]]
"""Of each of a graph's inputs or outputs its ONNX type and its shape; a text stands for a size not known beforehand."""


class OnnxGraph:
    """An ONNX graph in the making: states go by their names."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array | np.generic) -> str:
        """The name of a constant, which is written the first time that it is asked for."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """A node with one output; returns its name."""
        self.add_several(operator, inputs, [output], domain=domain, **attributes)
        return output

    def add_several(
        self, operator: str, inputs: Sequence[str], outputs: list[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node with several outputs; returns their names."""
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, domain=domain, **attributes))
        return outputs

    def serialised(self, inputs: Declared, outputs: Declared, metadata: Mapping[str, str] | None = None) -> bytes:
        """The ONNX model, with texts that go with it."""
        declared = [
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in some.items()]
            for some in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "latentguard", *declared, initializer=list(self._constants.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        if metadata:
            helper.set_model_props(model, dict(metadata))
        content: bytes = model.SerializeToString()
        return content
