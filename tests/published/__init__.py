"""What is known of the published networks.

These are the layouts of their state dicts, and outputs for made-up weights and inputs.
"""

from pathlib import Path

PARITY = Path(__file__).parent / "parity"
MANIFESTS = Path(__file__).parent / "manifests"
