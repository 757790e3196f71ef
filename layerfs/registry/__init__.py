"""Images from elsewhere: archives and layouts as sources."""
