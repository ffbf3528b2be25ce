"""A notebook in a browser page, for the tests."""

from p4lab.bench.browser import Server
from p4lab.bench.notebook import WAIT, Notebook

__all__ = ["WAIT", "Notebook", "Server"]
