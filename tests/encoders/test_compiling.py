"""The compiler is tried before a run starts, and reaches every network of an objective."""

import pytest
import torch
from torch import nn

from ssl_equi.encoders.capsules.network import CapsuleNetwork
from ssl_equi.encoders.catalogue import create_encoder
from ssl_equi.encoders.compiling import compile_networks, try_compiler
from ssl_equi.errors import EncoderError
from ssl_equi.objectives.byol import BYOL, BYOLConfig
from ssl_equi.objectives.equicaps import EquiCaps
from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.seq_jepa import SeqJEPA, SeqJEPAConfig
from ssl_equi.objectives.sie import SIE, SIEConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig


def encoder() -> nn.Module:
    return create_encoder("strided_cnn_pooled", 32)


OBJECTIVES = {
    "sie": (lambda: SIE(encoder(), SIEConfig()), {"encoder", "projectors.inv", "projectors.equi", "predictor"}),
    "byol": (
        lambda: BYOL(encoder(), BYOLConfig(projector=(16, 8), predictor_hidden_width=8)),
        {"encoder", "projector", "predictor", "target_encoder", "target_projector"},
    ),
    "seq_jepa": (
        lambda: SeqJEPA(encoder(), SeqJEPAConfig(layers=1, feedforward_width=16)),
        {"encoder", "target_encoder", "action_embedding", "aggregator", "predictor"},
    ),
    "essl": (
        lambda: ESSL(VICReg(encoder(), VICRegConfig(projector=(16, 8))), ESSLConfig(hidden_widths=(8,))),
        {"base.encoder", "base.projector", "head"},
    ),
    "equicaps": (lambda: EquiCaps(CapsuleNetwork(encoder(), 32, num_capsules=4)), {"network.head"}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_network_is_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, expected = OBJECTIVES[name]
    modules: list[nn.Module] = []
    functions: list[object] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: modules.append(module))
    monkeypatch.setattr(torch, "compile", lambda function: functions.append(function) or function)
    objective = make()
    compile_networks(objective)
    names = {module: name for name, module in objective.named_modules()}
    assert {names[module] for module in modules} == expected
    # A capsule network calls its backbone by this method, which compiling the backbone as a module would miss.
    assert [function.__name__ for function in functions] == (["forward_features"] if name == "equicaps" else [])


def test_a_compiler_that_fails_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(graph: object, examples: object) -> None:
        raise FileNotFoundError("no g++\nand more of it")

    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_in_place(module, backend=absent))
    with pytest.raises(
        EncoderError, match=r"--compile needs a working compiler, .*no g\+\+.*: install a C\+\+ compiler"
    ):
        try_compiler(torch.device("cpu"))
