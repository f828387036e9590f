"""The recognisers that are opened from files. For photographs the user names two ONNX files:

    detector                       recogniser                      computed by
    YuNet                          SFace                           OpenCV
    SCRFD with landmarks           ArcFace or its kin (InsightFace)  onnxruntime

Which they are is read from the inputs and outputs of the files, so that no file is taken for what it is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apl_guard.errors import ExtraMissing, ModelInvalid
from apl_guard.trainer.evaluate.apl2026.faces import FaceJudge, files_digest
from apl_guard.trainer.evaluate.apl2026.insight_faces import InsightFaces
from apl_guard.trainer.evaluate.apl2026.opencv_faces import OpenCVFaces

_YUNET = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)}
_EXPECTED = "expected YuNet with SFace, or SCRFD with landmarks and an ArcFace-like recogniser"


def open_faces(detector: Path, recogniser: Path) -> FaceJudge:
    """Open a face detector and a face recogniser.

    Args:
        detector: ONNX file of YuNet (twelve outputs `cls_8` … `kps_32`), or of SCRFD (nine of 1, 4 and 10 columns).
        recogniser: ONNX file that takes (n, 3, 112, 112) and gives (n, E): SFace beside YuNet, else ArcFace.

    Raises:
        ModelInvalid: A file is missing, is no ONNX model, or is of another architecture.
        ExtraMissing: onnxruntime or OpenCV is not installed.
    """
    found, recognises = open_graph(detector), open_graph(recogniser)
    shape = recognises.get_inputs()[0].shape
    outputs = recognises.get_outputs()
    if len(recognises.get_inputs()) != 1 or list(shape[1:]) != [3, 112, 112] or len(outputs) != 1:
        raise ModelInvalid(
            f"a recogniser of another architecture: input {shape}, {len(outputs)} outputs; expected (n, 3, 112, 112) "
            "and one output",
            where=recogniser,
        )
    names = {output.name for output in found.get_outputs()}
    if names == _YUNET:
        return OpenCVFaces(detector, recogniser)
    if len(names) == 9:
        return InsightFaces(found, recognises, files_digest(detector, recogniser), detector, recogniser)
    raise ModelInvalid(f"a detector of another architecture, with {len(names)} outputs; {_EXPECTED}", where=detector)


def open_graph(path: Path) -> Any:
    """An onnxruntime session on the processor.

    Raises:
        ModelInvalid: The file is missing or no ONNX model.
        ExtraMissing: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExtraMissing("eval", needs="onnxruntime") from error
    if not path.is_file():
        raise ModelInvalid(f"no such file; {_EXPECTED}, as ONNX files", where=path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common type
        raise ModelInvalid(f"not an ONNX model that can be opened: {type(error).__name__}", where=path) from error
