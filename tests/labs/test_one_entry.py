"""A property is one entry: what is added to the registry is on offer in the lab, trained, measured and benchmarked."""

import subprocess
import sys

PROGRAM = """
import torch
from p4lab.baselines import properties
from p4lab.baselines.properties import PROPERTIES, Property, Way
from p4lab.baselines.property_layers import Free, Mapped
from p4lab.p4.examples import P4Triangular

def violation(w):
    return float(w.tril(-1).abs().max())

plain = Way("nn.Linear", lambda spec: Free(spec.start), "sgd", 0.05, keeps="nothing")
masked = Way("triu", lambda spec: Mapped(spec.start, torch.triu), "sgd", 0.05)
p4 = Way("P4Triangular", lambda spec: P4Triangular(spec.dim).to(**spec.where), "sgd", 0.05, keeps="perturbation")
PROPERTIES["triangular"] = Property(
    "upper triangular", "|W below the diagonal|", lambda noise: torch.eye(len(noise[0])) + 0.1 * noise[0].triu(),
    violation, {"p4": p4, "usual": masked, "other": masked, "penalty": plain, "plain": plain},
)

from p4lab.labs.property import PROPERTY
from p4lab.widgets import Dashboard

lab = Dashboard(PROPERTY, prop="triangular", dim=8, batch_size=32, measure_every=5, merge_every=4)
for _ in range(10):
    lab.touch("step")
assert "triangular" in PROPERTY.setting("prop").offered(lab.config, "triangular")
rows = lab.drawings()["board"].rows
assert [row.cells[0] for row in rows] == ["P4Triangular", "triu", "triu", "nn.Linear", "nn.Linear"]
worst = {name: lane.last("residual") for name, lane in lab.sight().lanes.items()}
assert worst["p4"] < 1e-6 < worst["plain"], worst
assert lab.error is None
lab.close()
"""


def test_a_property_that_is_registered_is_everywhere() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
