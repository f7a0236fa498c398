"""seq-JEPA trains as the reference of its whole training does, step after step, from the same weights on."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.objectives.seq_jepa import SeqJEPA
from tests.fakes import ConvolutionEncoder, load_recipe
from tests.references import seq_jepa as reference
from tests.references.comparison import TOLERANCE, largest_difference, package_losses, reference_training
from tests.references.networks import Batch
from tests.references.training import Training

Batches = Iterator[Batch]

SMALL = {"action_width": 8, "feedforward_width": 40, "predictor_hidden_width": 24}
# The package's names of modules, and the reference's.
NAMES = {
    "action_embedding.projection": "action_embedding",
    "action_embedding.norm": "action_norm",
    "aggregator.token": "token",
    "aggregator.transformer.layers": "layers",
    "aggregator.transformer.norm": "last_norm",
    "predictor.layers": "predictor",
    "self_attn.out_proj": "output",
    "linear1": "widen",
    "linear2": "narrow",
    "norm1": "norm_of_attention",
    "norm2": "norm_of_feedforward",
}


def embedded(steps: int, **of_objective: Any) -> Any:
    """The recipe's configuration of the embedded set, for one epoch of so many steps, warmed up as in the paper."""
    config = load_recipe("seq_jepa").CONFIGS["embedded"]()
    objective = replace(config.objective, **of_objective)
    return replace(config, objective=objective, epochs=1, steps=steps, warmup_steps=steps // 4, warmup_from=1e-5)


def random_batches(views: int, side: int = 6, objects: int = 8) -> Batches:
    """Images of numbers from a normal distribution, and rotations between them; the same at every call."""
    generator = torch.Generator().manual_seed(1)
    while True:
        images = torch.randn(objects, views, 3, side, side, generator=generator, dtype=torch.float64)
        actions = torch.randn(objects, views - 1, 4, generator=generator, dtype=torch.float64)
        yield Batch(images, actions / actions.norm(dim=-1, keepdim=True))


def seq_jepa(config: Any, make_encoder: Callable[[], nn.Module] = ConvolutionEncoder) -> SeqJEPA:
    torch.manual_seed(0)
    return SeqJEPA(make_encoder(), config.objective).double()


def referred(objective: SeqJEPA) -> reference.SeqJEPA:
    """The reference with the objective's weights."""
    config = objective.config
    model = reference.SeqJEPA(
        deepcopy(objective.encoder),
        objective.num_features,
        config.action_dim,
        config.action_width,
        config.layers,
        config.heads,
        config.feedforward_width,
        config.predictor_hidden_width,
        config.conditioning,
    ).double()
    missing, unexpected = model.load_state_dict(renamed(objective), strict=False)
    assert not unexpected
    assert all(config.conditioning == "none" and name.startswith("action_") for name in missing)
    return model


def renamed(objective: SeqJEPA) -> dict[str, Tensor]:
    """The objective's weights and running statistics by the reference's names."""
    weights: dict[str, Tensor] = {}
    for name, weight in objective.state_dict().items():
        for ours, theirs in NAMES.items() if "encoder." not in name else ():
            name = name.replace(ours, theirs)
        layer, in_projection, kind = name.partition("self_attn.in_proj_")
        if in_projection:
            thirds = zip(("query", "key", "value"), weight.chunk(3), strict=True)
            weights |= {f"{layer}{part}.{kind}": third for part, third in thirds}
        else:
            weights[name] = weight
    return weights


def difference(objective: SeqJEPA, config: Any, batches: Batches) -> float:
    """Of the losses of all steps, and of the weights and running statistics after the last."""
    model, batches = referred(objective), list(islice(batches, config.steps))
    theirs = list(reference_losses(model, reference_training(config), batches))
    ours = list(package_losses(objective, config, batches))
    weights = model.state_dict()
    return largest_difference(ours, theirs, [(weight, weights[name]) for name, weight in renamed(objective).items()])


def reference_losses(model: reference.SeqJEPA, training: Training, batches: Iterable[Batch]) -> Iterator[float]:
    """The target encoder follows; its running statistics are of what it sees itself."""
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    followed = list(zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True))
    return training.losses(lambda batch: model(batch.views, batch.actions), trained, batches, followed)


@pytest.mark.parametrize("observed_views", [1, 3])
@pytest.mark.parametrize("conditioning", ["both", "none", "aggregator", "predictor"])
def test_twenty_steps_agree(conditioning: str, observed_views: int) -> None:
    config = embedded(steps=20, conditioning=conditioning, **SMALL)
    assert difference(seq_jepa(config), config, random_batches(observed_views + 1)) < TOLERANCE


# Not more: the package's own weights, changed by 1e-15 of their size, give losses that are off by 1e-15 at step 100,
# and by 1e-3 at step 200.
@pytest.mark.slow
def test_a_hundred_steps_agree() -> None:
    config = embedded(steps=100, **SMALL)
    objective = seq_jepa(config, lambda: create_encoder("strided_cnn_tiny", 32))
    assert difference(objective, config, random_batches(4, side=32)) < TOLERANCE


@pytest.mark.parametrize(("option", "value"), [("momentum", 0.995), ("weight_decay", 0.0), ("last_step", 20)])
def test_another_training_is_noticed(option: str, value: float) -> None:
    config = embedded(steps=20, **SMALL)
    objective = seq_jepa(config)
    other = replace(reference_training(config), **{option: value})
    *_, theirs = reference_losses(referred(objective), other, islice(random_batches(4), config.steps))
    *_, ours = package_losses(objective, config, islice(random_batches(4), config.steps))
    assert abs(ours - theirs) > 100 * TOLERANCE
