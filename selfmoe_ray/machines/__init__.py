"""What machines have and lack: hardware, packages, processes, Ray nodes, and the checks of the doctor."""
