"""Everything up to the MiXSE checkpoint."""

from selfmoe_ray.command import main

if __name__ == "__main__":
    main(last="mixse")
