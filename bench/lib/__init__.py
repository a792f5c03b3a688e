"""What the bench scripts share."""
