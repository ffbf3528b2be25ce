"""Run configs, the engine that trains, the player that controls it, the pump that shows it."""

from p4lab.training.config import LIVE, RunConfig, preset_values
from p4lab.training.engine import Engine, Problem
from p4lab.training.player import Frame, Player, State, describe
from p4lab.training.pump import Pump, View
from p4lab.training.records import Event, Records, Snapshot

__all__ = [
    "LIVE",
    "Engine",
    "Event",
    "Frame",
    "Player",
    "Problem",
    "Pump",
    "Records",
    "RunConfig",
    "Snapshot",
    "State",
    "View",
    "describe",
    "preset_values",
]
