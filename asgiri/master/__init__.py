"""The process that owns every socket: accepts, steers, supervises; no application, no HTTP."""
