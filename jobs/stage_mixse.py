"""Everything up to the MiXSE checkpoint."""

from selfmoe_ray.commands.run import main

if __name__ == "__main__":
    main(until="mixse")
