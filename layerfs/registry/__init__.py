"""Images from elsewhere: archives, layouts and registries, as sources and targets."""
