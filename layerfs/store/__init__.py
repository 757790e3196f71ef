"""What is on disk: layers, trees, images, containers, and their upkeep."""
