"""What pyproject.toml can't say: guests/, kernels/ and scenarios/ lie beside the package, and go into it."""

from setuptools import find_packages, setup

CATALOGUE = ("guests", "kernels", "scenarios")  # installed as rig/data/NAME, where rig.catalog.roots() looks

setup(
    packages=[*find_packages(include=["rig", "rig.*"]), *(f"rig.data.{name}" for name in CATALOGUE)],
    package_dir={f"rig.data.{name}": name for name in CATALOGUE},
    package_data={f"rig.data.{name}": ["**/*"] for name in CATALOGUE}
    | {"rig": ["py.typed", "**/*.j2", "**/*.html", "**/*.css", "**/*.js", "**/*.schema.json"]},
    exclude_package_data={"": ["**/__pycache__/*", "*.pyc"]},
    include_package_data=False,
)
