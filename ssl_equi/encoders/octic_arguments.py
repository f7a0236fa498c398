"""Checks of the arguments of octic vision transformers."""

from typing import Literal, get_args

from ssl_equi.encoders.arguments import check_at_least

Kind = Literal["octic", "hybrid", "invariant"]
Pooling = Literal["token", "avg", ""]


def check_sizes(patch_size: int, in_chans: int, depth: int, reg_tokens: int) -> None:
    """Raises ValueError if one is too small."""
    check_at_least("patch_size", patch_size, 1)
    check_at_least("in_chans", in_chans, 1)
    check_at_least("depth", depth, 1)
    check_at_least("reg_tokens", reg_tokens, 0)


def checked_pooling(global_pool: Pooling, class_token: bool) -> Pooling:
    """The pooling; raises ValueError if there is none of this name, or no class token for it."""
    if global_pool not in get_args(Pooling):
        raise ValueError(f"global_pool is {global_pool!r}: choose 'token', 'avg' or '' (none)")
    if global_pool == "token" and not class_token:
        raise ValueError("global_pool is 'token', but there is no class token: choose 'avg', or class_token=True")
    return global_pool


def number_of_octic_blocks(kind: Kind, octic_blocks: int | None, depth: int) -> int:
    """How many blocks commute with the group, by default all of kind octic and half of the others.

    Raises:
        ValueError: there is no such kind, or it can't have so many.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}: choose {', '.join(get_args(Kind))}")
    if octic_blocks is None:
        return depth if kind == "octic" else depth // 2
    if not 0 <= octic_blocks <= depth:
        nearest = min(max(octic_blocks, 0), depth)
        raise ValueError(f"octic_blocks is {octic_blocks}: the encoder has {depth} blocks, use {nearest}")
    if kind == "octic" and octic_blocks != depth:
        raise ValueError(
            f"octic_blocks is {octic_blocks}, but all {depth} blocks of kind 'octic' are octic: "
            f"use {depth}, or kind 'hybrid' or 'invariant'"
        )
    return octic_blocks
