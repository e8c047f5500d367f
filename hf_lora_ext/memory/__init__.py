"""Bytes of a run, by component and peak, and the fastest run that fits the devices."""
