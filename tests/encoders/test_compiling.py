"""The compiler is tried before a run starts."""

import pytest
import torch
from torch import nn

from ssl_equi.encoders.compiling import try_compiler
from ssl_equi.encoders.create import EncoderError


def test_a_compiler_that_fails_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(graph: object, examples: object) -> None:
        raise FileNotFoundError("no g++\nand more of it")

    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_in_place(module, backend=absent))
    with pytest.raises(
        EncoderError, match=r"--compile needs a working compiler, .*no g\+\+.*: install a C\+\+ compiler"
    ):
        try_compiler(torch.device("cpu"))
