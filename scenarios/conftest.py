"""`pytest scenarios/`: the scenarios are collected by the rig's own plugin."""

pytest_plugins = ["rig.pytest_plugin"]
