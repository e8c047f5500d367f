"""Presets: values, reasons, and the library objects that they become."""
