"""What is known of a run, and the model card written from that alone."""
