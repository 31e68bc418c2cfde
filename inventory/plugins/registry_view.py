"""Inventory plugin: the generated view of the registry, wherever MUSTER_HOME is."""

import os
from pathlib import Path

from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory.yaml import InventoryModule as YamlInventory

DOCUMENTATION = """
name: registry_view
short_description: Machines from the registry's generated inventory view
description:
  - Reads C($MUSTER_HOME/inventory/machines.yaml), or C(var/inventory/machines.yaml) of the
    checkout when E(MUSTER_HOME) is not set.
  - The view is absent before the first machine is registered; that is an empty inventory.
options:
  plugin:
    description: Names this plugin.
    choices: [registry_view]
  yaml_extensions:
    description: Extensions that the view may have.
    type: list
    elements: string
    default: [.yaml]
"""


class InventoryModule(YamlInventory):
    """Ansible's own YAML inventory, read from the place where the registry's view is kept."""

    NAME = "registry_view"

    def parse(
        self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True
    ) -> None:
        """Add the hosts of the view to `inventory`; `path` is the file that names this plugin."""
        checkout = Path(path).resolve().parent.parent
        home = Path(os.environ.get("MUSTER_HOME") or checkout / "var").expanduser()
        view = home / "inventory" / "machines.yaml"
        if view.is_file():
            super().parse(inventory, loader, str(view), cache)
