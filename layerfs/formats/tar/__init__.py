"""Reading and writing tar archives, as layers and as the outer form of image archives."""
