"""SIE and its variants."""

import torch

from ssl_equi.objectives.sie import SIE, SIEConfig
from tests.objectives.case import Case, MakeEncoder


def sie(**changes: object) -> Case:
    config = SIEConfig(projector=(24, 24, 24), **changes)

    def make(encoder: MakeEncoder) -> SIE:
        objective = SIE(encoder(), config)
        if objective.predictor is not None:
            with torch.no_grad():  # so that the hinge on the prediction's variance is active
                for name, parameter in objective.predictor.named_parameters():
                    if not name.startswith("hidden"):
                        parameter.mul_(0.2)
                    elif name.endswith("bias"):  # or four narrow ReLUs may be shut for all actions
                        parameter.fill_(0.5)
        return objective

    return Case(
        make,
        actions=(config.action_dim,),
        has_encoder_features=False,
        ignores_actions=config.parts == "inv_only",
        in_bfloat16=config.predictor != "hypernetwork_deep",
    )


CASES = {
    "sie_split": sie(),
    "sie_split_separate_batch_norm": sie(separate_batch_norm=True),
    "sie_inv_only": sie(parts="inv_only"),
    "sie_equi_only": sie(parts="equi_only", action_dim=6),
    "sie_deep": sie(predictor="hypernetwork_deep", hypernetwork_bias=True, predicted_bias=True),
    "sie_mlp": sie(predictor="mlp", variance_on_prediction=False),
}
