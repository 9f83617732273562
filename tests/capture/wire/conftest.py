"""Hypothesis without deadlines: these tests judge results, never speed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("wire", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wire")
