"""SIE's ResNet and predictor, found by order and shapes under names that no file has to have."""

import re
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, LayoutError
from ssl_equi.export.sie_files import feature_parts, import_sie_predictor
from tests.export.checkpoints import EXTRA, State, assert_same_features, below, changed, run
from tests.fakes import with_other_values

# ---------------------------------------------------------------- the ResNet


def sie_state(encoder: nn.Module, shortcut: str = "last") -> State:
    """The encoder's tensors in the order in which layers are made, under names that say nothing of torchvision's."""
    state = encoder.state_dict()
    blocks: dict[str, list[str]] = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in state):
        blocks.setdefault(re.match(r"layer\d\.\d+|", layer)[0], []).append(layer)
    ordered = []
    for block in blocks.values():
        first = [layer for layer in block if "downsample" in layer]
        others = [layer for layer in block if "downsample" not in layer]
        ordered += first + others if shortcut == "first" else others + first
    return {
        f"trunk.unit{number}.{name.rpartition('.')[2]}": state[name]
        for number, layer in enumerate(ordered)
        for name in state
        if name.rpartition(".")[0] == layer
    }


def sie_heads(action_dim: int = 4, dim: int = 6) -> State:
    state = {}
    for name in ("projector_inv", "projector_equi"):
        in_width = 256
        for layer in (0, 3):
            state[f"{name}.{layer}.weight"] = torch.randn(dim, in_width) / 16
            state[f"{name}.{layer}.bias"] = torch.randn(dim)
            norm = f"{name}.{layer + 1}"
            state |= {f"{norm}.weight": torch.rand(dim), f"{norm}.bias": torch.randn(dim)}
            state |= {f"{norm}.running_mean": torch.randn(dim), f"{norm}.running_var": torch.rand(dim) + 0.5}
            state |= {f"{norm}.num_batches_tracked": torch.tensor(3)}
            in_width = dim
        state[f"{name}.6.weight"] = torch.randn(dim, dim)
    state["predictor.hypernet.weight"] = torch.randn(dim * dim, action_dim)
    return state | {"online_classifier.weight": torch.zeros(55, 512)}


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return with_other_values(create_encoder("sie_resnet18", 64))


@pytest.mark.parametrize(("layout", "shortcut"), [("sie", "first"), ("equicaps", "last"), ("capsie", "last")])
def test_sies_resnet_is_recognised_by_order_and_shapes(encoder: nn.Module, layout: str, shortcut: str) -> None:
    state = below("module.", sie_state(encoder, shortcut) | sie_heads())
    imported = run({"epoch": 3, "model": state, "optimizer": {"state": {}}}, layout)
    assert_same_features(imported.module, encoder)
    assert (imported.architecture, imported.data, imported.image_size) == ("sie_resnet18", "3diebench", 256)
    assert imported.card(layout, "there", {}).std_rgb == (0.1030, 0.0999, 0.0969)
    assert set(imported.left_out) == {"projectors", "predictors", "probes"}


@pytest.mark.parametrize("name", ["sie_resnet34", "sie_resnet50"])
def test_deeper_ones_too_and_our_own_names_need_no_order(name: str) -> None:
    """In the first block of a ResNet-50, the shortcut has the shape of the last convolution."""
    deeper = with_other_values(create_encoder(name, 64))
    own = deeper.state_dict()
    for state in (below("backbone.", dict(sorted(own.items()))), sie_state(deeper, "first"), sie_state(deeper)):
        imported = run(state, "sie")
        placed = imported.module.state_dict()
        assert placed.keys() == own.keys() and all(torch.equal(placed[name], value) for name, value in own.items())
        assert imported.architecture == name and len(imported.notes) == (name == "sie_resnet50")


@pytest.mark.parametrize(
    ("position", "change", "sentence"),
    [
        (0, None, r"no tensor of shape \(64, 3, 7, 7\), the stem of SIE's ResNets"),
        (3, None, r"has shape \(64,\) where SIE's ResNet has the running_mean \(64,\) of a batch norm"),
        (6, torch.zeros(64, 64, 5, 5), r"has shape \(64, 64, 5, 5\) where SIE's ResNet has \(64, 64, 1, 1\) or \(64,"),
        (-2, None, r"has shape \(\) where SIE's ResNet has the running_var \(512,\) of a batch norm"),
    ],
)
def test_orders_that_do_not_fit_are_named(
    encoder: nn.Module, position: int, change: Tensor | None, sentence: str
) -> None:
    state = sie_state(encoder)
    with pytest.raises(LayoutError, match=sentence):
        run(changed(state, {list(state)[position]: change}), "sie")


def test_what_is_no_resnet_of_sie_is_named(encoder: nn.Module) -> None:
    state = sie_state(encoder)
    for content, sentence in (
        (dict(list(state.items())[:-6]), r"the checkpoint ends where SIE's ResNet has 'layer4.1.conv2.weight'"),
        (torchvision.models.resnet18().state_dict(), r"has shape \(64, 64, 3, 3\) where SIE's ResNet has \(64, 64, 1"),
        (state | {"trunk.extra.weight": EXTRA}, r"'trunk.extra.weight', which is neither"),
        (state | {"mystery.weight": EXTRA}, r"holds 'mystery.weight', .* --leave-out mystery"),
    ):
        with pytest.raises(LayoutError, match=sentence):
            run(content, "sie")
    imported = run(state | {"mystery.weight": EXTRA}, "sie", leave_out=("mystery",))
    assert imported.left_out == {"left out by name": ["mystery.weight"]}


# ---------------------------------------------------------------- projector and predictor


def mlp(state: State, prefix: str, widths: list[int], with_bias: bool, inputs: Tensor) -> Tensor:
    """What linear layers with ReLU between them make of the inputs; their random weights are added to the state."""
    for number, (in_width, out_width) in enumerate(pairwise(widths)):
        weight, bias = torch.randn(out_width, in_width), torch.randn(out_width) * with_bias
        state[f"{prefix}.{2 * number}.weight"] = weight
        if with_bias:
            state[f"{prefix}.{2 * number}.bias"] = bias
        outputs = inputs @ weight.T + bias
        inputs = outputs.clamp(min=0)
    return outputs


@pytest.mark.parametrize(
    ("action_dim", "hidden", "with_bias", "predicts_bias"),
    [
        (4, 0, False, False), (6, 0, False, False), (4, 2, False, False),
        (4, 0, True, False), (4, 0, False, True), (4, 0, True, True), (4, 2, True, True),
    ],
)  # fmt: skip
def test_sies_predictor_multiplies_with_the_matrix_of_the_action(
    action_dim: int, hidden: int, with_bias: bool, predicts_bias: bool
) -> None:
    torch.manual_seed(0)
    state = sie_heads()
    del state["predictor.hypernet.weight"]
    embeddings, actions = torch.randn(5, 6), torch.randn(5, action_dim)
    made = mlp(state, "predictor", [*[action_dim] * (hidden + 1), 36 + 6 * predicts_bias], with_bias, actions)
    expected = torch.einsum("nij,nj->ni", made[:, :36].view(5, 6, 6), embeddings)
    expected = expected + made[:, 36:] if predicts_bias else expected
    with torch.no_grad():
        predicted = import_sie_predictor(state, 512).advance(embeddings, actions)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layers", "action_dim"), [(1, 4), (1, 6), (3, 4)])
def test_sies_predictor_may_be_an_mlp(layers: int, action_dim: int) -> None:
    torch.manual_seed(0)
    state = sie_heads()
    del state["predictor.hypernet.weight"]
    embeddings, actions = torch.randn(5, 6), torch.randn(5, action_dim)
    expected = mlp(state, "predictor", [6 + action_dim, *[6] * layers], True, torch.cat([actions, embeddings], dim=1))
    with torch.no_grad():
        predicted = import_sie_predictor(state, 512).advance(embeddings, actions)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)


def test_the_equivariant_projector_embeds_the_last_features() -> None:
    torch.manual_seed(0)
    state = sie_heads()
    features = torch.randn(5, 512)
    embeddings = features[:, 256:]
    for layer in (0, 3):
        embeddings = embeddings @ state[f"projector_equi.{layer}.weight"].T + state[f"projector_equi.{layer}.bias"]
        norm = f"projector_equi.{layer + 1}"
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        embeddings = ((embeddings - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]).clamp(min=0)
    embeddings = embeddings @ state["projector_equi.6.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(import_sie_predictor(state, 512).embed(features), embeddings, rtol=1e-4, atol=1e-4)


def test_which_features_are_equivariant() -> None:
    halves = {"all": (0, 512), "inv": (0, 256), "equi": (256, 512)}
    assert feature_parts(sie_heads(), 512) == feature_parts({}, 512) == halves
    whole = {"projector.0.weight": torch.zeros(8, 512)}
    assert feature_parts(whole, 512) == {"all": (0, 512)}
    assert import_sie_predictor(whole, 512) is None
    with pytest.raises(CheckpointError, match="--equivariant-features is 128, but the projector in the file reads 256"):
        feature_parts(sie_heads(), 512, 128)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"predictor.hypernet.weight": torch.zeros(36, 5)}, "not a predictor of 6 numbers from 6 numbers and an actio"),
        ({"predictor.hypernet.weight": torch.zeros(6, 10)}, "not an MLP with biases"),
        ({"predictor.hypernet.weight": torch.zeros(35, 4)}, "not a hypernetwork for 6 numbers, which makes 36 or 42"),
        ({"predictor.hypernet.bias": torch.zeros(35)}, "are not linear layers"),
        ({"predictor.last.weight": torch.zeros(36, 36)}, "not a hypernetwork for actions of 4 or 6 numbers"),
        ({"predictor.last.weight": torch.zeros(6)}, "are not linear layers"),
        ({"projector_equi.6.bias": torch.zeros(6)}, "are not SIE's projector"),
        ({"projector_equi.0.weight": torch.zeros(6, 600)}, "has 600 features, but the encoder has 512"),
    ],
)
def test_what_is_no_predictor_of_sie_is_named(change: State, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=f"{sentence}.*: (leave|give)"):
        import_sie_predictor(sie_heads() | change, 512)
