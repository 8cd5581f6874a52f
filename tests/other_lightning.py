"""Runs the tests, which import pytorch_lightning, under lightning.pytorch if LIGHTNING_RECALL_LIGHTNING says so."""

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

ALIASES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


class OtherLightning:
    """Imports lightning.pytorch in place of pytorch_lightning, and lightning.fabric in place of lightning_fabric."""

    def find_spec(self, name, path=None, target=None):
        package, dot, rest = name.partition(".")
        return ModuleSpec(name, self, origin=ALIASES[package] + dot + rest) if package in ALIASES else None

    def create_module(self, spec):
        module = import_module(spec.origin)
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.own_spec  # Python has replaced it by that of the alias


if os.environ.get("LIGHTNING_RECALL_LIGHTNING") == "lightning.pytorch":
    sys.meta_path.insert(0, OtherLightning())
