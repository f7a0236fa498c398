"""SO(3): quaternions, matrices, Euler angles, 6-D vectors and rotation vectors.

Every function takes tensors of any batch shape and keeps dtype and device. Quaternions are scalar-last
(x, y, z, w) and need not be canonical: q and -q are the same rotation. Where the sign matters (as the
input of a predictor, or as a regression target) the docstring says which one comes out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.runtime.device_copies import constant


def require_shape(tensor: Tensor, name: str, *last: int) -> None:
    """Raises ValueError unless the last dimensions of a tensor are these."""
    if tensor.shape[-len(last) :] != last:
        expected = ", ".join(map(str, last))
        raise ValueError(f"the shape of {name} is {tuple(tensor.shape)}: it must be [..., {expected}]")


def quat_multiply(left_xyzw: Tensor, right_xyzw: Tensor) -> Tensor:
    """Hamilton product: the rotation that applies `right` first, then `left`. [..., 4] x [..., 4] -> [..., 4]."""
    require_shape(left_xyzw, "left_xyzw", 4)
    require_shape(right_xyzw, "right_xyzw", 4)
    left_vector, left_w = left_xyzw[..., :3], left_xyzw[..., 3:]
    right_vector, right_w = right_xyzw[..., :3], right_xyzw[..., 3:]
    cross = torch.linalg.cross(*torch.broadcast_tensors(left_vector, right_vector), dim=-1)
    vector = left_w * right_vector + right_w * left_vector + cross
    scalar = left_w * right_w - (left_vector * right_vector).sum(-1, keepdim=True)
    return torch.cat([vector, scalar], dim=-1)


def quat_conjugate(quat_xyzw: Tensor) -> Tensor:
    """Inverse of a unit quaternion: the vector part changes sign, w is kept.

    SciPy before 1.11 negated w instead, which gives the other of the two equivalent quaternions; checkpoints of
    methods that feed raw quaternions to a predictor are tied to the sign that they were trained with.
    """
    require_shape(quat_xyzw, "quat_xyzw", 4)
    return torch.cat([-quat_xyzw[..., :3], quat_xyzw[..., 3:]], dim=-1)


def quat_normalize(quat_xyzw: Tensor) -> Tensor:
    """Unit quaternions in the same directions; a zero quaternion becomes the identity rotation."""
    require_shape(quat_xyzw, "quat_xyzw", 4)
    length = quat_xyzw.norm(dim=-1, keepdim=True)
    identity = torch.zeros_like(quat_xyzw)
    identity[..., 3] = 1
    tiny = torch.finfo(quat_xyzw.dtype).tiny
    return torch.where(length > tiny, quat_xyzw / length.clamp(min=tiny), identity)


def quat_positive(quat_xyzw: Tensor) -> Tensor:
    """The representative of each rotation with w >= 0 (discontinuous at half turns)."""
    require_shape(quat_xyzw, "quat_xyzw", 4)
    return torch.where(quat_xyzw[..., 3:] < 0, -quat_xyzw, quat_xyzw)


def relative_quat(first_xyzw: Tensor, second_xyzw: Tensor) -> Tensor:
    """Body-frame rotation that takes pose 1 to pose 2: conj(q1) x q2, i.e. R1^-1 R2.

    The sign is not canonicalised: for per-view quaternions with w > 0 (every pose of the Euler box), the result is
    a continuous function of both poses, and w < 0 in about 4.4 % of 3DIEBench pairs. Equal to
    `(R1.inv() * R2).as_quat()` of SciPy 1.11 and later, the exact negative of what earlier versions return.
    """
    return quat_multiply(quat_conjugate(first_xyzw), second_xyzw)


def rotate_vectors(quat_xyzw: Tensor, vectors: Tensor) -> Tensor:
    """R v for unit quaternions [..., 4] and vectors [..., 3]."""
    require_shape(vectors, "vectors", 3)
    matrices = quat_to_matrix(quat_xyzw)
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def quat_to_matrix(quat_xyzw: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4]."""
    require_shape(quat_xyzw, "quat_xyzw", 4)
    if quat_xyzw.device.type != "cpu":
        return _quat_to_matrix_at_once(quat_xyzw)
    x, y, z, w = quat_xyzw.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], dim=-1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], dim=-1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def _quat_to_matrix_at_once(quat_xyzw: Tensor) -> Tensor:
    """The same with four launches instead of forty."""
    products = (quat_xyzw.unsqueeze(-1) * quat_xyzw.unsqueeze(-2)).flatten(-2)
    factors, identity = (
        constant(numbers, products.device, products.dtype)
        for numbers in (_ENTRIES_OF_PRODUCTS, (1, 0, 0, 0) * 2 + (1,))
    )
    return ((products.unsqueeze(-2) * factors).sum(dim=-1) + identity).unflatten(-1, (3, 3))


def _entries_of_products() -> tuple[tuple[float, ...], ...]:
    """[9, 16]: what each product of two of x, y, z, w adds to each entry of the matrix less the identity."""
    signed_products = (
        ("-yy-zz", "+xy-zw", "+xz+yw"),
        ("+xy+zw", "-xx-zz", "+yz-xw"),
        ("+xz-yw", "+yz+xw", "-xx-yy"),
    )
    rows = []
    for entry in (entry for row in signed_products for entry in row):
        factors = [0.0] * 16
        for term in (entry[:3], entry[3:]):
            product = 4 * "xyzw".index(term[1]) + "xyzw".index(term[2])
            factors[product] = 2.0 if term[0] == "+" else -2.0
        rows.append(tuple(factors))
    return tuple(rows)


_ENTRIES_OF_PRODUCTS = _entries_of_products()


def quat_from_matrix(matrices: Tensor) -> Tensor:
    """Unit quaternions [..., 4] with w >= 0 of rotation matrices [..., 3, 3].

    Each of the four components can be read off the matrix by a formula that divides by that component; the largest
    one is used for each matrix, so that nothing is divided by a small number (Shepperd 1978).
    """
    require_shape(matrices, "matrices", 3, 3)
    m = matrices
    diagonal = torch.diagonal(m, dim1=-2, dim2=-1)
    trace = diagonal.sum(-1)
    # four times the square of x, y, z, w
    squares = torch.cat([1 + 2 * diagonal - trace[..., None], 1 + trace[..., None]], dim=-1)
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], xy, xz, xw], dim=-1),
            torch.stack([xy, squares[..., 1], yz, yw], dim=-1),
            torch.stack([xz, yz, squares[..., 2], zw], dim=-1),
            torch.stack([xw, yw, zw, squares[..., 3]], dim=-1),
        ],
        dim=-2,
    )
    largest = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return quat_positive(quat_normalize(candidates.gather(-2, largest).squeeze(-2)))


def quat_from_euler_xyz(angles_rad: Tensor) -> Tensor:
    """Unit quaternions [..., 4] of extrinsic x, y, z angles [..., 3]: R = Rz Ry Rx.

    For angles within +-pi/2 (the poses of 3DIEBench), w > 0 without any sign change.
    """
    require_shape(angles_rad, "angles_rad", 3)
    half = angles_rad / 2
    zero = torch.zeros_like(half[..., 0])
    sine, cosine = half.sin(), half.cos()
    about_x = torch.stack([sine[..., 0], zero, zero, cosine[..., 0]], dim=-1)
    about_y = torch.stack([zero, sine[..., 1], zero, cosine[..., 1]], dim=-1)
    about_z = torch.stack([zero, zero, sine[..., 2], cosine[..., 2]], dim=-1)
    return quat_multiply(about_z, quat_multiply(about_y, about_x))


def euler_xyz_from_matrix(matrices: Tensor) -> Tensor:
    """Extrinsic x, y, z angles [..., 3] of rotation matrices; x and z in [-pi, pi], y in [-pi/2, pi/2].

    At gimbal lock (|y| = pi/2) only x +- z is defined: x takes it all and z is 0.
    """
    require_shape(matrices, "matrices", 3, 3)
    m = matrices
    cos_y = torch.hypot(m[..., 0, 0], m[..., 1, 0])
    angle_y = torch.atan2(-m[..., 2, 0], cos_y)
    locked = cos_y < 1e-6 if m.dtype == torch.float64 else cos_y < 1e-3
    angle_x = torch.where(locked, torch.atan2(-m[..., 1, 2], m[..., 1, 1]), torch.atan2(m[..., 2, 1], m[..., 2, 2]))
    angle_z = torch.where(locked, torch.zeros_like(angle_x), torch.atan2(m[..., 1, 0], m[..., 0, 0]))
    return torch.stack([angle_x, angle_y, angle_z], dim=-1)


def rotation_angle(quat_xyzw: Tensor) -> Tensor:
    """Angle in [0, pi] (radians) by which each unit quaternion rotates, whatever its sign."""
    require_shape(quat_xyzw, "quat_xyzw", 4)
    return 2 * torch.atan2(quat_xyzw[..., :3].norm(dim=-1), quat_xyzw[..., 3].abs())


def geodesic_distance(first_xyzw: Tensor, second_xyzw: Tensor) -> Tensor:
    """Angle in [0, pi] (radians) of the rotation between two poses, whatever the signs."""
    return rotation_angle(relative_quat(first_xyzw, second_xyzw))


def mean_quaternion(quat_xyzw: Tensor) -> Tensor:
    """The one unit quaternion closest to all of [N, 4] in squared chordal distance, sign-invariant: [4] float64.

    It is the leading eigenvector of the sum of `q q^T` (Markley et al., "Averaging Quaternions", 2007).
    """
    quaternions = quat_normalize(quat_xyzw.double())
    _, eigenvectors = torch.linalg.eigh(quaternions.T @ quaternions)
    return eigenvectors[:, -1]


def random_quat(count: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """`count` rotations [count, 4] uniform on SO(3) (Haar): normalised Gaussian 4-vectors."""
    return quat_normalize(torch.randn(count, 4, generator=generator, dtype=dtype))


def quat_exp(rotation_vector_rad: Tensor) -> Tensor:
    """Unit quaternions [..., 4] of rotation vectors [..., 3] (axis times angle in radians)."""
    require_shape(rotation_vector_rad, "rotation_vector_rad", 3)
    half_angle = rotation_vector_rad.norm(dim=-1, keepdim=True) / 2
    # torch.sinc(x) is sin(pi x) / (pi x): finite at zero
    vector = rotation_vector_rad / 2 * torch.sinc(half_angle / math.pi)
    return torch.cat([vector, half_angle.cos()], dim=-1)


def quat_log(quat_xyzw: Tensor) -> Tensor:
    """Rotation vectors [..., 3] (axis times angle in radians, angle in [0, pi]) of unit quaternions."""
    quat_xyzw = quat_positive(quat_xyzw)
    vector, w = quat_xyzw[..., :3], quat_xyzw[..., 3:]
    sin_half = vector.norm(dim=-1, keepdim=True)
    half_angle = torch.atan2(sin_half, w)
    return 2 * vector / torch.sinc(half_angle / math.pi)


def rotation_6d_from_matrix(matrices: Tensor) -> Tensor:
    """The first two columns of each rotation matrix, [..., 6] (Zhou et al., CVPR 2019): continuous on SO(3)."""
    require_shape(matrices, "matrices", 3, 3)
    return torch.cat([matrices[..., :, 0], matrices[..., :, 1]], dim=-1)


def matrix_from_rotation_6d(rotation_6d: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of 6-D vectors by Gram-Schmidt (Zhou et al., CVPR 2019)."""
    require_shape(rotation_6d, "rotation_6d", 6)
    first = F.normalize(rotation_6d[..., :3], dim=-1)
    second = rotation_6d[..., 3:]
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-1)


def nearest_rotation_matrix(matrices: Tensor) -> Tensor:
    """The rotation matrices [..., 3, 3] that are nearest (in the Frobenius norm) to any matrices [..., 3, 3].

    With U S V^T the singular value decomposition, U diag(1, 1, det(U V^T)) V^T: the last factor keeps it from being a
    reflection (Levinson et al., "An Analysis of SVD for Deep Rotation Estimation", NeurIPS 2020, equation 2).
    """
    require_shape(matrices, "matrices", 3, 3)
    left, _, right_transposed = torch.linalg.svd(matrices)
    sign = torch.linalg.det(left @ right_transposed)[..., None, None].sign()
    return torch.cat([left[..., :2], left[..., 2:] * sign], dim=-1) @ right_transposed
