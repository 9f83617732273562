"""Health, metrics and API of a sidecar, on aiohttp, in the supervisor's process: never on the path."""
