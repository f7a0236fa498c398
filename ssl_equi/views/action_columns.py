"""Which columns of an action tell of which transform, so that an objective can be told of some only (crops, say)."""

from collections.abc import Collection

from ssl_equi.views.actions import STANDARD, ActionEncoding, action_names

# The columns of the papers' encodings in order, by the transform that they tell of.
SEQ_JEPA_TRANSFORMS = ("crop",) * 4 + ("jitter",) * 4 + ("blur",)
AUGSELF_TRANSFORMS = ("crop",) * 4 + ("jitter",) * 4 + ("horizontal_flip", "blur")
PAPERS_TRANSFORMS: dict[ActionEncoding, tuple[str, ...]] = {
    "augself": AUGSELF_TRANSFORMS,
    "seq_jepa_raw": SEQ_JEPA_TRANSFORMS,
    "seq_jepa_legacy": SEQ_JEPA_TRANSFORMS,
}


def column_transforms(encoding: ActionEncoding, present_fields: Collection[str]) -> tuple[str, ...]:
    """The transform (a field of `ViewParameters`) that each column of an action tells of; arguments and errors as in
    `actions.action_names`."""
    names = action_names(encoding, present_fields)
    if encoding != "standard":
        return PAPERS_TRANSFORMS[encoding]
    transform_of = {name: transform for transform, part in STANDARD.items() for name in part.units}
    return tuple(transform_of[name] for name in names)


def columns_about(
    transforms: Collection[str], encoding: ActionEncoding, present_fields: Collection[str]
) -> tuple[int, ...]:
    """The columns of an action that tell of `transforms`, in order.

    Raises:
        ValueError: an action has no column about one of the transforms.
    """
    owners = column_transforms(encoding, present_fields)
    missing = [transform for transform in transforms if transform not in owners]
    if missing:
        raise ValueError(
            f"the action has no column about {missing[0]!r}: choose from {', '.join(dict.fromkeys(owners))}"
        )
    return tuple(index for index, owner in enumerate(owners) if owner in transforms)
