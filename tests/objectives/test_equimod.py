"""Both forms of EquiMod against independent NumPy formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.equimod import EquiMod, EquiModConfig

SMALL = EquiModConfig(projector=(24, 8), action_width=6)


class PixelEncoder(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    return views, torch.randn(size, 4, generator=generator, dtype=torch.float64)


def numpy_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    z = np.concatenate([first, second])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    rows = np.arange(len(z))
    positives = logits[rows, (rows + len(first)) % len(z)]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - positives))


def numpy_vicreg(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Invariance, variance and covariance."""
    variances, covariances = [], []
    for z in (first, second):
        variances.append(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean())
        covariance = np.cov(z, rowvar=False)
        covariances.append(((covariance - np.diag(np.diag(covariance))) ** 2).sum() / z.shape[1])
    return float(((first - second) ** 2).mean()), float(np.mean(variances)), float(np.sum(covariances))


def projected(objective: EquiMod, part: str, views: Tensor) -> list[np.ndarray]:
    """The projections of both views, [B, E] each."""
    pixels, head = views.flatten(2), objective.projectors[part]
    with torch.no_grad():
        if objective.config.separate_batch_norm:
            return [head(pixels[:, 0]).numpy(), head(pixels[:, 1]).numpy()]
        return [z.numpy() for z in head(pixels.flatten(0, 1)).unflatten(0, (len(views), 2)).unbind(1)]


def numpy_batch_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def numpy_prediction(objective: EquiMod, embedding: np.ndarray, actions: np.ndarray) -> np.ndarray:
    arrays = [parameter.detach().numpy() for parameter in objective.predictor.parameters()]
    if objective.config.predictor == "hypernetwork":
        return np.einsum("bk,kij,bj->bi", actions, arrays[0], embedding)
    project, weight, *bias = arrays
    x = np.concatenate([embedding, numpy_batch_norm(actions @ project.T)], axis=1) @ weight.T
    if objective.config.form == "vicreg":
        return x + bias[0]
    assert not bias
    return numpy_batch_norm(x)


@pytest.mark.parametrize("separate_batch_norm", [False, True])
@pytest.mark.parametrize("predictor", ["linear", "hypernetwork"])
def test_simclr_form_equals_numpy(predictor: str, separate_batch_norm: bool):
    torch.manual_seed(0)
    config = replace(SMALL, predictor=predictor, equi_weight=0.3, separate_batch_norm=separate_batch_norm)
    objective = EquiMod(PixelEncoder(), config).double()
    views, actions = random_batch(10)
    contrastive = numpy_nt_xent(*projected(objective, "inv", views), 0.1)
    source, target = projected(objective, "equi", views)
    equivariance = numpy_nt_xent(numpy_prediction(objective, source, actions.numpy()), target, 0.1)

    output = objective(views, actions)
    assert set(output.terms) == {"contrastive", "equivariance", "std_inv", "std_equi"}
    assert output.terms["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert output.terms["equivariance"].item() == pytest.approx(equivariance, rel=1e-5)
    assert output.loss.item() == pytest.approx(contrastive + 0.3 * equivariance, rel=1e-10)


@pytest.mark.parametrize("separate_batch_norm", [False, True])
@pytest.mark.parametrize("predictor", ["linear", "hypernetwork"])
def test_vicreg_form_equals_numpy(predictor: str, separate_batch_norm: bool):
    torch.manual_seed(0)
    config = replace(
        SMALL, form="vicreg", predictor=predictor, equi_weight=0.3, separate_batch_norm=separate_batch_norm,
        inv_weight=7.0, variance_weight=5.0, covariance_weight=2.0,
    )  # fmt: skip
    objective = EquiMod(PixelEncoder(), config).double()
    views, actions = random_batch(10)
    invariant = numpy_vicreg(*projected(objective, "inv", views))
    source, target = projected(objective, "equi", views)
    prediction = numpy_prediction(objective, source, actions.numpy())
    # The prediction is compared with its target, but the two projected views are what is kept apart.
    equivariant = [((prediction - target) ** 2).mean(), *numpy_vicreg(source, target)[1:]]

    output = objective(views, actions)
    names = ["invariance", "variance", "covariance", "equivariance", "variance_equi", "covariance_equi"]
    assert set(output.terms) == {*names, "std_inv", "std_equi"}
    for name, value in zip(names, [*invariant, *equivariant], strict=True):
        assert value > 0
        assert output.terms[name].item() == pytest.approx(value, rel=1e-5), name
    expected = np.dot([7, 5, 2], invariant) + 0.3 * np.dot([7, 5, 2], equivariant)
    assert output.loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("form", ["simclr", "vicreg"])
def test_each_projector_has_its_term(form: str):
    """Without the equivariant part, neither its projector nor the predictor gets a gradient, and the reverse holds."""
    objective = EquiMod(PixelEncoder(), replace(SMALL, form=form, equi_weight=0.0)).double()
    objective(*random_batch(10)).loss.backward()
    for name, parameter in objective.named_parameters():
        trained = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert trained == name.startswith("projectors.inv") or name.endswith("bias"), name


def test_both_views_receive_gradient_from_the_equivariant_part():
    objective = EquiMod(PixelEncoder(), replace(SMALL, equi_weight=1e6)).double()
    views, actions = random_batch(10)
    views.requires_grad_()
    objective(views, actions).loss.backward()
    assert (views.grad.abs().sum(dim=(2, 3, 4)) > 1).all()


def test_the_vicreg_form_has_no_batch_norm_on_the_embedding():
    last_layers = {
        form: type(EquiMod(PixelEncoder(), replace(SMALL, form=form)).projectors["equi"].layers[-1])
        for form in ("simclr", "vicreg")
    }
    assert last_layers == {"simclr": nn.BatchNorm1d, "vicreg": nn.Linear}


def test_defaults_are_seq_jepas():
    config = EquiModConfig()
    assert (config.temperature, config.equi_weight, config.projector) == (0.1, 1.0, (1024, 1024, 128))
    assert config.action_width == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "byol"}, "form is 'byol': choose 'simclr' or 'vicreg'"),
        ({"predictor": "mlp"}, "predictor is 'mlp': choose 'linear' or 'hypernetwork'"),
        ({"temperature": 0.0}, "the temperature is 0.0"),
        ({"projector": (), "form": "vicreg"}, "the head's widths are"),
        ({"predictor": "hypernetwork", "action_dim": 0}, "action_dim is 0"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        EquiMod(PixelEncoder(), replace(SMALL, **changes))
