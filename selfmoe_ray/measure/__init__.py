"""NLL and routing on rows that no stage trained on."""
