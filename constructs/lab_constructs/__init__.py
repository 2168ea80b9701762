"""L3 constructs, one noun a file. The package has a name of its own, because `constructs` belongs to the PyPI package:
with this layout editors and type checkers find it by the path entry that `make setup` installs (see pyproject.toml)."""
