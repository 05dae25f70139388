"""Generate every domain's examples."""

from selfmoe_ray.command import main

if __name__ == "__main__":
    main(last="generate")
