"""A training step gives a GPU few operators: each recipe's stays below a bound. What is counted is what launches."""

from pathlib import Path

import pytest
import torch
from step_operators import PHASES, VARIANTS, OperatorCounter, OperatorsConfig, count_operators, measure_operators

MOST = {
    "sie": 160, "equicaps": 268, "capsie": 248, "seq_jepa": 230, "seq_jepa_saccades": 421, "conv_jepa": 392,
    "essl": 288, "care": 310, "equimod": 169, "sen": 111, "conditional_byol": 142, "augself": 120, "simclr": 97,
    "moco": 125, "byol": 138, "simsiam": 108, "barlow_twins": 132, "vicreg": 107, "vicreg_traj": 212, "supervised": 82,
    "sie, augmented": 254, "seq_jepa, augmented": 346, "simclr, augmented": 191, "byol, augmented": 232,
    "sie, captured": 8, "byol, captured": 9, "equicaps, captured": 8, "seq_jepa, captured": 9, "simclr, captured": 7,
}  # fmt: skip
"""Operators of a step at most, views included: what is added must be worth its launch."""
STORED = 3
"""At most, of making stored views and the actions between them."""
AUGMENTED = 120
"""At most, more than that, of augmented views."""


def test_what_launches_nothing_is_not_counted() -> None:
    counter = OperatorCounter()
    with counter:
        weight = torch.empty(4, 3, device="meta", requires_grad=True)
        numbers = (torch.ones(4, 3) * 2).to("meta")
        with counter.counting_as("forward"):
            loss = (weight.T[1:] * numbers.T[1:]).flatten().sum()
        with counter.counting_as("backward"):
            loss.backward()
    assert counter.counts["views"] == {"_to_copy": 1}
    assert counter.counts["forward"] == {"mul": 1, "clone": 1, "sum": 1}
    assert counter.counts["backward"].total() >= 2


def test_every_recipe_has_a_bound() -> None:
    assert set(MOST) == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_has_few_operators(variant: str, tiny_data: Path) -> None:
    counts = count_operators(variant, OperatorsConfig(data_dir=tiny_data))
    by_phase = {phase: operators.total() for phase, operators in counts.items()}
    assert sum(by_phase.values()) <= MOST[variant], by_phase
    none = {"forward", "backward"} if "captured" in variant else set()  # they are part of the graph
    assert {phase for phase in PHASES if by_phase[phase] == 0} - {"target"} == none
    if "augmented" in variant:
        assert by_phase["views"] <= STORED + AUGMENTED


def test_the_table_has_a_line_for_each_variant(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measure_operators(OperatorsConfig(("vicreg",), data_dir=tiny_data, largest=2))
    assert [row["name"] for row in rows] == ["vicreg, step", *(f"vicreg, {phase}" for phase in PHASES)]
    assert rows[0]["ratio"] == sum(row["ratio"] for row in rows[1:]) <= MOST["vicreg"]
    printed = capsys.readouterr().out
    assert "vicreg, optimiser: 1 _foreach_add_, 1 _fused_adam_" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
