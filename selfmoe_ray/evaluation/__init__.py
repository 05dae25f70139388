"""What a mixture is worth: its systems, the first measure (response NLL) and the routing."""
