"""What each named configuration of a recipe reproduces, where it knowingly differs, and settings that several share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")
Basis = Literal["paper", "release", "own"]
SOURCES = {
    "Barlow Twins": "Zbontar et al., ICML 2021",
    "BYOL": "Grill et al., NeurIPS 2020",
    "CapsIE": "Everett et al., 2024",
    "CARE": "Gupta et al., ICLR 2024",
    "E-SSL": "Dangovski et al., ICLR 2022",
    "EquiCaps": "Konstantinou et al., 2025",
    "MoCo v2": "Chen et al., 2020",
    "seq-JEPA": "Ghaemi et al., NeurIPS 2025",
    "SIE": "Garrido, Najman and LeCun, ICML 2023",
    "SimSiam": "Chen and He, CVPR 2021",
    "VICReg": "Bardes, Ponce and LeCun, ICLR 2022",
}
# Departures of more than one configuration.
BF16 = "trained in bf16"
BF16_FOR_FP16 = "bf16 in place of fp16"
BF16_FOR_FLOAT32 = "bf16 in place of float32"
FRESH_DRAWS = "each epoch draws views of its own, where the released loader repeats those of the first"
JOINT_ACTIONS = "the batch norm of the action embedding sees each action of a batch once, see action_statistics"
OWN_COVARIANCE = "the covariance of an incomplete batch is divided by its own size less one, not by the full batch's"
OWN_PAIRS = "every chunk has a pair of augmentations of its own, as in the paper"
UNSHUFFLED = "batches are not shuffled between processes, whose batch norms see the global batch"


@dataclass(frozen=True)
class Provenance:
    """Where the settings of a configuration come from.

    Attributes:
        basis: what is followed where the two differ: the text of a paper, or the code that its authors released; own
            for settings of this project.
        source: whose settings these are, one of `SOURCES`; empty for own ones.
        departures: what is known to differ from the basis.
    """

    basis: Basis
    source: str = ""
    departures: tuple[str, ...] = ()


OWN = Provenance("own")


def reproduces(
    basis: Literal["paper", "release"], source: str, *departures: str
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Marks a function that makes a configuration as following a paper of `SOURCES` or its released code."""
    assert source in SOURCES, source

    def mark(configuration: Callable[[], Config]) -> Callable[[], Config]:
        configuration.provenance = Provenance(basis, source, departures)  # type: ignore[attr-defined]
        return configuration

    return mark


def provenance_of(configuration: Callable[[], object]) -> Provenance:
    """What `reproduces` says of a configuration; settings that it says nothing of are the project's own."""
    return getattr(configuration, "provenance", OWN)


def describe(configuration: Callable[[], object]) -> str:
    """The provenance in a sentence or two, for the help of a recipe."""
    provenance = provenance_of(configuration)
    if provenance.basis == "own":
        return "Its settings are this project's own."
    followed = "the paper" if provenance.basis == "paper" else "the released code"
    known = f" Known departures: {'; '.join(provenance.departures)}." if provenance.departures else ""
    return f"It follows {followed} of {provenance.source} ({SOURCES[provenance.source]}).{known}"


# ---------------------------------------------------------------- settings that several configurations share

# 3DIEBench as in SIE's released code, with the authors' own ResNet-18.
SIE_RELEASED: dict[str, Any] = {
    "dataset": "3diebench", "image_size": 256, "evaluation_split": "val", "encoder": "sie_resnet18",
    "batch_size": 1024, "epochs": 2000, "keep_incomplete_batch": True, "final_learning_rate": 1e-3, "warmup_steps": 0,
    "weight_decay": 1e-6, "mixed_precision": "bf16", "log_every": 20, "save_every": 1000, "probe_protocol": "sie",
}  # fmt: skip

# 3DIEBench as in the comparison of seq-JEPA (Ghaemi et al., NeurIPS 2025, appendix A.3).
SEQ_JEPA_COMPARISON: dict[str, Any] = {
    "dataset": "3diebench", "image_size": 128, "evaluation_split": "val", "encoder": "resnet18", "batch_size": 512,
    "epochs": 1000, "final_learning_rate": 1e-3, "warmup_steps": 0, "log_every": 20, "save_every": 1000,
    "probe_protocol": "sie",
}  # fmt: skip

# What seq-JEPA's released code trains every method with on 3DIEBench, but for the objective: Adam without decay, a
# warm-up by epochs and then a constant rate, 82 steps an epoch of which the last is smaller.
SEQ_JEPA_RELEASED = SEQ_JEPA_COMPARISON | {
    "keep_incomplete_batch": True, "optimizer": "adam", "learning_rate": 4e-4, "final_learning_rate": 4e-4,
    "warmup_steps": 20 * 82, "warmup_from": 1e-5, "schedule_by": "epoch",
}  # fmt: skip

# CIFAR-10 as in E-SSL's released code, at the learning rate of its baselines (.03 x 512 / 256).
ESSL_CIFAR10: dict[str, Any] = {
    "dataset": "cifar10", "image_size": 32, "encoder": "resnet18_small_images",
    "encoder_arguments": {"zero_init_last": False}, "batch_size": 512, "epochs": 800, "optimizer": "sgd",
    "learning_rate": 0.06, "final_learning_rate": 0.0, "warmup_steps": 970, "weight_decay": 5e-4, "log_every": 50,
    "save_every": 970,
}  # fmt: skip

# A ResNet-50 on ImageNet in bf16: what its papers have in common.
IMAGENET: dict[str, Any] = {
    "dataset": "imagenet", "image_size": 224, "evaluation_split": "val", "encoder": "resnet50",
    "mixed_precision": "bf16", "log_every": 50, "save_every": 1000,
}  # fmt: skip
