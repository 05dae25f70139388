"""What a user types: run, eval, studies, serve, doctor; exit status and signals in one place."""
