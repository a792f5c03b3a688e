"""An application whose import fails."""

raise RuntimeError("broken_app cannot be imported")
