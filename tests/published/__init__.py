"""What is known of the published networks.

The layouts of their state dicts, and outputs for made-up weights and inputs.
"""

from pathlib import Path

PARITY = Path(__file__).parent / "parity"
INSTRUMENTS = Path(__file__).parent / "instruments"
MANIFESTS = Path(__file__).parent / "manifests"
