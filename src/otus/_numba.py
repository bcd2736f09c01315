"""One decorator for every compiled kernel.

numba's ``cache=True`` raises at import where no folder is writable, and ``parallel=True`` aborts a process that forks
later: kernels here release the GIL (use threads) and are cached on disk where that is possible.
"""

import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar, cast, no_type_check

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_BLAS = "scipy.linalg.cython_blas"
_warned = False


def _spare_scipy() -> None:
    """Import numba's array support without scipy.linalg: 1.9 s instead of 3.3 s (best of 7, two busy cores).

    numba imports it only to see whether scipy is there, and it is: scipy is one of our dependencies. A stand-in answers
    that question; compiling a function with ``np.dot`` later imports the real one.
    """
    if _BLAS in sys.modules:
        return
    sys.modules[_BLAS] = ModuleType(_BLAS)
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        del sys.modules[_BLAS]


_spare_scipy()


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers by numba in nopython mode, without the GIL.

    The compiled code is cached beside the file or in ``NUMBA_CACHE_DIR``. Without a writable folder it is compiled
    anew in every process, which is said once. Marked ``no_type_check`` because runtime type checkers cannot wrap it.
    """
    global _warned
    plain = no_type_check(function)
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(plain))
    except RuntimeError:
        if not _warned:
            warnings.warn(
                "numba found no writable folder for its cache: kernels compile anew in every process "
                "(set NUMBA_CACHE_DIR to a writable folder)",
                stacklevel=2,
            )
            _warned = True
        return cast(Function, numba.njit(nogil=True)(plain))
