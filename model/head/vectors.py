"""Vectors and matrices in the last dimensions of tensors."""

from torch import Tensor


def dot(a_X3: Tensor, b_X3: Tensor) -> Tensor:
    """Products (...) of vectors (..., 3)."""
    return (a_X3 * b_X3).sum(-1)


def square_length(vector_X3: Tensor) -> Tensor:
    """Squared lengths (...) of vectors (..., 3)."""
    return vector_X3.square().sum(-1)


def cross2(a_X2: Tensor, b_X2: Tensor) -> Tensor:
    """Signed areas (...) between vectors (..., 2) of a plane."""
    return a_X2[..., 0] * b_X2[..., 1] - a_X2[..., 1] * b_X2[..., 0]


def turned(matrix_X33: Tensor, vector_X3: Tensor) -> Tensor:
    """Vectors (..., 3), each multiplied by its matrix (..., 3, 3)."""
    return (matrix_X33 @ vector_X3[..., None])[..., 0]
