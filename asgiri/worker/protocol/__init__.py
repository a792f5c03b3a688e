"""Protocol engines, sans-IO. Every engine speaks the events and the contract of `events`."""
