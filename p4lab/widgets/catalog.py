"""The labs of the notebooks, ready to be shown."""

from typing import Any, Protocol

from p4lab.labs.alanine import ALANINE
from p4lab.labs.boltzmann import BOLTZMANN
from p4lab.labs.break_it import BREAK
from p4lab.labs.characters import CHARACTERS
from p4lab.labs.density import DENSITIES_2D
from p4lab.labs.digits import DIGITS
from p4lab.labs.directions import DIRECTIONS
from p4lab.labs.images import IMAGES
from p4lab.labs.lab import Lab
from p4lab.labs.linear import LINEAR
from p4lab.labs.parameter import PARAMETER
from p4lab.labs.property import PROPERTY
from p4lab.labs.race import RACE
from p4lab.labs.rnn import RNN
from p4lab.labs.start import START
from p4lab.labs.swaps import SWAPS
from p4lab.labs.temperature import TEMPERATURE
from p4lab.training import RunConfig
from p4lab.widgets.dashboard import Dashboard


class Opener(Protocol):
    """Shows a lab: takes settings of the first run, a name, and changes, as `Dashboard` does."""

    def __call__(self, config: Any = None, name: str | None = None, **changes: Any) -> Dashboard:
        """Return the lab, which is shown when it is displayed."""


def opener(lab: Lab[Any, Any]) -> Opener:
    """Return a function that shows a lab."""

    def show(config: RunConfig | str | None = None, name: str | None = None, **changes: Any) -> Dashboard:
        return Dashboard(lab, config, name, **changes)

    show.__name__ = show.__qualname__ = f"{lab.name}_lab"
    show.__doc__ = f"""Return the lab "{lab.title}": {lab.subtitle[:1].lower()}{lab.subtitle[1:]}.

    Args:
        config: settings of the first run (None: the lab's own).
        name: see `Dashboard`.
        changes: settings over those of ``config``, by name: {", ".join(lab.config.settings)}.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return show


alanine_lab = opener(ALANINE)
boltzmann_lab = opener(BOLTZMANN)
break_lab = opener(BREAK)
characters_lab = opener(CHARACTERS)
density_lab = opener(DENSITIES_2D)
digits_lab = opener(DIGITS)
images_lab = opener(IMAGES)
linear_lab = opener(LINEAR)
parameter_lab = opener(PARAMETER)
directions_lab = opener(DIRECTIONS)
race_lab = opener(RACE)
rnn_lab = opener(RNN)
start_lab = opener(START)
property_lab = opener(PROPERTY)
swaps_lab = opener(SWAPS)
temperature_lab = opener(TEMPERATURE)
