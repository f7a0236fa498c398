"""ONNX files: written from torch.export's programs, described, and run by onnxruntime; needs the extra `onnx`."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ssl_equi.errors import EncoderError, UserError

MOST_BYTES = 2**31 - 1  # of a file with its weights inside, by the format


def onnx_file(program: ExportedProgram, input_name: str, outputs: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    """The content of an ONNX file with its weights inside.

    Args:
        program: of one input and of as many outputs as are named.
        metadata: entries of the file's `metadata_props`, which get the prefix `ssl_equi.`.

    Raises:
        UserError: the extra is missing, or the file would be too large.
    """
    onnx, _ = _onnx_and_onnxruntime()
    exported = torch.onnx.export(
        program, input_names=[input_name], output_names=list(outputs), dynamo=True, verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    if model.ByteSize() > MOST_BYTES:
        raise EncoderError(
            f"the encoder takes {model.ByteSize():,} bytes, and an ONNX file holds at most {MOST_BYTES:,}: export it "
            "to torch"
        )
    onnx.helper.set_model_props(model, {f"ssl_equi.{name}": value for name, value in metadata.items()})
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def onnx_runner(content: bytes, input_name: str) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from images to outputs by name, by onnxruntime on the CPU."""
    _, onnxruntime = _onnx_and_onnxruntime()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        values = session.run(names, {input_name: images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def _onnx_and_onnxruntime() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx writes with it)
    except ImportError as error:
        raise UserError(f"ONNX needs {error.name}: pip install 'ssl-equi[onnx]', or export to torch") from error
    return onnx, onnxruntime
