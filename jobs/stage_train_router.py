"""Generate, train the experts, train the router."""

from selfmoe_ray.command import main

if __name__ == "__main__":
    main(last="router")
