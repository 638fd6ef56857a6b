"""A traced graph whose values stay integers from layer to layer."""
