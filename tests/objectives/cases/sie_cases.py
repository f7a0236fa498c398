"""SIE and its variants."""

import torch
from two_process_cases import Tensors, make_encoder, random_pairs, train_steps

from ssl_equi.objectives.sie import SIE, SIEConfig


def sie_step(dtype: torch.dtype, **changes: object) -> Tensors:
    config = SIEConfig(projector=(24, 24, 24), **changes)

    def make() -> SIE:
        objective = SIE(make_encoder(), config)
        if objective.predictor is not None:
            with torch.no_grad():  # so that the hinge on the prediction's variance is active
                for parameter in objective.predictor.parameters():
                    parameter.mul_(0.2)
        return objective

    return train_steps(make, dtype, lambda dtype: random_pairs(dtype, config.action_dim))


CASES = {
    "sie_split": lambda dtype: sie_step(dtype),
    "sie_split_separate_batch_norm": lambda dtype: sie_step(dtype, separate_batch_norm=True),
    "sie_inv_only": lambda dtype: sie_step(dtype, parts="inv_only"),
    "sie_equi_only": lambda dtype: sie_step(dtype, parts="equi_only", action_dim=6),
    "sie_deep": lambda dtype: sie_step(
        dtype, predictor="hypernetwork_deep", hypernetwork_bias=True, predicted_bias=True
    ),
    "sie_mlp": lambda dtype: sie_step(dtype, predictor="mlp", variance_on_prediction=False),
}
