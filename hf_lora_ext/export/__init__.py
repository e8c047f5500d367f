"""An adapter in the forms that inference engines load, and which engine loads which."""
