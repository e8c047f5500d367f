"""The seam to PEFT, to adapters that lie in files, and to AdaLoRA."""
