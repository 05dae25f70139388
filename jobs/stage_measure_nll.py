"""Everything up to the first measure."""

from selfmoe_ray.commands.run import main

if __name__ == "__main__":
    main(until="measure")
