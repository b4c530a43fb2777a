"""Where training images come from and what is cut out of them."""
