"""Optional packages, imported where they are needed and not before."""

import importlib
import warnings
from types import ModuleType

from p4lab.errors import MissingPackageError


def require(name: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: such as "openmm.app".
        extra: of p4lab, with which the package is installed.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # geoopt 0.5 compiles its helpers with torch.jit.script at import, which torch 2.13 deprecates.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
            # pogo-torch 1.0 has a formula with backslashes in a docstring.
            warnings.filterwarnings("ignore", message="invalid escape sequence")
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{name.partition('.')[0]} is not installed ({error}): pip install 'p4lab[{extra}]'"
        ) from error
