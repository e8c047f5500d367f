"""An adapter on the Hub: what may go, sent exactly once, verified, taken back."""
