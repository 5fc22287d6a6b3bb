"""Training: from a configuration and annotated images to a weights file. The only part that needs Lightning."""
