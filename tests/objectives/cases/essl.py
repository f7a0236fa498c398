"""E-SSL on SimCLR and on VICReg, with all elements and with relative ones."""

from functools import partial

import torch

from ssl_equi.objectives.base import Objective
from ssl_equi.objectives.essl import ESSL, ESSLConfig
from ssl_equi.objectives.simclr import SimCLR, SimCLRConfig
from ssl_equi.objectives.vicreg import VICReg, VICRegConfig
from tests.objectives.case import Case, Inputs, MakeEncoder

C4_RELATIVE_TABLE = (torch.arange(4) - torch.arange(4).unsqueeze(1)) % 4


def simclr(encoder: MakeEncoder) -> Objective:
    return SimCLR(encoder(), SimCLRConfig(projector=(24, 8)))


def vicreg(encoder: MakeEncoder) -> Objective:
    return VICReg(encoder(), VICRegConfig(projector=(24, 24)))


def small_views(number: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    views = torch.randn(size, number, 3, 6, 6, generator=generator)
    return {
        "transformed_views": views.to(dtype),
        "elements": torch.randint(4, (size, number), generator=generator),
    }


def essl(base, number: int = 4, table: torch.Tensor | None = None, **changes: object) -> Case:
    config = ESSLConfig(hidden_widths=(24, 16), relative=table is not None, **changes)
    return Case(
        lambda encoder: ESSL(base(encoder), config, table),
        more=partial(small_views, number),
        has_encoder_features=False,
        steps=2,
    )


CASES = {
    "essl_simclr": essl(simclr),
    "essl_simclr_joint_statistics": essl(simclr, separate_statistics=False),
    "essl_vicreg": essl(vicreg, number=2, weight=8.0),
    "essl_vicreg_relative": essl(vicreg, number=2, table=C4_RELATIVE_TABLE),
}
