"""Face detectors and recognisers as small ONNX files, of the inputs and outputs that the true ones have.

A detector sees a face wherever a picture is bright; a recogniser is a fixed random projection of 8×8 mean colours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
LANDMARKS = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8)], np.float32)
"""Of a face, in strides from its cell: two eyes, nose, two corners of the mouth."""


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str | None = None, **attributes: object) -> str:
        output = output or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def conv(self, x: str, weights: np.ndarray, bias: np.ndarray) -> str:
        weights = weights.astype(np.float32)[:, :, None, None]
        inputs = [x, self.constant(weights), self.constant(bias.astype(np.float32))]
        return self.add("Conv", inputs, kernel_shape=[1, 1])

    def save(self, path: Path, inputs: list[object], outputs: list[str], rank: int) -> Path:
        shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs]
        graph = helper.make_graph(self.nodes, "small", inputs, shown, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return path


def _columns(graph: _Graph, grey: str, columns: int, gain: float, bias: np.ndarray, shape: list[int], out: str) -> None:
    """`columns` numbers for each cell of a grid: gain · brightness + bias, as rows."""
    value = graph.conv(grey, np.full((len(bias), 1), gain), bias)
    rows = graph.add("Transpose", [value], perm=[0, 2, 3, 1])
    graph.add("Reshape", [rows, graph.constant(np.array(shape, np.int64))], out)


def yunet(path: Path, everywhere: bool = False) -> Path:
    """YuNet's twelve outputs; `everywhere` it sees a face in every cell."""
    graph = _Graph()
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    grey = graph.conv("input", np.full((1, 3), 1 / 3 / 255), np.zeros(1))
    names = []
    for stride in STRIDES:
        mean = graph.add("AveragePool", [grey], kernel_shape=[stride] * 2, strides=[stride] * 2)
        gain, bias = (0.05, 0.9) if everywhere else (1.0, 0.0)
        for kind in ("cls", "obj"):
            _columns(graph, mean, 1, gain, np.array([bias]), [1, -1, 1], f"{kind}_{stride}")
        _columns(graph, mean, 4, 0.0, np.zeros(4), [1, -1, 4], f"bbox_{stride}")
        _columns(graph, mean, 10, 0.0, LANDMARKS.reshape(-1), [1, -1, 10], f"kps_{stride}")
        names += [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps")]
    return graph.save(path, [image], names, 3)


def scrfd(path: Path, landmarks: int = 10) -> Path:
    """SCRFD's nine outputs, two anchors for each cell of a 640×640 square."""
    graph = _Graph()
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, 640, 640])
    grey = graph.conv("input.1", np.full((1, 3), 128 / 3 / 255), np.array([0.5]))
    names = []
    means = [graph.add("AveragePool", [grey], kernel_shape=[s] * 2, strides=[s] * 2) for s in STRIDES]
    points = LANDMARKS.reshape(-1)[:landmarks]
    for columns, gain, bias in ((1, 1.0, np.zeros(2)), (4, 0.0, np.ones(8)), (landmarks, 0.0, np.tile(points, 2))):
        for stride, mean in zip(STRIDES, means, strict=True):
            names.append(f"out_{columns}_{stride}")
            _columns(graph, mean, columns, gain, bias, [-1, columns], names[-1])
    return graph.save(path, [image], names, 2)


def recogniser(path: Path, width: int, input_shape: tuple[int | str, ...] = ("n", 3, 112, 112)) -> Path:
    """SFace (128 wide, one picture at a time) or ArcFace (512 wide)."""
    graph = _Graph()
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, list(input_shape))
    pooled = graph.add("AveragePool", ["data"], kernel_shape=[14, 14], strides=[14, 14])
    flat = graph.add("Flatten", [pooled])
    weights = np.random.default_rng(0).normal(size=(3 * 8 * 8, width)).astype(np.float32)
    graph.add("Gemm", [flat, graph.constant(weights), graph.constant(np.zeros(width, np.float32))], "fc1")
    return graph.save(path, [image], ["fc1"], 2)


def and_then(path: Path, kind: str, value: np.ndarray, output: str = "fc1") -> None:
    """Do one more thing to an output of a file, such as `Mul` by NaN."""
    model = onnx.load(str(path))
    before = f"{output}_before_{kind}"
    for node in model.graph.node:
        node.output[:] = [before if name == output else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(value, f"{before}_value"))
    model.graph.node.append(helper.make_node(kind, [before, f"{before}_value"], [output]))
    onnx.save(model, str(path))
