"""What objectives that add a term to another one have in common: encoder, parts and target are the base's."""

from torch import nn

from ssl_equi.objectives.two_views import feature_dim


class Extension(nn.Module):
    """Holds the objective that is extended, as `base`.

    Args:
        base: an objective of this package on two views.

    Raises:
        ValueError: if the base has no encoder that states its feature width.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        if not isinstance(getattr(base, "encoder", None), nn.Module):
            raise ValueError(
                f"the base objective {type(base).__name__} has no encoder: pass an objective of two views, such as "
                "SimCLR(encoder)"
            )
        self.base = base
        self.num_features = feature_dim(self.encoder)

    @property
    def encoder(self) -> nn.Module:
        """The base's encoder."""
        encoder = self.base.encoder
        assert isinstance(encoder, nn.Module)
        return encoder

    @property
    def parts(self) -> dict[str, slice]:
        """Named column ranges of the encoder features: those of the base."""
        parts: dict[str, slice] = self.base.parts  # type: ignore[assignment]
        return parts

    @property
    def separate_batch_norm(self) -> bool:
        """Whether the base makes one call a view; further views follow it. See `two_views.on_both_views`."""
        return bool(getattr(getattr(self.base, "config", None), "separate_batch_norm", False))

    def update_target(self, momentum: float) -> None:
        """Moves the base's momentum target, see there; does nothing for a base that has none."""
        update = getattr(self.base, "update_target", None)
        if update is not None:
            update(momentum)
