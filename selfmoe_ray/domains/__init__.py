"""What an expert specialises in: one YAML and one seeds JSONL a domain."""
