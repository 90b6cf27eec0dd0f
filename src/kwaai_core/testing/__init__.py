"""What authors of lobes test with."""
