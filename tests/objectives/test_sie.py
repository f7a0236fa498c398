"""SIE against its formulas in all its parts, and its behaviour."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ssl_equi.objectives.sie import SIE, SIEConfig
from tests.fakes import PixelEncoder, random_pairs
from tests.references.comparison import SmallEncoder, disagreements
from tests.references.equivariant import sie
from tests.references.formulas import covariances
from tests.references.table import APART, JOINT, VICREG_HEAD, reference
from tests.references.table import SIE as WEIGHTS

SMALL = SIEConfig(projector=(24, 24, 24))


@pytest.mark.parametrize(
    ("parts", "names"), [("split", ("inv", "equi")), ("inv_only", ("inv", "equi")), ("equi_only", ("equi",))]
)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("action_dim", [4, 6])
def test_it_agrees_with_the_formulas(parts: str, names: tuple[str, ...], separate: bool, action_dim: int):
    torch.manual_seed(1)
    objective = SIE(SmallEncoder(), replace(SMALL, parts=parts, separate_batch_norm=separate, action_dim=action_dim))
    expected = reference(
        sie,
        actions=(action_dim,),
        objects=20,
        calls=APART if separate else JOINT,
        projectors=VICREG_HEAD,
        weights=WEIGHTS,
        parts=names,
        predicted=parts != "inv_only",
    )
    assert not disagreements(objective, expected)


@pytest.mark.parametrize("name", ["invariance", "equivariance", "variance", "variance_prediction", "covariance"])
def test_every_term_counts_on_a_random_batch(name: str):
    objective = SIE(PixelEncoder(), SMALL)
    with torch.no_grad():
        objective.predictor.matrices.mul_(0.1)  # else the hinge of the prediction's variance is inactive
    assert objective(*random_pairs(20)).terms[name] > 0.01


def test_variance_on_prediction_can_be_left_out():
    torch.manual_seed(1)
    objective = SIE(PixelEncoder(), SMALL)
    with torch.no_grad():
        objective.predictor.matrices.mul_(0.1)
    without = SIE(PixelEncoder(), replace(SMALL, variance_on_prediction=False))
    without.load_state_dict(objective.state_dict())
    batch = random_pairs(20)
    full, reduced = objective(*batch), without(*batch)
    assert full.terms["variance_prediction"] > 0.1
    assert full.loss.item() - reduced.loss.item() == pytest.approx(
        5 * full.terms["variance_prediction"].item(), rel=1e-4
    )


def test_recorded_loss():
    objective = SIE(PixelEncoder(), SMALL).double()
    with torch.no_grad():
        for parameter in objective.parameters():
            grid = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_(0.3 * torch.sin(0.9 * grid + parameter.numel()) + 0.1)
    views = torch.sin(1.3 * torch.arange(8 * 24, dtype=torch.float64) ** 1.1).reshape(8, 2, 3, 2, 2)
    actions = nn.functional.normalize(torch.cos(torch.arange(32, dtype=torch.float64)).reshape(8, 4), dim=1)
    assert objective(views, actions).loss.item() == pytest.approx(13.3060650678, rel=1e-9)


def test_parameter_counts_of_the_paper():
    encoder = PixelEncoder(512)

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        split = SIE(encoder)
        color = SIE(encoder, SIEConfig(action_dim=6))
        whole = SIE(encoder, SIEConfig(parts="equi_only"))
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
    assert SIE(PixelEncoder(), SMALL).parts == {"all": slice(0, 12), "inv": slice(0, 6), "equi": slice(6, 12)}
    uneven = SIE(PixelEncoder(), replace(SMALL, equi_dim=4))
    assert uneven.parts == {"all": slice(0, 12), "inv": slice(0, 8), "equi": slice(8, 12)}
    assert uneven.projectors["equi"][0].in_features == 4
    assert uneven.projectors["equi"][-1].out_features == 8
    assert SIE(PixelEncoder(), replace(SMALL, parts="equi_only")).parts == {"all": slice(0, 12)}


def test_only_the_named_columns_reach_each_projector():
    objective = SIE(PixelEncoder(), SMALL).eval()
    views, actions = random_pairs(6)
    changed = views.clone()
    changed.flatten(2)[:, :, objective.parts["equi"]] += 1
    before, after = objective(views, actions), objective(changed, actions)
    assert torch.equal(before.terms["invariance"], after.terms["invariance"])
    assert not torch.equal(before.terms["equivariance"], after.terms["equivariance"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_computed_in_float32_under_autocast(dtype: torch.dtype):
    """Embeddings with a standard deviation of about 1e3, whose covariances overflow float16."""
    torch.manual_seed(0)
    objective = SIE(PixelEncoder(), SMALL)
    with torch.no_grad():
        for head in objective.projectors.values():
            head[-1].weight.mul_(3e3)
        objective.predictor.matrices.mul_(0.1)
    seen: dict[str, Tensor] = {}
    for part, head in objective.projectors.items():
        head.register_forward_hook(lambda _module, _inputs, out, part=part: seen.update({part: out.detach()}))
    with torch.autocast("cpu", dtype=dtype):
        output = objective(*random_pairs(32))
    output.loss.backward()

    assert seen["inv"].dtype == dtype
    z = torch.cat([seen["inv"], seen["equi"]], dim=1).double().unflatten(0, (32, 2))
    assert z.std() > 500
    expected = covariances(z[:, 0]) + covariances(z[:, 1])
    assert output.terms["covariance"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert output.terms["std_inv"].item() == pytest.approx(z[..., :12].std(0).mean().item(), rel=1e-4)
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)
    assert output.features.dtype == torch.float32


def test_collapsed_features_are_reported_and_give_finite_gradients():
    class ConstantEncoder(PixelEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(12))

        def forward(self, images: Tensor) -> Tensor:
            return self.value.expand(len(images), 12)

    objective = SIE(ConstantEncoder(), SMALL)
    output = objective(*random_pairs(8))
    output.loss.backward()
    assert output.terms["variance"].item() == pytest.approx(0.99, abs=1e-4)
    assert output.terms["std_inv"].item() == pytest.approx(0.01, abs=1e-4)
    assert output.terms["std_equi"].item() == pytest.approx(0.01, abs=1e-4)
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("columns", "words"),
    [(6, "'rotation_color'.*'rotation'"), (7, "actions='pose_base' or 'pose_object'"), (5, "of your own")],
)
def test_actions_of_another_width_are_refused_by_name(columns: int, words: str):
    with pytest.raises(ValueError, match=f"{columns} columns but action_dim is 4: .*{words}"):
        SIE(PixelEncoder(), SMALL)(*random_pairs(4, columns))


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
        SIE(PixelEncoder(), replace(SMALL, **changes))
