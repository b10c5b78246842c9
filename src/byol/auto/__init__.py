"""Choose the settings that the user left open, from the images and the machine."""
