"""What several rooms use: command lines, devices, files, metrics, image grids."""
