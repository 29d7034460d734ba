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
    a_x, a_y = a_X2.unbind(-1)
    b_x, b_y = b_X2.unbind(-1)
    return a_x * b_y - a_y * b_x


def turned(matrix_X33: Tensor, vector_X3: Tensor) -> Tensor:
    """Vectors (..., 3), each multiplied by its matrix (..., 3, 3)."""
    return (matrix_X33 @ vector_X3[..., None])[..., 0]
