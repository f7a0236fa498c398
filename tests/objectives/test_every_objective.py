"""What all objectives promise: shapes, precision, errors, gradients, targets, states, and that they learn."""

import copy

import pytest
import torch
from torch import nn

from ssl_equi.objectives.base import Extension, Objective, ObjectiveOutput, ProjectedObjective
from ssl_equi.objectives.seq_jepa import SeqJEPA
from tests.fakes import ConvolutionEncoder, LinearEncoder, recorded_calls
from tests.objectives.case import SIDE, SIZE, Case, Inputs, all_cases, in_turn

CASES = all_cases()
WITH_ACTIONS = {name: case for name, case in CASES.items() if case.actions}
LEARNING = {name: case for name, case in CASES.items() if "separate" not in name and "matrix" not in name}
# Objects in a batch: MoCo's queue holds 48 keys, of which the symmetric one adds two per object.
GENERALISING = {
    "vicreg": 48, "simclr": 48, "byol": 48, "barlow_twins": 48, "simsiam": 48, "moco": 48, "moco_symmetric": 24,
}  # fmt: skip


def pixel_encoder() -> nn.Module:
    return LinearEncoder(pixels=3 * SIDE * SIDE)


def make(case: Case, seed: int = 0, encoder=ConvolutionEncoder) -> Objective:
    torch.manual_seed(seed)
    return case.make(encoder)


def online_parameters(objective: Objective) -> list[nn.Parameter]:
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


def step(objective: Objective, optimizer: torch.optim.Optimizer, inputs: Inputs) -> float:
    """The loss before one step of the optimizer and of the target."""
    loss = objective(**inputs).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    objective.update_target(0.9)
    return loss.item()


@in_turn(CASES)
def test_outputs_have_the_common_shapes(case: Case):
    objective, inputs = make(case).eval(), case.inputs()
    output = objective(**inputs)
    views = inputs["views"][:, : case.encoded]
    features = objective.encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    assert output.loss.shape == () and output.loss.dtype == torch.float32
    assert torch.allclose(output.features, features, atol=1e-6)
    assert not output.features.requires_grad
    assert objective.parts["all"] == slice(0, objective.num_features) == slice(0, features.shape[-1])
    for name, term in output.terms.items():
        assert (term.shape, term.dtype, term.requires_grad) == ((), torch.float32, False)
        assert not name.startswith("std_") or term > 0
    assert any(name.startswith("std_") for name in output.terms)
    assert (output.encoder_features is not None) == case.has_encoder_features
    if output.encoder_features is not None:
        assert torch.equal(output.encoder_features.detach(), output.features)
        assert output.encoder_features.requires_grad
    assert (output.aggregates is not None) == (objective.aggregate_width is not None)
    if output.aggregates is not None:
        assert output.aggregates.shape == (SIZE, objective.aggregate_width)
        assert not output.aggregates.requires_grad


@in_turn(CASES)
def test_embed_makes_the_embeddings_of_the_forward_pass(case: Case):
    objective, inputs = make(case).eval(), case.inputs()
    embeddings = objective(**inputs).embeddings
    assert (embeddings is not None) == objective.embeds_both_views
    if not isinstance(objective, ProjectedObjective):
        return
    embedded = objective.embed(inputs["views"][:, 0])
    assert embedded.ndim == 2 and embedded.requires_grad
    if embeddings is not None:
        assert torch.allclose(embeddings[:, 0], embedded, atol=1e-6)
        assert embeddings.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.embed(inputs["views"][:, 0]).dtype == torch.float32


@in_turn(CASES)
def test_every_trainable_parameter_gets_a_finite_gradient_and_no_target_does(case: Case):
    objective = make(case)
    objective(**case.inputs()).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == (".target_" not in f".{name}"), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("case", LEARNING.values(), ids=LEARNING)
def test_the_loss_of_a_batch_falls(case: Case):
    objective, inputs = make(case), case.inputs(size=24)
    for _ in range(2):  # MoCo's queue holds 48 keys: its negatives shall be keys from the start
        objective(**inputs)
    optimizer = torch.optim.Adam(online_parameters(objective), lr=5e-3)
    losses = [step(objective, optimizer, inputs) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.2 * abs(losses[0])


@pytest.mark.parametrize(("name", "size"), GENERALISING.items(), ids=GENERALISING)
def test_the_loss_of_objects_not_trained_on_falls(name: str, size: int):
    case = CASES[name]
    objective = make(case, encoder=pixel_encoder)
    batches = [case.inputs(seed, size=size) for seed in range(66)]

    def mean_loss(batches: list[Inputs], learning_rate: float) -> float:
        optimizer = torch.optim.SGD(online_parameters(objective), lr=learning_rate)
        return sum(step(objective, optimizer, inputs) for inputs in batches) / len(batches)

    mean_loss(batches[4:6], learning_rate=0)  # fills MoCo's queue
    before = mean_loss(batches[:4], learning_rate=0)
    mean_loss(batches[6:], learning_rate=0.02)
    assert mean_loss(batches[:4], learning_rate=0) < before - 0.05 * abs(before)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_half_precision_is_finite_and_close(case: Case):
    """Under autocast, and with weights and images in bfloat16; the loss and the features are float32."""
    inputs = case.inputs(size=24)
    expected = make(case)(**inputs).loss.item()
    objective = make(case)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = objective(**inputs)
    under_autocast.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in online_parameters(objective))
    halved = {name: value.bfloat16() if value.ndim == 5 else value for name, value in inputs.items()}
    outputs: list[ObjectiveOutput] = [under_autocast]
    if case.in_bfloat16:
        outputs.append(make(case).bfloat16()(**halved))
    for output in outputs:
        assert output.loss.dtype == output.features.dtype == torch.float32
        assert output.loss.item() == pytest.approx(expected, rel=0.06, abs=0.05)


@in_turn(CASES)
def test_a_state_dict_carries_everything(case: Case):
    """Another objective that gets the state goes on in the same way, its target included."""
    first, second = make(case), make(case, seed=1)
    optimizer = torch.optim.SGD(online_parameters(first), lr=0.05)
    step(first, optimizer, case.inputs())
    second.load_state_dict(first.state_dict(), strict=True)
    for seed in (1, 2):
        assert torch.equal(first(**case.inputs(seed)).loss, second(**case.inputs(seed)).loss)


@in_turn(CASES)
def test_the_target_starts_equal_and_its_parameters_follow(case: Case):
    objective = make(case)
    owner = objective.base if isinstance(objective, Extension) else objective
    targets = {name.removeprefix("target_"): part for name, part in owner.named_children() if "target_" in name}
    assert (case.momentum is not None and not name_of_no_target(case)) == bool(targets)
    for name, target in targets.items():
        online = owner.get_submodule(name)
        assert online is not target
        for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
            assert mine is not theirs and torch.equal(mine, theirs)
            with torch.no_grad():
                theirs.add_(1)
    before = copy.deepcopy(objective.state_dict())
    objective.update_target(0.75)
    for name, value in objective.state_dict().items():
        expected = before[name]
        if ".target_" in f".{name}" and name in dict(objective.named_parameters()):
            expected = 0.75 * expected + 0.25 * before[name.replace("target_", "")]
        assert torch.allclose(value, expected), name
    for momentum in (1.5, -0.1, float("nan")) if targets else ():
        with pytest.raises(ValueError, match="the momentum is"):
            objective.update_target(momentum)


def name_of_no_target(case: Case) -> bool:
    """Whether the case is trained as if it had a target, and has none."""
    return case in (CASES["augself_simclr"], CASES["seq_jepa_no_target"])


@in_turn(CASES)
def test_views_share_a_call_of_the_encoder_unless_batch_norms_are_separate(case: Case):
    objective, inputs = make(case), case.inputs()
    if case.takes_any_encoder and not (set(inputs) & {"transformed_views", "shared_views"}):
        calls = recorded_calls(objective.encoder)
        objective(**inputs)
        # Without a target, the view to predict goes through the encoder, too.
        seen = case.views if case is CASES["seq_jepa_no_target"] else case.encoded
        image = (3, SIDE, SIDE)
        assert calls == ([(SIZE, *image)] * seen if objective.separate_batch_norm else [(seen * SIZE, *image)])


@in_turn(CASES)
def test_actions_matter_or_are_ignored(case: Case):
    inputs = case.inputs(dtype=torch.float64)
    # In another order, because a batch norm behind the predictor takes out what all actions have in common.
    others = inputs["actions"].flip(0) if case.actions else torch.randn(SIZE, 4)
    same = torch.equal(make(case).double()(**inputs).loss, make(case).double()(**inputs | {"actions": others}).loss)
    assert same == (not case.actions or case.ignores_actions)


@in_turn(CASES)
def test_wrong_views_are_refused_with_the_cure(case: Case):
    objective, inputs = make(case), case.inputs()
    views = inputs["views"]
    one_object = {name: value[:1] for name, value in inputs.items()}
    if "shared_views" in one_object:  # of which a chunk holds three objects
        one_object = inputs | {"views": views[:1]}
    for wrong, message in [
        (inputs | {"views": views[:, 0]}, rf"views have shape \({SIZE}, 3, 8, 8\): pass \[B, .* views of each object"),
        (inputs | {"views": views[:, :1]}, rf"views have shape \({SIZE}, 1, 3, 8, 8\): pass \[B, "),
        (inputs | {"views": views.to(torch.uint8)}, "dtype torch.uint8: convert them to float"),
        (one_object, "a global batch of at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            objective(**wrong)
    if case.views < 4:  # sequences may be longer
        with pytest.raises(ValueError, match=f"{case.views} views of each object"):
            objective(**inputs | {"views": torch.cat([views, views], dim=1)})


@in_turn(WITH_ACTIONS)
def test_wrong_actions_are_refused_with_the_cure(case: Case):
    objective, inputs = make(case), case.inputs()
    actions, width = inputs["actions"], case.actions[-1]
    not_finite = actions.clone()
    not_finite[3] = float("nan")
    wider = torch.cat([actions, actions], dim=-1)
    shape = ", ".join(map(str, actions.shape))
    for wrong, message in [
        (None, rf"actions are None: pass \[{shape}\]"),
        (actions[1:], rf"actions have shape \({SIZE - 1}, .*\): pass \[{shape}\]"),
        (actions.unsqueeze(1), rf"actions have shape .*: pass \[{shape}\]"),
        (wider, f"actions have {2 * width} columns but action_dim is {width}: set action_dim={2 * width}"),
        (not_finite, r"the action in row 3 is \[.*nan.*: check the latents"),
    ]:
        with pytest.raises(ValueError, match=message):
            objective(**inputs | {"actions": wrong})


@in_turn(CASES)
def test_an_encoder_without_a_width_is_refused(case: Case):
    if case.takes_any_encoder:
        with pytest.raises(ValueError, match="encoder Flatten has num_features=None: give it an integer attribute"):
            make(case, encoder=nn.Flatten)


@in_turn(CASES)
def test_extensions_show_their_base(case: Case):
    objective = make(case)
    assert objective.action_dim == (case.actions[-1] if case.actions else objective.action_dim)
    assert (objective.sequence_model is objective) == isinstance(objective, SeqJEPA)
    assert (objective.capsule_network is None) == case.takes_any_encoder
    if isinstance(objective, Extension):
        assert objective.encoder is objective.base.encoder
        assert objective.parts == objective.base.parts
        assert objective.separate_batch_norm == objective.base.separate_batch_norm
        assert all(name.startswith(("base.", "head.")) for name in objective.state_dict())


@in_turn(CASES)
def test_without_monitors_the_loss_and_its_terms_stay(case: Case):
    outputs = []
    for measures in (True, False):
        objective = make(case)
        for module in objective.modules():
            if isinstance(module, Objective):
                module.measures_monitors = measures
        torch.manual_seed(1)
        outputs.append(objective(**case.inputs()))
    with_monitors, without = outputs
    assert torch.equal(with_monitors.loss, without.loss)
    assert all(torch.equal(term, with_monitors.terms[name]) for name, term in without.terms.items())
    assert any(name.startswith("std_") for name in with_monitors.terms.keys() - without.terms.keys())
