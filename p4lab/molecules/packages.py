"""Optional packages of the extra p4lab[molecules], imported when they are needed."""

import importlib
from typing import Any

from p4lab.errors import MissingPackageError


def package(name: str) -> Any:
    """Return an imported module of an optional package, such as "openmm" or "openmm.app".

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"{name.partition('.')[0]} is not installed ({error}): pip install 'p4lab[molecules]'"
        ) from error
