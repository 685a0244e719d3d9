"""Linear algebra over [..., n, n], as torch.linalg's documentation has it.

A matrix that has no inverse or no Cholesky factor gives what the framework makes of it: an error or infinities.
"""

from __future__ import annotations

from typing import Any

from zoo.ops.linear import _swap
from zoo.ops.size import known, number
from zoo.ops.table import op


@op("linalg_inv", whole=True)
def inv(xp: Any, x: Any) -> Any:
    return xp.solve(x, xp.broadcast_to(_identity(xp, x), xp.shape(x)))


@op("linalg_solve", whole=True, recorded=True)
def solve(xp: Any, a: Any, b: Any, *, left: bool = True, infos: Any = None) -> Any:
    """a @ result = b, or result @ a = b; `b` is of vectors where it has the shape that torch takes to be so."""
    vectors = xp.ndim(b) == 1
    if xp.ndim(b) == xp.ndim(a) - 1 and not vectors:
        sizes = list(zip(xp.shape(b), xp.shape(a), strict=False))
        vectors = all(m == n for m, n in sizes if known(m) and known(n))
        if vectors and not all(known(m) and known(n) for m, n in sizes):
            if infos is None:
                number(next(m for pair in sizes for m in pair if not known(m)), "solve")
            vectors = len(infos[0].shape) == xp.ndim(b)
    b = xp.expand_dims(b, xp.ndim(b)) if vectors else b
    result = _solved(xp, a, b) if left else _swap(xp, _solved(xp, _swap(xp, a), _swap(xp, b)))
    return xp.squeeze(result, (xp.ndim(result) - 1,)) if vectors else result


@op("linalg_solve_triangular")
def solve_triangular(xp: Any, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Any:
    """a @ result = b, or result @ a = b; what lies on the other side of the diagonal is not read."""
    if not left:
        turned = solve_triangular(xp, _swap(xp, a), _swap(xp, b), upper=not upper, unitriangular=unitriangular)
        return _swap(xp, turned)
    if unitriangular:
        a = xp.where(xp.cast(_identity(xp, a), "bool"), xp.asarray(1, xp.dtype(a)), a)
    a, b = _broadcast(xp, a, b)
    return xp.solve_triangular(a, b, not upper)


@op("linalg_cholesky", whole=True)
def cholesky(xp: Any, x: Any, *, upper: bool = False) -> Any:
    """The lower factor L of x = L L^T, or its transpose; only the lower triangle of `x` is read, or the upper."""
    return _swap(xp, xp.cholesky(_swap(xp, x))) if upper else xp.cholesky(x)


@op("cholesky_solve")
def cholesky_solve(xp: Any, b: Any, factor: Any, upper: bool = False) -> Any:
    factor = _swap(xp, factor) if upper else factor
    half = solve_triangular(xp, factor, b, upper=False)
    return solve_triangular(xp, _swap(xp, factor), half, upper=True)


@op("linalg_slogdet", whole=True)
def slogdet(xp: Any, x: Any) -> Any:
    return xp.slogdet(x)


@op("linalg_det", whole=True)
def det(xp: Any, x: Any) -> Any:
    sign, log = xp.slogdet(x)
    return xp.multiply(sign, xp.exp(log))


@op("linalg_eigh", whole=True)
def eigh(xp: Any, x: Any, UPLO: str = "L") -> Any:
    """Eigenvalues upwards, and vectors whose signs are the framework's own."""
    return xp.eigh(_swap(xp, x) if UPLO == "U" else x)


@op("linalg_eigvalsh", whole=True)
def eigvalsh(xp: Any, x: Any, UPLO: str = "L") -> Any:
    return eigh(xp, x, UPLO)[0]


@op("linalg_svd", whole=True)
def svd(xp: Any, x: Any, full_matrices: bool = True, *, driver: str | None = None) -> Any:
    """(U, S, Vh); the signs of U's columns and of Vh's rows are the framework's own."""
    return xp.svd(x, full_matrices)


@op("linalg_svdvals", whole=True)
def svdvals(xp: Any, x: Any, *, driver: str | None = None) -> Any:
    return xp.svd(x, False)[1]


@op("linalg_qr", whole=True)
def qr(xp: Any, x: Any, mode: str = "reduced") -> Any:
    """(Q, R); the signs of Q's columns and of R's rows are the framework's own."""
    q, r = xp.qr(x, mode == "complete")
    return (xp.full((0,), 0, xp.dtype(x)), r) if mode == "r" else (q, r)


def _identity(xp: Any, x: Any) -> Any:
    steps = xp.arange(0, xp.shape(x)[-1], 1, "int64")
    return xp.cast(xp.equal(xp.expand_dims(steps, 1), steps), xp.dtype(x))


def _solved(xp: Any, a: Any, b: Any) -> Any:
    return xp.solve(*_broadcast(xp, a, b))


def _broadcast(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Both with all the leading dims that either has."""
    if xp.ndim(a) == xp.ndim(b) == 2:
        return a, b
    lead = xp.shape(xp.add(_corner(xp, a), _corner(xp, b)))[:-2]
    return xp.broadcast_to(a, (*lead, *xp.shape(a)[-2:])), xp.broadcast_to(b, (*lead, *xp.shape(b)[-2:]))


def _corner(xp: Any, x: Any) -> Any:
    """[..., 1, 1]: something with the leading dims of `x`."""
    last = xp.ndim(x) - 1
    return xp.slice(xp.slice(x, last, 0, 1), last - 1, 0, 1)
