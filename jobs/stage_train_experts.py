"""Generate examples and train the experts."""

from selfmoe_ray.command import main

if __name__ == "__main__":
    main(last="experts")
