"""SIE's loss against an independent NumPy computation through the whole projector, and its behaviour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.sie import SIE, SIEConfig

SMALL = SIEConfig(projector=(24, 24, 24))


class FlattenEncoder(nn.Module):
    """The features are the pixels: 12 for a 2 x 2 RGB image."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class ToyEncoder(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def random_batch(size: int, action_dim: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    views = torch.randn(size, 2, 3, 2, 2, generator=generator, dtype=dtype)
    actions = torch.randn(size, action_dim, generator=generator, dtype=dtype)
    return views, nn.functional.normalize(actions, dim=1)


def numpy_projector(head: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """Linear-BN-ReLU twice and a last linear layer, in training mode."""
    arrays = [parameter.detach().double().numpy() for parameter in head.parameters()]
    for weight, bias, gamma, beta in (arrays[:4], arrays[4:8]):
        x = x @ weight.T + bias
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * gamma + beta
        x = np.maximum(x, 0)
    return x @ arrays[8].T


def numpy_variance(z: np.ndarray) -> float:
    return float(np.mean(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4))))


def numpy_covariance(z: np.ndarray) -> float:
    covariance = np.cov(z, rowvar=False)
    return float(((covariance**2).sum() - (np.diag(covariance) ** 2).sum()) / z.shape[1])


def numpy_terms(objective: SIE, views: Tensor, actions: Tensor) -> dict[str, float]:
    """Every term of one batch, with the projectors called on both views together or on each."""
    features = views.double().numpy().reshape(len(views), 2, -1)
    z: dict[str, np.ndarray] = {}
    for part, head in objective.projectors.items():
        columns = objective.parts.get(part, slice(None))
        x = features[:, :, columns]
        if objective.config.separate_batch_norm:
            z[part] = np.stack([numpy_projector(head, x[:, 0]), numpy_projector(head, x[:, 1])], axis=1)
        else:
            z[part] = numpy_projector(head, x.reshape(2 * len(x), -1)).reshape(len(x), 2, -1)
    together = np.concatenate(list(z.values()), axis=2)
    terms = {
        "variance": (numpy_variance(together[:, 0]) + numpy_variance(together[:, 1])) / 2,
        "covariance": numpy_covariance(together[:, 0]) + numpy_covariance(together[:, 1]),
    }
    if "inv" in z:
        terms["invariance"] = float(np.mean((z["inv"][:, 0] - z["inv"][:, 1]) ** 2))
    if objective.predictor is not None:
        matrices = objective.predictor.matrices.detach().double().numpy()
        prediction = np.einsum("bk,kij,bj->bi", actions.double().numpy(), matrices, z["equi"][:, 0])
        terms["equivariance"] = float(np.mean((prediction - z["equi"][:, 1]) ** 2))
        terms["variance_prediction"] = numpy_variance(prediction)
    return terms


@pytest.mark.parametrize("parts", ["split", "inv_only", "equi_only"])
@pytest.mark.parametrize("separate_batch_norm", [False, True])
@pytest.mark.parametrize("action_dim", [4, 6])
def test_terms_and_loss_equal_numpy(parts: str, separate_batch_norm: bool, action_dim: int):
    torch.manual_seed(1)
    config = replace(SMALL, parts=parts, separate_batch_norm=separate_batch_norm, action_dim=action_dim)
    objective = SIE(FlattenEncoder(), config).double()
    if objective.predictor is not None:
        with torch.no_grad():
            objective.predictor.matrices.mul_(0.1)  # else the hinge of the prediction's variance is inactive
    views, actions = random_batch(20, action_dim, torch.float64)
    output = objective(views, actions)
    expected = numpy_terms(objective, views, actions)

    monitors = {name for name in output.terms if name.startswith("std_")}
    assert set(output.terms) - monitors == set(expected)
    for name, value in expected.items():
        assert value > 0
        assert output.terms[name].item() == pytest.approx(value, rel=1e-6), name
    expected_loss = (
        10 * expected.get("invariance", 0)
        + 4.5 * expected.get("equivariance", 0)
        + 10 * expected["variance"]
        + 10 * expected.get("variance_prediction", 0) / 2
        + expected["covariance"]
    )
    assert output.loss.item() == pytest.approx(expected_loss, rel=1e-12)


def test_variance_on_prediction_can_be_left_out():
    torch.manual_seed(1)
    objective = SIE(FlattenEncoder(), SMALL)
    with torch.no_grad():
        objective.predictor.matrices.mul_(0.1)
    without = SIE(FlattenEncoder(), replace(SMALL, variance_on_prediction=False))
    without.load_state_dict(objective.state_dict())
    batch = random_batch(20)
    full, reduced = objective(*batch), without(*batch)
    assert full.terms["variance_prediction"] > 0.1
    assert full.loss.item() - reduced.loss.item() == pytest.approx(
        5 * full.terms["variance_prediction"].item(), rel=1e-4
    )


def test_recorded_loss():
    objective = SIE(FlattenEncoder(), SMALL).double()
    with torch.no_grad():
        for parameter in objective.parameters():
            grid = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(0.3 * torch.sin(0.9 * grid + parameter.numel()) + 0.1)
    views = torch.sin(1.3 * torch.arange(8 * 24, dtype=torch.float64) ** 1.1).reshape(8, 2, 3, 2, 2)
    actions = nn.functional.normalize(torch.cos(torch.arange(32, dtype=torch.float64)).reshape(8, 4), dim=1)
    assert objective(views, actions).loss.item() == pytest.approx(13.3060650678, rel=1e-9)


def test_parameter_counts_of_the_paper():
    class ResNet18Width(FlattenEncoder):
        num_features = 512

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        split = SIE(ResNet18Width())
        color = SIE(ResNet18Width(), SIEConfig(action_dim=6))
        whole = SIE(ResNet18Width(), SIEConfig(parts="equi_only"))
    assert [count(split.projectors["inv"]), count(split.projectors["equi"])] == [2_365_440, 2_365_440]
    assert count(split.predictor) == 4_194_304
    assert count(color.predictor) == 6_291_456
    assert count(whole.predictor) == 16_777_216
    assert list(whole.projectors) == ["equi"]


def test_default_weights_are_the_papers():
    config = SIEConfig()
    assert (config.inv_weight, config.equi_weight) == (10, 4.5)
    assert (config.variance_weight, config.covariance_weight) == (10, 1)


def test_parts_name_the_feature_columns():
    assert SIE(FlattenEncoder(), SMALL).parts == {"all": slice(0, 12), "inv": slice(0, 6), "equi": slice(6, 12)}
    uneven = SIE(FlattenEncoder(), replace(SMALL, equi_dim=4))
    assert uneven.parts == {"all": slice(0, 12), "inv": slice(0, 8), "equi": slice(8, 12)}
    assert uneven.projectors["equi"][0].in_features == 4
    assert uneven.projectors["equi"][-1].out_features == 8
    assert SIE(FlattenEncoder(), replace(SMALL, parts="equi_only")).parts == {"all": slice(0, 12)}


def test_only_the_named_columns_reach_each_projector():
    objective = SIE(FlattenEncoder(), SMALL).eval()
    views, actions = random_batch(6)
    changed = views.clone()
    changed.flatten(2)[:, :, objective.parts["equi"]] += 1
    before, after = objective(views, actions), objective(changed, actions)
    assert torch.equal(before.terms["invariance"], after.terms["invariance"])
    assert not torch.equal(before.terms["equivariance"], after.terms["equivariance"])


def test_features_are_the_encoders_in_view_order_and_detached():
    views, actions = random_batch(6)
    for separate in (False, True):
        output = SIE(FlattenEncoder(), replace(SMALL, separate_batch_norm=separate))(views, actions)
        assert torch.equal(output.features, views.flatten(2))
        assert not output.features.requires_grad
        assert not any(term.requires_grad for term in output.terms.values())
        assert all(term.shape == () and term.dtype == torch.float32 for term in output.terms.values())


def test_encoder_is_called_once_or_once_a_view():
    calls: list[int] = []

    class CountingEncoder(FlattenEncoder):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(len(images))
            return super().forward(images)

    batch = random_batch(6)
    SIE(CountingEncoder(), SMALL)(*batch)
    SIE(CountingEncoder(), replace(SMALL, separate_batch_norm=True))(*batch)
    assert calls == [12, 6, 6]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_computed_in_float32_under_autocast(dtype: torch.dtype):
    """Embeddings with a standard deviation of about 1e3, whose covariances overflow float16."""
    torch.manual_seed(0)
    objective = SIE(FlattenEncoder(), SMALL)
    with torch.no_grad():
        for head in objective.projectors.values():
            head[-1].weight.mul_(3e3)
        objective.predictor.matrices.mul_(0.1)
    seen: dict[str, Tensor] = {}
    for part, head in objective.projectors.items():
        head.register_forward_hook(lambda _module, _inputs, out, part=part: seen.update({part: out.detach()}))
    with torch.autocast("cpu", dtype=dtype):
        output = objective(*random_batch(32))
    output.loss.backward()

    assert seen["inv"].dtype == dtype
    z = torch.cat([seen["inv"], seen["equi"]], dim=1).double().numpy().reshape(32, 2, -1)
    assert z.std() > 500
    expected = numpy_covariance(z[:, 0]) + numpy_covariance(z[:, 1])
    assert output.terms["covariance"].item() == pytest.approx(expected, rel=1e-4)
    assert output.terms["std_inv"].item() == pytest.approx(z[..., :12].std(0, ddof=1).mean(), rel=1e-4)
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)
    assert output.features.dtype == torch.float32


def test_collapsed_features_are_reported_and_give_finite_gradients():
    class ConstantEncoder(FlattenEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(12))

        def forward(self, images: Tensor) -> Tensor:
            return self.value.expand(len(images), 12)

    objective = SIE(ConstantEncoder(), SMALL)
    output = objective(*random_batch(8))
    output.loss.backward()
    assert output.terms["variance"].item() == pytest.approx(0.99, abs=1e-4)
    assert output.terms["std_inv"].item() == pytest.approx(0.01, abs=1e-4)
    assert output.terms["std_equi"].item() == pytest.approx(0.01, abs=1e-4)
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.parameters())


@pytest.mark.parametrize("parts", ["split", "inv_only", "equi_only"])
@pytest.mark.parametrize("predictor", ["hypernetwork_linear", "hypernetwork_deep", "mlp"])
def test_loss_falls_and_every_parameter_learns(parts: str, predictor: str):
    torch.manual_seed(0)
    config = replace(SMALL, parts=parts, predictor=predictor, hypernetwork_bias=True, predicted_bias=True)
    objective = SIE(ToyEncoder(), config)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    batch = random_batch(32)
    losses = []
    for _ in range(20):
        loss = objective(*batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_target_branch_receives_gradient():
    """SIE has no stop-gradient: view 2 alone moves the encoder."""
    objective = SIE(FlattenEncoder(), replace(SMALL, inv_weight=0.0, variance_weight=0.0, covariance_weight=0.0))
    views, actions = random_batch(8)
    views.requires_grad_()
    objective(views, actions).loss.backward()
    assert views.grad[:, 1].abs().sum() > 0


def test_state_dict_round_trip_gives_the_same_loss():
    torch.manual_seed(0)
    batch = random_batch(8)
    first, second = SIE(ToyEncoder(), SMALL), SIE(ToyEncoder(), SMALL)
    assert first(*batch).loss != second(*batch).loss
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(*batch).loss, second(*batch).loss)


@pytest.mark.parametrize(
    ("views_shape", "actions_shape", "words"),
    [
        ((4, 3, 2, 2), (4, 4), ["(4, 3, 2, 2)", "[B, 2, C, H, W]"]),
        ((4, 3, 3, 2, 2), (4, 4), ["(4, 3, 3, 2, 2)", "2 views"]),
        ((1, 2, 3, 2, 2), (1, 4), ["global batch of at least 2"]),
        ((4, 2, 3, 2, 2), (3, 4), ["(3, 4)", "[4, 4]"]),
        ((4, 2, 3, 2, 2), (4, 6), ["6 columns", "action_dim is 4", "'rotation_color'", "'rotation'"]),
        ((4, 2, 3, 2, 2), (4, 7), ["7 columns", "actions='pose_base' or 'pose_object'"]),
        ((4, 2, 3, 2, 2), (4, 5), ["5 columns", "action_dim is 4", "of your own"]),
    ],
)
def test_wrong_shapes_are_refused_with_the_cure(views_shape: tuple, actions_shape: tuple, words: list[str]):
    objective = SIE(FlattenEncoder(), SMALL)
    with pytest.raises(ValueError, match=r".") as error:
        objective(torch.zeros(views_shape), torch.zeros(actions_shape))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_non_finite_actions_and_integer_views_are_refused():
    objective = SIE(FlattenEncoder(), SMALL)
    views, actions = random_batch(4)
    actions[2, 1] = float("nan")
    with pytest.raises(ValueError, match="row 2"):
        objective(views, actions)
    with pytest.raises(ValueError, match="uint8"):
        objective(views.byte(), random_batch(4)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equi_dim": 0}, "equi_dim is 0 but the encoder has 12 features"),
        ({"equi_dim": 12}, "equi_dim is 12 but the encoder has 12 features"),
        ({"equi_dim": 6, "parts": "equi_only"}, "leave equi_dim unset"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"parts": "both"}, "parts is 'both'"),
        ({"predictor": "linear"}, "predictor is 'linear'"),
        ({"projector": (24, 0)}, r"projector is \(24, 0\)"),
        ({"projector": (1, 1)}, r"projector is \(1, 1\)"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SIE(FlattenEncoder(), replace(SMALL, **changes))


def test_an_encoder_without_num_features_is_refused():
    with pytest.raises(ValueError, match="num_features"):
        SIE(nn.Flatten(), SMALL)
