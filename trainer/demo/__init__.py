"""The demo: the whole idea at work on the reference world, and the page that shows it."""

from apl_guard.trainer.demo.run import DemoResult as DemoResult
from apl_guard.trainer.demo.run import run_demo as run_demo

__all__ = ["DemoResult", "run_demo"]
