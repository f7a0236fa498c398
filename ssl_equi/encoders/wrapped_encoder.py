"""What encoders around another encoder share.

They make vectors of images, [N, num_features], as the encoder inside does, which need not have maps: so they have no
`forward_features` of their own.
"""

from torch import nn

from ssl_equi.encoders.arguments import refuse_classifier


class WrappedEncoder(nn.Module):
    """What timm expects of an encoder, handed on to the one inside.

    Args:
        encoder: maps images to features.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.num_classes = encoder, 0

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Accepts 0 only: there is no classifier.

        Raises:
            ValueError: a classifier, or another pooling is asked for.
        """
        refuse_classifier(num_classes)
        if global_pool is not None:
            raise ValueError(f"global_pool is {global_pool!r}: the pooling is that of the wrapped encoder, pass None")

    def get_classifier(self) -> nn.Module:
        """nn.Identity: there is no classifier."""
        return nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As of the wrapped encoder.

        Raises:
            ValueError: the wrapped encoder can't do that.
        """
        setter = getattr(self.encoder, "set_grad_checkpointing", None)
        if callable(setter):
            setter(enable)
        elif enable:
            raise ValueError(f"{type(self.encoder).__name__} has no gradient checkpointing: choose another backbone")

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should spare, beside all vectors: those of the wrapped encoder."""
        names = getattr(self.encoder, "no_weight_decay", None)
        return {f"encoder.{name}" for name in names()} if callable(names) else set()


def stated_num_features(encoder: nn.Module) -> int:
    """D of an encoder.

    Raises:
        ValueError: it states none.
    """
    num_features = getattr(encoder, "num_features", None)
    if not isinstance(num_features, int) or num_features < 1:
        raise ValueError(
            f"num_features of {type(encoder).__name__} is {num_features}: make the encoder with create_encoder, "
            "or set the width of its features"
        )
    return num_features
