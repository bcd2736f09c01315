"""The decorator of all compiled kernels.

numba's ``cache=True`` raises at import if no folder is writable, and ``parallel=True`` aborts a process that forks
later. Kernels here are cached on disk if possible, and release the GIL, so they can run in threads.
"""

import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar, cast, no_type_check

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_SCIPY_BLAS = "scipy.linalg.cython_blas"
_warned = False


def _import_numba_without_scipy() -> None:
    """Import numba's array support without scipy.linalg: 1.9 s instead of 3.3 s (best of 7, two busy cores).

    numba imports scipy.linalg only to check that scipy is installed, which it is, as a dependency of Otus. An empty
    module takes its place during the import; compiling a function with ``np.dot`` later imports the real one.
    """
    if _SCIPY_BLAS in sys.modules:
        return
    sys.modules[_SCIPY_BLAS] = ModuleType(_SCIPY_BLAS)
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        del sys.modules[_SCIPY_BLAS]


_import_numba_without_scipy()


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers by numba in nopython mode, without the GIL.

    The compiled code is cached beside the file or in ``NUMBA_CACHE_DIR``. Without a writable folder it is compiled in
    every process, with a warning. Marked ``no_type_check`` because runtime type checkers cannot wrap it.
    """
    global _warned
    plain = no_type_check(function)
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(plain))
    except RuntimeError:
        if not _warned:
            warnings.warn(
                "numba found no writable folder for its cache: kernels are compiled in every process "
                "(set NUMBA_CACHE_DIR to a writable folder)",
                stacklevel=2,
            )
            _warned = True
        return cast(Function, numba.njit(nogil=True)(plain))
