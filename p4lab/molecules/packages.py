"""Optional packages of the extra p4lab[molecules], imported when they are needed."""

from functools import partial

from p4lab.packages import require

package = partial(require, extra="molecules")
"""Returns an imported module, such as "openmm.app": see `p4lab.packages.require`."""
