"""Run configs, the engine that trains, the player that controls it, the pump that shows it."""

from p4lab.training.config import RunConfig, devices
from p4lab.training.engine import Engine, Problem, run
from p4lab.training.files import load_run, save_run, table_bytes
from p4lab.training.lanes import Lanes
from p4lab.training.player import Frame, Player, State, describe
from p4lab.training.pump import Pump, Screen
from p4lab.training.records import Event, Moment, Records, Snapshot, Trail
from p4lab.training.runs import History, Run, Runs, RunView
from p4lab.training.setups import CustomConfig, DigitsConfig, MatrixConfig

__all__ = [
    "CustomConfig",
    "DigitsConfig",
    "Engine",
    "Event",
    "Frame",
    "History",
    "Lanes",
    "MatrixConfig",
    "Moment",
    "Player",
    "Problem",
    "Pump",
    "Records",
    "Run",
    "RunConfig",
    "RunView",
    "Runs",
    "Screen",
    "Snapshot",
    "State",
    "Trail",
    "describe",
    "devices",
    "load_run",
    "run",
    "save_run",
    "table_bytes",
]
