"""E-SSL on SimCLR and on VICReg, with all elements and with relative ones."""

import torch
from torch import Tensor, nn
from two_process_cases import GLOBAL_BATCH, Tensors, make_encoder, train_steps

from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig


class ESSLWithoutActions(nn.Module):
    """Takes its inputs in the harness's order: (views, transformed views, elements)."""

    def __init__(self, objective: ESSL) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, views: Tensor, transformed_views: Tensor, elements: Tensor) -> object:
        return self.objective(views, None, transformed_views, elements)


def simclr() -> nn.Module:
    return SimCLR(make_encoder(), SimCLRConfig(projector=(24, 8)))


def vicreg() -> nn.Module:
    return VICReg(make_encoder(), VICRegConfig(projector=(24, 24)))


def inputs_of(number: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    views = torch.randn(GLOBAL_BATCH, 2, 3, 8, 8, dtype=dtype)
    small_views = torch.randn(GLOBAL_BATCH, number, 3, 6, 6, dtype=dtype)
    return views, small_views, torch.randint(4, (GLOBAL_BATCH, number))


def essl_steps(make_base, dtype: torch.dtype, number: int = 4, table: Tensor | None = None, **changes) -> Tensors:
    config = ESSLConfig(hidden_widths=(24, 16), relative=table is not None, **changes)
    return train_steps(
        lambda: ESSLWithoutActions(ESSL(make_base(), config, table)),
        dtype,
        lambda dtype: inputs_of(number, dtype),
        steps=2,
    )


C4_RELATIVE_TABLE = (torch.arange(4) - torch.arange(4).unsqueeze(1)) % 4

CASES = {
    "essl_simclr": lambda dtype: essl_steps(simclr, dtype),
    "essl_simclr_joint_statistics": lambda dtype: essl_steps(simclr, dtype, separate_statistics=False),
    "essl_vicreg": lambda dtype: essl_steps(vicreg, dtype, number=2, weight=8.0),
    "essl_vicreg_relative": lambda dtype: essl_steps(vicreg, dtype, number=2, table=C4_RELATIVE_TABLE),
}
