"""One run's folder: storage, paths, manifests, lease, records, events and trackers."""
