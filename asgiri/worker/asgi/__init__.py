"""The ASGI side of a worker: loads the application, builds scopes, runs exchanges."""
