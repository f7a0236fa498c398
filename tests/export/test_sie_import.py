"""SIE's ResNet and predictor, found by order and shapes under names that no file has to have."""

import re
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssl_equi.encoders import create_encoder
from ssl_equi.errors import CheckpointError, LayoutError
from ssl_equi.export.importing import EncoderOptions, ImportedEncoder, import_encoder
from ssl_equi.export.sie_files import feature_parts, import_sie_predictor
from ssl_equi.export.tensors import named_tensors

State = dict[str, Tensor]
EXTRA = torch.zeros(3)


def run(content: dict, layout: str, **options: object) -> ImportedEncoder:
    return import_encoder(named_tensors(content, "file"), EncoderOptions(layout, **options))


def trained(module: nn.Module) -> nn.Module:
    """In eval mode, with values that no initialisation has."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return module.eval()


def assert_same_features(imported: ImportedEncoder, reference: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = reference(images)
        assert torch.equal(imported.module(images), expected)
    assert expected.std() > 1e-3


def sie_state(encoder: nn.Module, shortcut: str = "last") -> State:
    """The encoder's tensors in the order in which layers are made, under names that say nothing of torchvision's."""
    state = encoder.state_dict()
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    blocks: dict[str, list[str]] = {}
    for layer in layers:
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
            state |= {
                f"{name}.{layer}.weight": torch.randn(dim, in_width) / 16,
                f"{name}.{layer}.bias": torch.randn(dim),
            }
            norm = f"{name}.{layer + 1}"
            state |= {f"{norm}.weight": torch.rand(dim), f"{norm}.bias": torch.randn(dim)}
            state |= {f"{norm}.running_mean": torch.randn(dim), f"{norm}.running_var": torch.rand(dim) + 0.5}
            state |= {f"{norm}.num_batches_tracked": torch.tensor(3)}
            in_width = dim
        state[f"{name}.6.weight"] = torch.randn(dim, dim)
    state["predictor.hypernet.weight"] = torch.randn(dim * dim, action_dim)
    return state | {"online_classifier.weight": torch.zeros(55, 512)}


@pytest.fixture(scope="module")
def sie_encoder() -> nn.Module:
    return trained(create_encoder("sie_resnet18", 64))


@pytest.mark.parametrize(("layout", "shortcut"), [("sie", "first"), ("equicaps", "last"), ("capsie", "last")])
def test_sies_resnet_is_recognised_by_order_and_shapes(sie_encoder: nn.Module, layout: str, shortcut: str) -> None:
    state = {f"module.{name}": value for name, value in (sie_state(sie_encoder, shortcut) | sie_heads()).items()}
    imported = run({"epoch": 3, "model": state, "optimizer": {"state": {}}}, layout)
    assert_same_features(imported, sie_encoder)
    assert (imported.architecture, imported.data, imported.image_size) == ("sie_resnet18", "3diebench", 256)
    assert imported.card(layout, "there", {}).std_rgb == (0.1030, 0.0999, 0.0969)
    assert set(imported.left_out) == {"projectors", "predictors", "probes"}


def test_our_own_names_need_no_order(sie_encoder: nn.Module) -> None:
    state = sie_encoder.state_dict()
    shuffled = {f"backbone.{name}": state[name] for name in sorted(state)}
    assert_same_features(run(shuffled, "sie"), sie_encoder)
    deeper = trained(create_encoder("sie_resnet34", 64))
    assert_same_features(run(sie_state(deeper), "sie"), deeper)


@pytest.mark.parametrize(("action_dim", "hidden"), [(4, 0), (6, 0), (4, 2)])
def test_sies_predictor_multiplies_with_the_matrix_of_the_action(action_dim: int, hidden: int) -> None:
    torch.manual_seed(0)
    state = sie_heads(action_dim)
    last = state.pop("predictor.hypernet.weight")
    layers = {f"predictor.{number}.weight": torch.randn(action_dim, action_dim) for number in range(hidden)}
    state |= layers | {"predictor.hypernet.weight": last}
    predictor = import_sie_predictor(state, 512)
    features, actions = torch.randn(5, 512), torch.randn(5, action_dim)
    embeddings = features[:, 256:]
    for layer in (0, 3):
        embeddings = embeddings @ state[f"projector_equi.{layer}.weight"].T + state[f"projector_equi.{layer}.bias"]
        norm = f"projector_equi.{layer + 1}"
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        embeddings = ((embeddings - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]).clamp(min=0)
    embeddings = embeddings @ state["projector_equi.6.weight"].T
    inner = actions
    for weight in layers.values():
        inner = (inner @ weight.T).clamp(min=0)
    matrices = (inner @ last.T).view(5, 6, 6)
    expected = torch.einsum("nij,nj->ni", matrices, embeddings)
    with torch.no_grad():
        torch.testing.assert_close(predictor.embed(features), embeddings, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predictor.predict(features, actions), expected, rtol=1e-4, atol=1e-3)
    assert feature_parts(state, 512) == {"all": (0, 512), "inv": (0, 256), "equi": (256, 512)}


@pytest.mark.parametrize(
    ("hidden", "with_bias", "predicts_bias"), [(0, True, False), (0, False, True), (0, True, True), (2, True, True)]
)
def test_hypernetworks_with_biases(hidden: int, with_bias: bool, predicts_bias: bool) -> None:
    torch.manual_seed(0)
    state = sie_heads()
    del state["predictor.hypernet.weight"]
    widths = [*[4] * (hidden + 1), 6 * 6 + 6 * predicts_bias]
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        state[f"predictor.{2 * number}.weight"] = torch.randn(outputs, inputs)
        if with_bias:
            state[f"predictor.{2 * number}.bias"] = torch.randn(outputs)
    predictor = import_sie_predictor(state, 512)
    embeddings, actions = torch.randn(5, 6), torch.randn(5, 4)
    made = actions
    for number in range(hidden + 1):
        made = made @ state[f"predictor.{2 * number}.weight"].T + state.get(f"predictor.{2 * number}.bias", 0)
        made = made.clamp(min=0) if number < hidden else made
    expected = torch.einsum("nij,nj->ni", made[:, :36].view(5, 6, 6), embeddings)
    expected = expected + made[:, 36:] if predicts_bias else expected
    with torch.no_grad():
        torch.testing.assert_close(predictor.advance(embeddings, actions), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layers", "action_dim"), [(1, 4), (1, 6), (3, 4)])
def test_sies_predictor_may_be_an_mlp(layers: int, action_dim: int) -> None:
    torch.manual_seed(0)
    state = sie_heads()
    del state["predictor.hypernet.weight"]
    for number in range(layers):
        state[f"predictor.{number}.weight"] = torch.randn(6, 6 + action_dim * (number == 0))
        state[f"predictor.{number}.bias"] = torch.randn(6)
    embeddings, actions = torch.randn(5, 6), torch.randn(5, action_dim)
    expected = torch.cat([actions, embeddings], dim=1)
    for number in range(layers):
        expected = expected @ state[f"predictor.{number}.weight"].T + state[f"predictor.{number}.bias"]
        expected = expected.clamp(min=0) if number < layers - 1 else expected
    with torch.no_grad():
        predicted = import_sie_predictor(state, 512).advance(embeddings, actions)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortcut", ["first", "last"])
def test_the_shortcut_of_a_bottleneck_is_not_taken_for_its_last_convolution(shortcut: str) -> None:
    """In the first block both have the same shape."""
    deeper = trained(create_encoder("sie_resnet50", 64))
    imported = run(sie_state(deeper, shortcut), "sie")
    placed, own = imported.module.state_dict(), deeper.state_dict()
    assert all(torch.equal(placed[name], value) for name, value in own.items())
    assert "inferred" in imported.notes[0]


def test_what_is_no_predictor_of_sie_is_refused_or_absent() -> None:
    state = sie_heads()
    assert import_sie_predictor({"projector.0.weight": torch.zeros(8, 512)}, 512) is None
    assert feature_parts({"projector.0.weight": torch.zeros(8, 512)}, 512) == {"all": (0, 512)}
    assert feature_parts({}, 512) == {"all": (0, 512), "inv": (0, 256), "equi": (256, 512)}
    with pytest.raises(CheckpointError, match="--equivariant-features is 128, but the projector in the file reads 256"):
        feature_parts(state, 512, 128)
    for change, sentence in (
        ({"predictor.hypernet.weight": torch.zeros(36, 5)}, "not a predictor of 6 numbers from 6 numbers and an actio"),
        ({"predictor.hypernet.weight": torch.zeros(6, 10)}, "not an MLP with biases"),
        ({"predictor.hypernet.weight": torch.zeros(35, 4)}, "not a hypernetwork for 6 numbers, which makes 36 or 42"),
        ({"predictor.hypernet.bias": torch.zeros(35)}, "are not linear layers"),
        ({"predictor.last.weight": torch.zeros(36, 36)}, "not a hypernetwork for actions of 4 or 6 numbers"),
        ({"predictor.last.weight": torch.zeros(6)}, "are not linear layers"),
        ({"projector_equi.6.bias": torch.zeros(6)}, "are not SIE's projector"),
        ({"projector_equi.0.weight": torch.zeros(6, 600)}, "has 600 features, but the encoder has 512"),
    ):
        with pytest.raises(CheckpointError, match=f"{sentence}.*: (leave|give)"):
            import_sie_predictor(state | change, 512)


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
    sie_encoder: nn.Module, position: int, change: Tensor | None, sentence: str
) -> None:
    state = sie_state(sie_encoder)
    name = list(state)[position]
    with pytest.raises(LayoutError, match=sentence):
        run({key: value for key, value in (state | {name: change}).items() if value is not None}, "sie")
    with pytest.raises(LayoutError, match=r"the checkpoint ends where SIE's ResNet has 'layer4.1.conv2.weight'"):
        run(dict(list(state.items())[:-6]), "sie")


def test_torchvisions_resnet_is_none_of_sies(sie_encoder: nn.Module) -> None:
    with pytest.raises(LayoutError, match=r"has shape \(64, 64, 3, 3\) where SIE's ResNet has \(64, 64, 1, 1\)"):
        run(torchvision.models.resnet18().state_dict(), "sie")
    with pytest.raises(LayoutError, match=r"'trunk.extra.weight', which is neither"):
        run(sie_state(sie_encoder) | {"trunk.extra.weight": EXTRA}, "sie")
    with pytest.raises(LayoutError, match=r"holds 'mystery.weight', .* --leave-out mystery"):
        run(sie_state(sie_encoder) | {"mystery.weight": EXTRA}, "sie")
    imported = run(sie_state(sie_encoder) | {"mystery.weight": EXTRA}, "sie", leave_out=("mystery",))
    assert imported.left_out == {"left out by name": ["mystery.weight"]}
