"""Runs side by side: what they are read from, what differs, what they reached, and the files that say so."""
