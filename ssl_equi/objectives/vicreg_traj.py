"""VICReg-Traj: VICReg and a trajectory that must be straight (Wang, Chen and Yu, "Pose-Aware Self-Supervised Learning
with Viewpoint Trajectory Regularization", ECCV 2024), as the seq-JEPA paper compares it (Ghaemi et al., NeurIPS 2025,
appendix A.3).

Three views of an object are three points on the unit sphere of embeddings. The path through them should not bend in the
second one; nobody says which way it should go, so no action is needed.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.objectives.base import Extension, ObjectiveOutput
from ssl_equi.objectives.parts.batch import full_precision
from ssl_equi.objectives.parts.checks import check_number, check_views
from ssl_equi.objectives.vicreg import VICReg
from ssl_equi.options import ActsWhen, NonNegative

# Of a tangent vector on the unit sphere. Rounding in float32 leaves the direction of a shorter one few right digits,
# and the gradient of a direction grows with the inverse of the length.
SHORTEST_TANGENT = 1e-4


@dataclass(frozen=True)
class VICRegTrajConfig:
    """What comes to VICReg; VICReg's own options are in `VICRegConfig`, whose defaults are the comparison's too."""

    weight: NonNegative = 0.01
    """Weight of the trajectory term; 0 leaves VICReg as it is. Paper: .01; 1 in seq-JEPA's released code."""
    on_sphere: Annotated[bool, ActsWhen(lambda options: options.weight > 0, "give a weight above 0")] = True
    """Embeddings are put on the unit sphere before their path is looked at. Paper: yes; seq-JEPA's released code takes
    the same products of raw embeddings, see `trajectory_term`."""


def trajectory_term(embeddings: Tensor, on_sphere: bool = True) -> Tensor:
    """How much the path through three embeddings bends on the unit sphere: -1 is straight, 1 goes back.

    With u_k = z_k / |z_k|, the displacements u_2 - u_1 and u_3 - u_2 lose what points along u_2,

        t_1 = (u_2 - u_1) - <u_2 - u_1, u_2> u_2,        t_2 = (u_3 - u_2) - <u_3 - u_2, u_2> u_2,

    so that both lie in the plane that touches the sphere in u_2. The term is -<t_1, t_2> / (|t_1| |t_2|), mean over the
    batch: -1 for points in their order on a great circle, if each step is less than half a turn.

    A view whose t is shorter than `SHORTEST_TANGENT` (equal or opposite embeddings) has no direction: its object counts
    as 0 and gives no gradient.

    Args:
        embeddings: [B, 3, E], of any length; this process's share.
        on_sphere: False takes u_k = z_k, which is what seq-JEPA's released code does. The t are then no tangents,
            unless the embeddings have length 1.
    """
    first, middle, last = (F.normalize(embeddings, dim=-1) if on_sphere else embeddings).unbind(dim=1)
    arriving = _direction_at(middle, middle - first)
    leaving = _direction_at(middle, last - middle)
    return -(arriving * leaving).sum(dim=-1).mean()


def _direction_at(point: Tensor, displacement: Tensor) -> Tensor:
    """What of displacements [B, E] is orthogonal to points of length 1, at length 1; zeros where that is too short."""
    tangent = displacement - (displacement * point).sum(dim=-1, keepdim=True) * point
    length = torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    unit = tangent / length.clamp(min=SHORTEST_TANGENT)
    return torch.where(length > SHORTEST_TANGENT, unit, torch.zeros_like(unit))


class VICRegTraj(Extension):
    """loss = VICReg's loss of views 1 and 2 + weight * `trajectory_term` of views 1, 2 and 3.

    The trajectory is that of the projected embeddings. All three views go through encoder and projector in one call
    (with VICReg's `separate_batch_norm`: one per view), so the third one counts in the statistics of batch norms.

    Attributes:
        num_views: how many views of each object `forward` takes: three, or VICReg's two if the weight is 0.
    """

    base: VICReg

    def __init__(self, base: VICReg, config: VICRegTrajConfig = VICRegTrajConfig()) -> None:
        super().__init__(base)
        if not isinstance(base, VICReg):
            raise ValueError(f"the base objective is {type(base).__name__}: pass VICReg(encoder)")
        check_number("weight", config.weight, minimum=0)
        self.config = config
        self.num_views = 2 if config.weight == 0 else 3

    def forward(self, views: Tensor, actions: Tensor | None = None) -> ObjectiveOutput:
        """The loss of three views [B, 3, 3, H, W]; with weight 0 the third view may be missing and is not used.

        Returns:
            VICReg's terms `invariance`, `variance`, `covariance` and the monitor `std_all`, all of views 1 and 2, and
            `trajectory`; features of all three views. With weight 0 the base's terms and features of two views.
        """
        if self.config.weight == 0:
            return replace(self.base(views[:, :2]), embeddings=None, encoder_features=None)
        check_views(views, num_views=3)
        features = self.on_views(self.encoder, views)
        embeddings = self.on_views(self.base.projector, features)
        with torch.autocast(views.device.type, enabled=False):
            embeddings = full_precision(embeddings)
            # View 3 is for the trajectory alone: VICReg's terms are those of a pair.
            base_loss, terms = self.base.loss_of(embeddings[:, :2])
            terms["trajectory"] = trajectory_term(embeddings, self.config.on_sphere)
            loss = base_loss + self.config.weight * terms["trajectory"]
        return self.output(loss, terms, features)
