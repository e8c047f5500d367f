"""`python -m hf_lora_ext.cli` is `hf-lora`."""

from . import main

main()
