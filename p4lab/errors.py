"""Named errors: each says what arrived, what was expected and what to do."""


class P4Error(Exception):
    """Base class of every error that p4lab raises on purpose."""


class ShapeError(P4Error, ValueError):
    """A tensor of the wrong shape arrived."""


class DtypeError(P4Error, TypeError):
    """A tensor of the wrong dtype arrived, or a layer was cast to a dtype that cannot hold an inverse."""


class DeviceError(P4Error, RuntimeError):
    """A tensor or generator lives on another device than the layer, or there is no device that can do the work."""


class SingularMatrixError(P4Error, ValueError):
    """A matrix that must be invertible is singular, not finite, or too ill-conditioned for its dtype."""


class OptionError(P4Error, ValueError):
    """An option has a value outside of its range."""


class TrainingError(P4Error, RuntimeError):
    """Training cannot go on, say because the loss is not finite; the model is left as it was before the step."""


class ConfigError(P4Error, ValueError):
    """A run configuration has an unknown key or a value outside of its range."""


class RunFileError(P4Error, ValueError):
    """A file is not a saved run, is damaged, or belongs to another kind of run."""


class FileError(P4Error, OSError):
    """A file cannot be written or read: its folder is missing or read-only, it is a folder, the disk is full."""


class MissingPackageError(P4Error, ImportError):
    """An optional package that is needed here is not installed."""


class DataFileError(P4Error, ValueError):
    """A data file is damaged, or is not what p4lab wrote."""


class UnknownAtomsError(P4Error, ValueError):
    """A molecule has other atoms than the one that is known here, or calls them by other names."""


class MoleculeError(P4Error, ValueError):
    """A sequence, file or system is not a molecule that internal coordinates and a force field can describe."""


class MergeOrderError(P4Error, RuntimeError):
    """A layer was merged between a forward pass and its backward pass."""


class ReplicaError(P4Error, RuntimeError):
    """Processes that train one model together have different copies of it, or do not say that they belong together.

    Replicas in threads of one process (`torch.nn.DataParallel`) are refused, too.
    """


class ShardingError(P4Error, RuntimeError):
    """A layer is divided among processes, but a merge needs all of it."""


class ReplayError(P4Error, ValueError):
    """A run does not fit into one page."""
