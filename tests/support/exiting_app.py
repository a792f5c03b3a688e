"""An application that ends the process that imports it."""

raise SystemExit("exiting_app leaves")
