"""What holds for every test: how hard hypothesis tries, and how many cores torch takes."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

# The first example of a test pays for torch's lazy set-up, so its time says nothing about the code.
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), max_examples=100, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

torch.set_num_threads(1)
