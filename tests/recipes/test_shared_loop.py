"""Every recipe shows its whole loop; what they have in common must stay the same in all of them.

Each recipe's `main` may differ from SimCLR's only by the lines named here.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = "simclr"
WITH_ACTIONS = {
    "make_views = views(config, data, run, actions=config.actions)",
    "output = model(pair.images, pair.action)",
}
FOLLOWING_TARGET = "objective.update_target(target_momentum(config, step, total_steps))"
NORMALISING = "data = data.normalised_with(config.mean_rgb, config.std_rgb)"
OWN_LINES: dict[str, set[str]] = {
    "simclr": set(),
    "vicreg": set(),
    "barlow_twins": set(),
    "simsiam": {"model = run.prepare(objective, lambda module: simsiam_optimizer(module, config))"},
    "byol": {FOLLOWING_TARGET},
    "moco": {"objective.update_target(config.target_momentum)"},
    "sie": WITH_ACTIONS,
    "sen": WITH_ACTIONS,
    "equimod": WITH_ACTIONS,
    "augself": WITH_ACTIONS,
    "conditional_byol": WITH_ACTIONS | {FOLLOWING_TARGET},
    "seq_jepa": {
        "make_views = views(config, data, run, length=config.observed_views + 1, actions=config.actions)",
        "sequence = make_views(batch, step)",
        "output = model(sequence.images, sequence.steps())",
        FOLLOWING_TARGET,
        "sequences = make_views.describe()",
        "check_sequences_ending(run, config, objective, data, sequences)",
        "finish_sequences(run, config, objective, data, sequences)",
    },
    "seq_jepa_saccades": {
        NORMALISING,
        "make_views = Glimpses(config, data, run, config.saccades, length=config.observed_views + 1)",
        "sequence = make_views(batch, step)",
        "output = model(sequence.images, sequence.steps())",
        FOLLOWING_TARGET,
        "sequences = make_views.describe()",
        "check_sequences_ending(run, config, objective, data, sequences)",
        "finish_sequences(run, config, objective, data, sequences)",
    },
    "vicreg_traj": {
        "make_views = views(config, data, run, length=objective.num_views)",
        "sequence = make_views(batch, step)",
        "output = model(sequence.images)",
    },
    "conv_jepa": {
        NORMALISING,
        "make_views = Glimpses(config, data, run, config.saccades, length=config.observed_views + 1)",
        "sequence = make_views(batch, step)",
        "output = model(sequence.images, sequence.to_last())",
        FOLLOWING_TARGET,
    },
    "equicaps": WITH_ACTIONS
    | {
        "check_capsules_ending(run, config, objective, data)",
        "finish_capsules(run, config, objective, data, multiplied_by=config.actions)",
    },
    "capsie": WITH_ACTIONS
    | {
        "check_capsules_ending(run, config, objective, data)",
        "objective.soften_targets(step / total_steps)",
        "finish_capsules(run, config, objective, data)",
    },
    "supervised": {
        "objective = build(config, len(data.train.class_names))",
        "make_views = views(config, data, run, actions=config.actions)",
        "output = model(pair.images, pair.action, batch.labels)",
    },
    "essl": {
        "relative = config.objective.relative",
        "make_small_views = TransformedSmallViews(config, config.small_view, data, run, relative=relative)",
        "transformed = () if config.objective.weight == 0 else make_small_views(batch, step)",
        "output = model(pair.images, None, *transformed)",
    },
    "care": {
        "two_passes, chunk_size = (config.objective.reuse_views, config.objective.chunk_size)",
        "make_views = views(config, data, run, shared_by=chunk_size if two_passes else 1)",
        "make_shared_views = AugmentedViews(config, data, run, shared_by=chunk_size, name='shared view')",
        "needs_more = config.objective.weight > 0 and (not two_passes)",
        "output = model(pair.images, None, make_shared_views(batch, step).images if needs_more else None)",
        "objective.update_target(config.target_momentum)",
    },
}
# The reference's lines that another line takes the place of.
REPLACED = {
    "objective = build(config)",
    "make_views = views(config, data, run)",
    "model = run.prepare(objective, lambda module: optimizer_of(module, config))",
    "pair = make_views(batch, step)",
    "output = model(pair.images)",
    "with open_loader(config, data, run, make_views.stored_views) as loader:",
    "check_ending(run, config, objective, data)",
    "finish(run, config, objective, data)",
}


def lines_of_main(recipe: str) -> list[str]:
    """The statements of `main`, one a line however they were wrapped, without the recipe's own name."""
    tree = ast.parse((ROOT / "recipes" / f"{recipe}.py").read_text())
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return [line.strip().replace(f"'{recipe}'", "NAME") for line in ast.unparse(main).splitlines()]


def test_every_recipe_is_compared() -> None:
    assert set(OWN_LINES) == {path.stem for path in (ROOT / "recipes").glob("*.py")}


@pytest.mark.parametrize("recipe", sorted(OWN_LINES))
def test_a_recipe_differs_from_the_shared_loop_by_its_own_lines_only(recipe: str) -> None:
    reference, lines = lines_of_main(REFERENCE), lines_of_main(recipe)
    assert set(lines) - set(reference) == OWN_LINES[recipe]
    assert set(reference) - set(lines) <= REPLACED
    shared = [line for line in lines if line in reference]
    in_reference_order = [line for line in reference if line in lines]
    if "objective = build(config)" in lines:
        assert shared == in_reference_order
