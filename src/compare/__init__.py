"""Compares runs: reads them, finds what differs and what they reached, and writes tables."""
