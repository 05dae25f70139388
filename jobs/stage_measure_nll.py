"""Everything up to the first measure."""

from selfmoe_ray.command import main

if __name__ == "__main__":
    main(last="measure")
