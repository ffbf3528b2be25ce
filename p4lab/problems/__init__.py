"""What is trained on."""

from p4lab.problems.digits import Digits, bits

__all__ = ["Digits", "bits"]
