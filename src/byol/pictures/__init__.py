"""Charts, contact sheets, thumbnails, and the frame of an HTML page."""
