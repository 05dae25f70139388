"""What a user types: run, eval, studies, doctor; exit status and signals in one place."""
